"""The archiver: for each partition write, read back, verify, name, retire.

Whenever it is killed, it can run again.

Invariants
  * a file gets its name only when it is on disk, the manifest after what it names, both before the database
    is told;
  * what is verified is what was read back from the file, by code that had no part in writing it;
  * the database compares the manifest with the partition itself and empties it in the same transaction, or
    refuses. Until then everything is still there, and a rerun starts that partition afresh; afterwards it has
    nothing to do.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import psycopg

from meshaudit import archive_rows
from meshaudit.archive import manifest, writer
from meshaudit.errors import BadArgument, MeshauditError, NoPermission

_TRIES = 200  # for as long as somebody reads the partition


class Partition(NamedTuple):
    """A partition as meshaudit.partitions() tells it."""

    name: str
    start: datetime
    end: datetime
    state: str
    detail: str | None


class Done(NamedTuple):
    """An archived partition."""

    partition: str
    entries: int
    bytes: int
    digest: str


# What is done, for a progress bar: partition, step, entries so far.
Progress = Callable[[str, str, int], None]


def candidates(conn: psycopg.Connection[Any], before: datetime) -> list[Partition]:
    """The partitions that end at `before` or earlier and hold entries of their own, oldest first."""
    rows = conn.execute("select partition, from_time, to_time, state, detail from meshaudit.partitions()")
    found = [Partition(*row) for row in rows.fetchall()]
    return [p for p in found if p.end <= before and p.state != "retired" and _holds_entries(conn, p)]


def archive(
    conn: psycopg.Connection[Any], dsn: str, target: Path, partitions: list[Partition], progress: Progress
) -> Iterator[Done]:
    """Archive and retire these partitions, one after the other."""
    seen = conn.execute("select meshaudit.sees_everything(), meshaudit.get_setting('ledger_id')").fetchone()
    assert seen is not None
    if not seen[0]:
        raise NoPermission(
            "this role sees only a part of the log, and a part of a chain cannot be archived",
            "connect as a member of meshaudit_operator that is an auditor of scope '*'",
        )
    ledger_id = UUID(seen[1])
    target.mkdir(parents=True, exist_ok=True)
    for partition in partitions:
        yield _one(conn, dsn, target, partition, ledger_id, progress)


def _one(
    conn: psycopg.Connection[Any],
    dsn: str,
    target: Path,
    partition: Partition,
    ledger_id: UUID,
    progress: Progress,
) -> Done:
    name = partition.name
    final, named = target / f"{name}.parquet", target / f"{name}.manifest.json"
    held = conn.execute(
        "select manifest, restored from meshaudit.retirements() where partition = %s", [name]
    ).fetchone()
    if held is not None:
        return _again(conn, target, partition, held[0], progress)
    left = _left_behind(named)
    # Of this process only; a killed one's is swept away when it is found.
    fresh, fresh_named = _temporary(final), _temporary(named)
    _sweep(target, name)
    try:
        writer.write(dsn, partition.start, partition.end, fresh, lambda n: progress(name, "writing", n))
        content = _read_back(fresh, partition, progress)
        text = manifest.text(
            ledger_id=ledger_id,
            partition=name,
            start=partition.start,
            end=partition.end,
            content=content,
            files=[fresh],
            names=[final.name],
            previous=_previous(conn),
        )
        if left is not None and not _same_entries(left, json.loads(text)):
            raise BadArgument(
                f"{named} is there and holds other entries than {name} does now",
                "move it away, or archive to another place",
            )
        with fresh_named.open("x", encoding="utf-8") as file:
            file.write(text)
        writer.flush(fresh_named)
        fresh.replace(final)
        fresh_named.replace(named)
        writer.flush(target)
    finally:
        fresh.unlink(missing_ok=True)
        fresh_named.unlink(missing_ok=True)
    digest = _retire(conn, name, named.read_text("utf-8"))
    return Done(name, content.entries, final.stat().st_size, digest)


def _again(
    conn: psycopg.Connection[Any], target: Path, partition: Partition, text: str, progress: Progress
) -> Done:
    """A restored partition: its archive is there, and is verified once more."""
    name = partition.name
    final, named = target / f"{name}.parquet", target / f"{name}.manifest.json"
    if not named.exists() or named.read_text("utf-8") != text or not final.exists():
        raise BadArgument(f"{name} was restored from an archive that is not in {target}", "give that place")
    if manifest.digest(final) != json.loads(text)["files"][0]["sha256"]:
        raise MeshauditError(
            f"{final} has changed since it was archived", "meshaudit verify --archive names what"
        )
    content = _read_back(final, partition, progress)
    return Done(name, content.entries, final.stat().st_size, _retire(conn, name, text))


def _read_back(path: Path, partition: Partition, progress: Progress) -> archive_rows.Content:
    done = 0

    def count(rows: int) -> None:
        nonlocal done
        done += rows
        progress(partition.name, "verifying", done)

    try:
        return archive_rows.read(path, partition.start, partition.end, progress=count)
    except archive_rows.Broken as broken:
        raise MeshauditError(
            f"{partition.name} does not verify, and was not retired: {broken}",
            "run meshaudit verify: it names what was altered",
        ) from broken


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


def _left_behind(named: Path) -> dict[str, Any] | None:
    """The manifest of a run that was killed before the database knew of it."""
    try:
        body = json.loads(named.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as exc:
        raise BadArgument(f"{named} is there and is no manifest", "move it away") from exc
    return body if isinstance(body, dict) else {}


def _same_entries(left: dict[str, Any], now: dict[str, Any]) -> bool:
    return all(left.get(key) == now[key] for key in ("ledger_id", "partition", "entries", "runs"))


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}")


def _sweep(target: Path, name: str) -> None:
    for kind in ("parquet", "manifest.json"):
        for path in target.glob(f".{name}.{kind}.*"):
            path.unlink(missing_ok=True)
