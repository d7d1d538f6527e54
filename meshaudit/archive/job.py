"""The archiver: for each partition write, read back, verify, name, retire.

Whenever it is killed, it can run again. While a partition is verified and retired, the next is being written.

Invariants
  * one archiver a ledger: it holds a lock in the database for as long as it writes;
  * a manifest is there only when what it names is, both before the database is told;
  * what is verified is what was read back from the place, by code that had no part in writing it;
  * the database compares the manifest with the partition itself and empties it in the same transaction, or
    refuses. Until then everything is still there, and a rerun starts that partition afresh; afterwards it has
    nothing to do.
"""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from datetime import datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import psycopg

from meshaudit.archive import manifest, writer
from meshaudit.archive.lock import exclusive
from meshaudit.archive.readback import ReadBack, read_back
from meshaudit.archive.store import Store, store
from meshaudit.errors import BadArgument, MeshauditError, NoPermission

_TRIES = 200  # for as long as somebody reads the partition
_SMALL = 300_000  # entries; below, a process costs more than it brings


class Partition(NamedTuple):
    """A partition as meshaudit.partitions() tells it."""

    name: str
    start: datetime
    end: datetime
    state: str
    detail: str | None

    @property
    def data(self) -> str:
        """What its file is called."""
        return f"{self.name}.parquet"

    @property
    def manifest(self) -> str:
        """What its manifest is called."""
        return f"{self.name}.manifest.json"


class Done(NamedTuple):
    """An archived partition."""

    partition: str
    entries: int
    bytes: int
    digest: str


# What is done, for a progress bar: partition, step (writing, verifying, retired), entries so far.
Progress = Callable[[str, str, int], None]


def candidates(conn: psycopg.Connection[Any], before: datetime) -> list[Partition]:
    """The partitions that end at `before` or earlier and hold entries of their own, oldest first."""
    rows = conn.execute("select partition, from_time, to_time, state, detail from meshaudit.partitions()")
    found = [Partition(*row) for row in rows.fetchall()]
    return [p for p in found if p.end <= before and p.state != "retired" and _holds_entries(conn, p)]


def archive(
    conn: psycopg.Connection[Any],
    dsn: str,
    target: Path | str,
    partitions: list[Partition],
    progress: Progress,
) -> Iterator[Done]:
    """Archive and retire these partitions, one after the other."""
    seen = conn.execute("select meshaudit.sees_everything(), meshaudit.get_setting('ledger_id')").fetchone()
    assert seen is not None
    if not seen[0]:
        raise NoPermission(
            "this role sees only a part of the log, and a part of a chain cannot be archived",
            "connect as a member of meshaudit_operator that is an auditor of scope '*'",
        )
    if not partitions:
        return
    place = store(target)
    with exclusive(dsn) as still_ours:
        place.prepare(UUID(seen[1]))
        run = _Run(conn, dsn, place, UUID(seen[1]), progress, still_ours)
        with contextlib.closing(run):
            yield from run.archive(partitions)


class _Run:
    """Two at a time: one is written, the one before is verified, named and retired."""

    def __init__(
        self,
        conn: psycopg.Connection[Any],
        dsn: str,
        place: Store,
        ledger_id: UUID,
        progress: Progress,
        still_ours: Callable[[], None],
    ) -> None:
        self._conn, self._dsn, self._place, self._ledger_id = conn, dsn, place, ledger_id
        self._progress, self._still_ours = progress, still_ours
        self._thread = ThreadPoolExecutor(1)
        self._process: ProcessPoolExecutor | None = None
        rows = conn.execute("select partition, manifest from meshaudit.retirements()").fetchall()
        self._held: dict[str, str] = dict(rows)

    def close(self) -> None:
        """What is being retired is finished."""
        self._thread.shutdown()
        if self._process is not None:
            self._process.shutdown()

    def archive(self, partitions: list[Partition]) -> Iterator[Done]:
        before: Future[Done] | None = None
        try:
            for partition in partitions:
                finish, undo = self._begin(partition)
                if before is not None:
                    try:
                        yield before.result()
                    except BaseException:
                        undo()
                        raise
                before = self._thread.submit(finish)
        finally:
            # also when nobody wants to hear of the others
            last = before.result() if before is not None and not before.cancelled() else None
        if last is not None:
            yield last

    def _begin(self, partition: Partition) -> tuple[Callable[[], Done], Callable[[], None]]:
        """Write it, unless it is there; returns what is left to do, and how to undo it instead."""
        held = self._held.get(partition.name)
        if held is not None:
            return lambda: self._again(partition, held), lambda: None
        left = self._left_behind(partition)
        self._place.sweep(partition.data)
        self._place.sweep(partition.manifest)
        with self._place.write(partition.data) as sink:
            count = writer.write(
                self._dsn,
                partition.start,
                partition.end,
                sink,
                lambda n: self._progress(partition.name, "writing", n),
            )

        def undo() -> None:
            self._give_up(partition, keep=left is not None)

        return lambda: self._finish(partition, count, left), undo

    def _finish(self, partition: Partition, count: int, left: dict[str, Any] | None) -> Done:
        try:
            found = self._read_back(partition, self._place.draft(partition.data), count)
            text = manifest.text(
                ledger_id=self._ledger_id,
                partition=partition.name,
                start=partition.start,
                end=partition.end,
                content=found.content,
                file=(partition.data, found.bytes, found.sha256),
                previous=_previous(self._conn),
            )
            if left is not None and not _same_entries(left, json.loads(text)):
                raise BadArgument(
                    f"{partition.manifest} is there and holds other entries than {partition.name} does now",
                    f"move it away from {self._place.where}, or archive to another place",
                )
            self._still_ours()
            self._place.publish(partition.data)
        except BaseException:
            self._give_up(partition, keep=left is not None)
            raise
        try:
            self._place.put(partition.manifest, text.encode(), replace=left is not None)
        except FileExistsError as exc:
            raise MeshauditError(
                f"{partition.manifest} has just been put to {self._place.where} by somebody else",
                "one ledger, one archiver, one place; run it again when the other has ended",
            ) from exc
        digest = _retire(self._conn, partition.name, text)
        self._progress(partition.name, "retired", found.content.entries)
        return Done(partition.name, found.content.entries, found.bytes, digest)

    def _again(self, partition: Partition, text: str) -> Done:
        """A restored partition: its archive is there, and is verified once more."""
        name = partition.name
        if self._place.read(partition.manifest) != text.encode():
            raise BadArgument(
                f"{name} was restored from an archive that is not in {self._place.where}", "give that place"
            )
        body = json.loads(text)
        found = self._read_back(partition, partition.data, body["entries"])
        if found.sha256 != body["files"][0]["sha256"]:
            raise MeshauditError(
                f"{partition.data} has changed since it was archived", "meshaudit verify --archive names what"
            )
        digest = _retire(self._conn, name, text)
        self._progress(name, "retired", found.content.entries)
        return Done(name, found.content.entries, found.bytes, digest)

    def _read_back(self, partition: Partition, name: str, count: int) -> ReadBack:
        args = (self._place.where, name, partition.start, partition.end)
        self._progress(partition.name, "verifying", 0)
        if count < _SMALL:
            found = read_back(*args)
        else:
            if self._process is None:
                # Not forked: threads of the libraries would be lost half-way.
                self._process = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
            found = self._process.submit(read_back, *args).result()
        self._progress(partition.name, "verifying", count)
        return found

    def _left_behind(self, partition: Partition) -> dict[str, Any] | None:
        """The manifest of a run that was killed before the database knew of it."""
        data = self._place.read(partition.manifest)
        if data is None:
            return None
        try:
            body = json.loads(data)
        except ValueError as exc:
            raise BadArgument(f"{partition.manifest} is there and is no manifest", "move it away") from exc
        found = body if isinstance(body, dict) else {}
        if found.get("ledger_id") != str(self._ledger_id):
            raise BadArgument(
                f"{partition.manifest} in {self._place.where} is of another ledger",
                "archive to another place",
            )
        return found

    def _give_up(self, partition: Partition, keep: bool) -> None:
        """Remove what was written; not if it has replaced what a manifest names."""
        name = self._place.draft(partition.data)
        if not (keep and name == partition.data):
            with contextlib.suppress(MeshauditError, OSError):
                self._place.delete(name)


def _retire(conn: psycopg.Connection[Any], name: str, text: str) -> str:
    """Until nobody is reading the partition; neither side waits for the other in a lock."""
    for again in range(_TRIES, -1, -1):
        try:
            row = conn.execute("select meshaudit.retire_partition(%s, %s)", [name, text]).fetchone()
        except psycopg.errors.LockNotAvailable:
            if not again:
                raise
            time.sleep(0.1)
        else:
            break
    assert row is not None
    digest: str = row[0]
    return digest


def _previous(conn: psycopg.Connection[Any]) -> str | None:
    texts = conn.execute("select manifest from meshaudit.retirements()").fetchall()
    return hashlib.sha256(texts[-1][0].encode()).hexdigest() if texts else None


def _holds_entries(conn: psycopg.Connection[Any], partition: Partition) -> bool:
    row = conn.execute(
        'select exists (select from meshaudit.audit_logs where "timestamp" >= %s and "timestamp" < %s)',
        [partition.start, partition.end],
    ).fetchone()
    return row == (True,)


def _same_entries(left: dict[str, Any], now: dict[str, Any]) -> bool:
    return all(left.get(key) == now[key] for key in ("ledger_id", "partition", "entries", "runs"))
