"""The ledger as one stream, in any order, reduced to what is left of its chains: runs and unsound entries.

A run is a stretch of a lane in which every entry is sound and names the one before it. An intact lane is one
run from its genesis to its head, so memory holds runs, not entries. Their number follows from how often the
table's physical order departs from the chain's, never from the number of entries.

One COPY, unsorted: a sort costs the server more than all the rest. Per row there is one sha256, one unpack
and one dictionary look-up; whatever does not fit goes to `_place`, which takes its time.
"""

import hashlib
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import psycopg
from psycopg import generators
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus

from meshaudit import canonical

# The composite's fields are those of the canonical bytes, in their order.
ROW = """hash, prev_hash, pg_catalog.record_send(row(1, lane, seq, id, secret_id, access_type, "timestamp",
  user_identity, ip_address, operation, outcome, secret_table, scope, identity_source, claimed_identity,
  db_user, db_role, application_name, user_agent, request_id, access_id))"""

# Where things are in a COPY message of ROW, when nothing is NULL that should not be.
_LAYOUT = struct.Struct(">6s32s4s32s4x24si8sq")
_THREE_FIELDS_32 = b"\0\3\0\0\0\x20"
_LENGTH_32 = b"\0\0\0\x20"
_COUNT_VERSION_LANE = struct.pack(">iiiiii", 21, 23, 4, 1, 23, 4)
_SEQ = struct.pack(">ii", 20, 8)
_CANONICAL = 82  # behind the hashes and the composite's count of fields
_SIGNATURE = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER = b"\xff\xff"
_CHUNK = 50_000
_LENGTH = struct.Struct(">i")


class Row(NamedTuple):
    """An entry, as far as its chain is concerned. Anything may be None: NOT NULL can be dropped."""

    lane: int | None
    seq: int | None
    id: int | None
    timestamp: int | None
    prev_hash: bytes | None
    hash: bytes | None
    sound: bool
    tail: bytes  # the canonical bytes behind the place

    def sound_at(self, lane: int, seq: int) -> bool:
        """Whether this entry would be sound at another place."""
        return _digest(self.prev_hash, canonical.place(lane, seq) + self.tail) == self.hash


class Run:
    """Sound entries of one lane from seq `first` to `after` - 1, each linked to the one before."""

    __slots__ = ("after", "first", "hash", "lane", "prev_hash")

    def __init__(self, lane: int, first: int, prev_hash: bytes, last_hash: bytes) -> None:
        self.lane, self.first, self.prev_hash = lane, first, prev_hash
        self.after, self.hash = first + 1, last_hash


class Chains:
    """What a pass over the ledger leaves."""

    def __init__(self) -> None:
        self.entries = 0
        self.unsound: list[Row] = []  # without their tails
        self.homeless: list[Row] = []  # no lane or no seq
        self._runs: list[Run] = []
        self._open: dict[int, Run] = {}  # by lane: the one that grew last
        self._parked: dict[bytes, Run] = {}  # by hash: the others

    def read(self, conn: psycopg.Connection[Any], query: str, progress: Callable[[int], None]) -> None:
        """Take in the rows of a query of ROW."""
        with_copy(conn, query, lambda get: self._consume(get, progress))

    def include(self, runs: Iterable[Run]) -> None:
        """Count stretches that are elsewhere as if they had been read."""
        for run in runs:
            copy = Run(run.lane, run.first, run.prev_hash, run.hash)
            copy.after = run.after
            self._runs.append(copy)

    def runs(self) -> dict[int, list[Run]]:
        """The runs of each lane by first seq, joined where the physical order had parted them."""
        lanes: dict[int, list[Run]] = {}
        for run in sorted(self._runs, key=lambda run: (run.lane, run.first)):
            joined = lanes.setdefault(run.lane, [])
            before = joined[-1] if joined else None
            if before is not None and before.after == run.first and before.hash == run.prev_hash:
                before.after, before.hash = run.after, run.hash
            else:
                joined.append(run)
        return lanes

    def _consume(self, get: "Get", progress: Callable[[int], None]) -> None:
        # Each name that is looked up once here is not looked up for each of millions of rows.
        sha256, unpack, runs, place = hashlib.sha256, _LAYOUT.unpack_from, self._open, self._place
        least = _LAYOUT.size
        while True:
            for done in range(_CHUNK):
                size, view = get(0)
                if size < least:
                    if size < 0:
                        self.entries += done
                        return
                    place(bytes(view))
                    continue
                fields32, digest, length32, prev_hash, lane_head, lane, seq_head, seq = unpack(view)
                run = runs.get(lane)
                if (
                    run is not None
                    and run.hash == prev_hash
                    and run.after == seq
                    and sha256(prev_hash + view[_CANONICAL:]).digest() == digest
                    and fields32 == _THREE_FIELDS_32
                    and length32 == _LENGTH_32
                    and lane_head == _COUNT_VERSION_LANE
                    and seq_head == _SEQ
                ):
                    run.hash = digest
                    run.after = seq + 1
                else:
                    place(bytes(view))
            self.entries += _CHUNK
            progress(self.entries)

    def _place(self, message: bytes) -> None:
        """A row that does not simply go on where its lane stands; or the format's own head and tail."""
        message = message.removeprefix(_SIGNATURE)
        if message in (b"", _TRAILER):
            self.entries -= 1
            return
        row = parse(message)
        if row.lane is None or row.seq is None:
            self.homeless.append(row)
        elif not row.sound:
            self.unsound.append(row._replace(tail=b""))
        else:
            assert row.prev_hash is not None
            assert row.hash is not None
            self._extend(row.lane, row.seq, row.prev_hash, row.hash)

    def _extend(self, lane: int, seq: int, prev_hash: bytes, digest: bytes) -> None:
        grown = self._open.pop(lane, None)
        if grown is not None:
            self._parked[grown.hash] = grown
        run = self._parked.get(prev_hash)
        if run is not None and run.lane == lane and run.after == seq:
            del self._parked[prev_hash]
            run.hash, run.after = digest, seq + 1
        else:
            run = Run(lane, seq, prev_hash, digest)
            self._runs.append(run)
        self._open[lane] = run


def fetch(conn: psycopg.Connection[Any], places: Iterable[tuple[int, int]]) -> list[Row]:
    """The entries at those places, whole."""
    rows: list[Row] = []
    wanted = sorted(places)
    for start in range(0, len(wanted), 5000):
        part = wanted[start : start + 5000]
        lanes, seqs = (",".join(map(str, column)) for column in zip(*part, strict=True))
        query = f"""select {ROW} from meshaudit.audit_logs
          join unnest('{{{lanes}}}'::int4[], '{{{seqs}}}'::int8[]) wanted (lane, seq) using (lane, seq)"""
        with_copy(conn, query, lambda get: rows.extend(_parse_all(get)))
    return rows


def parse(message: bytes) -> Row:
    """A COPY message of ROW, whatever is in it."""
    digest, prev_hash, composite = _fields(message, 2, 0)
    assert composite is not None
    body = composite[4:]
    fields = list(_fields(composite, 4, 4))
    lane, seq, number, timestamp = (
        None if value is None else int.from_bytes(value, "big", signed=True)
        for value in (fields[1], fields[2], fields[3], fields[6])
    )
    sound = digest is not None and _digest(prev_hash, body) == digest
    tail = b"" if lane is None or seq is None else body[len(canonical.place(lane, seq)) :]
    return Row(lane, seq, number, timestamp, prev_hash, digest, sound, tail)


def _digest(prev_hash: bytes | None, body: bytes) -> bytes | None:
    # A hash of another length would move the bytes behind it: what is hashed must have one meaning.
    if prev_hash is None or len(prev_hash) != 32:
        return None
    return canonical.entry_hash(prev_hash, body)


def _fields(data: bytes, at: int, skip: int) -> Iterator[bytes | None]:
    """Fields, each a length and bytes, with `skip` bytes (the type) before the length."""
    while at < len(data):
        (length,) = _LENGTH.unpack_from(data, at + skip)
        at += skip + 4
        yield None if length < 0 else data[at : at + length]
        at += max(length, 0)


def _parse_all(get: "Get") -> Iterator[Row]:
    while True:
        size, view = get(0)
        if size < 0:
            return
        message = bytes(view).removeprefix(_SIGNATURE)
        if message not in (b"", _TRAILER):
            yield parse(message)


Get = Callable[[int], tuple[int, memoryview]]


def with_copy(conn: psycopg.Connection[Any], query: str, consume: Callable[[Get], None]) -> None:
    """Hand a query's raw COPY messages to `consume`; psycopg's own copy() costs more than hashing."""
    pgconn, encoding = conn.pgconn, "utf-8"
    # exec_() would wait in C, where a lock cannot be interrupted by Ctrl-C
    pgconn.send_query(f"copy ({query}) to stdout (format binary)".encode())
    result = conn.wait(generators.fetch(pgconn))
    if result is None:
        raise psycopg.OperationalError("the server sent no result")
    if result.status != ExecStatus.COPY_OUT:
        raise error_from_result(result, encoding)
    try:
        consume(pgconn.get_copy_data)
    except BaseException:
        # Ctrl-C, too, leaves a connection that can go on.
        conn.cancel()
        drain(pgconn.get_copy_data)
        while pgconn.get_result() is not None:
            pass
        raise
    failed = None
    while (last := pgconn.get_result()) is not None:
        if last.status != ExecStatus.COMMAND_OK:
            failed = last
    if failed is not None:
        raise error_from_result(failed, encoding)


def drain(get: Get) -> None:
    """Read a COPY to its end."""
    try:
        while get(0)[0] >= 0:
            pass
    except psycopg.Error:
        pass
