"""Every hash and link of a Parquet file of entries, recomputed.

Written from docs/archive-format.md and docs/canonical-bytes.md.

Whole columns at a time: the canonical bytes of some ten thousand entries are one buffer, so that what is left
to do for each of them is one sha256. It shares no code with what writes archives.
"""

import functools
import hashlib
import itertools
import socket
import struct
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from meshaudit import canonical

_TEXT = pa.string()
TYPES = {
    "id": pa.int64(),
    "secret_id": _TEXT,
    "access_type": _TEXT,
    "timestamp": pa.timestamp("us", tz="UTC"),
    "user_identity": _TEXT,
    "ip_address": _TEXT,
    "operation": _TEXT,
    "outcome": _TEXT,
    "secret_table": _TEXT,
    "scope": _TEXT,
    "identity_source": _TEXT,
    "claimed_identity": _TEXT,
    "db_user": _TEXT,
    "db_role": _TEXT,
    "application_name": _TEXT,
    "user_agent": _TEXT,
    "request_id": _TEXT,
    "access_id": pa.binary(16),
    "lane": pa.int32(),
    "seq": pa.int64(),
    "hash": pa.binary(32),
    "prev_hash": pa.binary(32),
}
_MAY_BE_NULL = {"ip_address", "claimed_identity", "application_name", "user_agent", "request_id", "prev_hash"}
# Few values, many times each: their bytes are made once a value.
_FEW = [name for name, kind in TYPES.items() if kind == _TEXT and name not in ("request_id",)]
_BATCH = 65_536
_PG_EPOCH = int(canonical.EPOCH.timestamp()) * 1_000_000
_LANES = 1 << 20  # more than a database can have; a bound for the tables below


class Stretch(NamedTuple):
    """Entries `first` to `last` of a lane, each linked to the one before."""

    lane: int
    first: int
    last: int
    prev_hash: bytes
    hash: bytes


class Broken(Exception):
    """What is wrong with a file, in words."""


class Content(NamedTuple):
    """What a sound file holds. `hashes` are those of the places that were asked for."""

    entries: int
    runs: list[Stretch]
    hashes: dict[tuple[int, int], bytes]


def read(
    path: Path,
    start: datetime | None = None,
    end: datetime | None = None,
    wanted: Mapping[int, int] | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Content:
    """Recompute a file. Raises Broken. `wanted`: a seq of each lane whose hash the caller wants to know."""
    try:
        with pq.ParquetFile(path, read_dictionary=_FEW, page_checksum_verification=False) as file:
            if {name: file.schema_arrow.field(name).type for name in file.schema_arrow.names} != {
                **TYPES,
                **{name: pa.dictionary(pa.int32(), _TEXT) for name in _FEW},
            }:
                raise Broken("its columns are not those of an archive")
            rows = _Rows(wanted or {})
            bounds = [None if at is None else canonical.microseconds(at) + _PG_EPOCH for at in (start, end)]
            for batch in file.iter_batches(_BATCH):
                rows.take(batch, bounds[0], bounds[1])
                progress(batch.num_rows)
    except (pa.ArrowException, OSError, ValueError, struct.error) as exc:
        raise Broken(f"it cannot be read ({(str(exc).splitlines() or ['?'])[0][:200]})") from exc
    return Content(rows.entries, rows.runs(), rows.hashes)


class _Rows:
    """Goes through a file; holds for each lane the last seq and hash, and where its stretch began."""

    def __init__(self, wanted: Mapping[int, int]) -> None:
        self.entries = 0
        self.hashes: dict[tuple[int, int], bytes] = {}
        self._wanted_of = wanted
        self._wanted: Any = np.zeros(0, np.int64)
        self._seqs: Any = np.zeros(0, np.int64)
        self._hashes: Any = np.zeros((0, 32), np.uint8)
        self._began: dict[int, tuple[int, bytes]] = {}
        self._ended: list[Stretch] = []

    def take(self, batch: pa.RecordBatch, start: int | None, end: int | None) -> None:
        for name in TYPES:
            if name not in _MAY_BE_NULL and batch.column(name).null_count:
                raise Broken(f"an entry has no {name}")
        lanes, seqs = batch.column("lane").to_numpy(), batch.column("seq").to_numpy()
        times = batch.column("timestamp").cast(pa.int64()).to_numpy()
        if len(lanes) == 0:
            return
        if lanes.min() < 0 or lanes.max() >= _LANES or seqs.min() < 1:
            raise Broken("an entry is in no lane")
        if (start is not None and times.min() < start) or (end is not None and times.max() >= end):
            raise Broken("an entry is not of the partition's time")
        hashes = _fixed(batch.column("hash"))
        prev_hashes = self._link(batch.column("prev_hash"), lanes, seqs, hashes)
        _check(batch, prev_hashes, lanes, seqs, times, hashes)
        found = np.flatnonzero(self._wanted[lanes] == seqs)
        for at in found.tolist():
            self.hashes[int(lanes[at]), int(seqs[at])] = hashes[at].tobytes()
        self.entries += len(lanes)

    def runs(self) -> list[Stretch]:
        """The stretches, joined where the file's order had parted them."""
        for lane in list(self._began):
            self._end(lane, int(self._seqs[lane]), self._hashes[lane].tobytes())
        joined: list[Stretch] = []
        for run in sorted(self._ended):
            before = joined[-1] if joined else None
            if before is None or before.lane != run.lane or before.last + 1 < run.first:
                joined.append(run)
            elif before.last + 1 == run.first and before.hash == run.prev_hash:
                joined[-1] = before._replace(last=run.last, hash=run.hash)
            elif before.last + 1 == run.first:
                joined.append(run)
            else:
                raise Broken(f"lane {run.lane}, seq {run.first} is in it twice")
        return joined

    def _link(self, column: Any, lanes: Any, seqs: Any, hashes: Any) -> Any:
        """Each entry's prev_hash: what the file says, or the hash of the entry before it in the lane."""
        self._grow(int(lanes.max()) + 1)
        order = np.argsort(lanes, kind="stable")
        sorted_lanes, sorted_seqs, sorted_hashes = lanes[order], seqs[order], hashes[order]
        first = np.append(True, sorted_lanes[1:] != sorted_lanes[:-1])
        before = np.append(0, sorted_seqs[:-1])
        before_hash = np.vstack((np.zeros((1, 32), np.uint8), sorted_hashes[:-1]))
        heads = sorted_lanes[first]
        before[first], before_hash[first] = self._seqs[heads], self._hashes[heads]

        silent = column.is_null().to_numpy(zero_copy_only=False)[order]
        if (silent & ((before == 0) | (before + 1 != sorted_seqs))).any():
            raise Broken("an entry does not say which one it follows")
        linked = np.where(silent[:, None], before_hash, _fixed(column)[order])
        for at in np.flatnonzero(~silent).tolist():
            lane = int(sorted_lanes[at])
            if lane in self._began:
                self._end(lane, int(before[at]), before_hash[at].tobytes())
            self._began[lane] = int(sorted_seqs[at]), linked[at].tobytes()

        last = order[np.append(first[1:], True)]
        self._seqs[lanes[last]], self._hashes[lanes[last]] = seqs[last], hashes[last]
        prev_hashes = np.empty_like(linked)
        prev_hashes[order] = linked
        return prev_hashes

    def _end(self, lane: int, last: int, digest: bytes) -> None:
        first, prev_hash = self._began.pop(lane)
        self._ended.append(Stretch(lane, first, last, prev_hash, digest))

    def _grow(self, lanes: int) -> None:
        known = len(self._seqs)
        if lanes > known:
            self._seqs = np.append(self._seqs, np.zeros(lanes - known, np.int64))
            self._hashes = np.vstack((self._hashes, np.zeros((lanes - known, 32), np.uint8)))
            more = [self._wanted_of.get(lane, 0) for lane in range(known, lanes)]
            self._wanted = np.append(self._wanted, np.array(more, np.int64))


def _check(batch: pa.RecordBatch, prev_hashes: Any, lanes: Any, seqs: Any, times: Any, hashes: Any) -> None:
    """Raises Broken unless each entry's hash is that of its bytes."""
    offsets, data = _hashed_bytes(batch, prev_hashes, lanes, seqs, times)
    view, sha256 = memoryview(data), hashlib.sha256
    digests = b"".join([sha256(view[at:to]).digest() for at, to in itertools.pairwise(offsets)])
    if digests != hashes.tobytes():
        wrong = (np.frombuffer(digests, np.uint8).reshape(-1, 32) != hashes).any(axis=1)
        at = int(np.flatnonzero(wrong)[0])
        number = batch.column("id")[at].as_py()
        raise Broken(f"the entry at lane {lanes[at]}, seq {seqs[at]}, id {number} is not what was hashed")


def _hashed_bytes(
    batch: pa.RecordBatch, prev_hashes: Any, lanes: Any, seqs: Any, times: Any
) -> tuple[list[int], Any]:
    """prev_hash and canonical bytes of every entry in one buffer, and where each begins and ends."""
    head = np.zeros(
        len(lanes),
        [("prev", "V32"), ("version", ">i4", 3), ("lane", ">i4", 3)]
        + [
            (f"{name}{part}", kind)
            for name in ("seq", "id")
            for part, kind in (("", ">i4"), ("_", ">i4"), ("__", ">i8"))
        ],
    )
    head["prev"] = np.ascontiguousarray(prev_hashes).view("V32").ravel()
    head["version"] = (23, 4, canonical.VERSION)
    head["lane"][:, 0], head["lane"][:, 1], head["lane"][:, 2] = 23, 4, lanes
    for name, values in (("seq", seqs), ("id", batch.column("id").to_numpy())):
        head[name], head[name + "_"], head[name + "__"] = 20, 8, values
    when = np.zeros(len(lanes), [("type", ">i4"), ("length", ">i4"), ("at", ">i8")])
    when["type"], when["length"], when["at"] = 1184, 8, times - _PG_EPOCH
    access = np.zeros(len(lanes), [("type", ">i4"), ("length", ">i4"), ("id", "V16")])
    access["type"], access["length"] = 2950, 16
    access["id"] = np.ascontiguousarray(_fixed(batch.column("access_id"))).view("V16").ravel()
    fields: list[Any] = []
    for name in canonical.Entry._fields[3:]:
        column = batch.column(name)
        if name == "timestamp":
            fields.append(_binary(when))
        elif name == "access_id":
            fields.append(_binary(access))
        elif name == "ip_address":
            fields.append(_each_value(column, _address))
        elif isinstance(column, pa.DictionaryArray):
            fields.append(_each_value(column, _text))
        else:
            fields.append(_texts(column))
    whole = pc.binary_join_element_wise(_binary(head), *fields, pa.scalar(b"", pa.binary()))
    buffers = whole.buffers()
    offsets = np.frombuffer(buffers[1], np.int32)[whole.offset : whole.offset + len(whole) + 1]
    return offsets.tolist(), buffers[2]


def _each_value(column: Any, field: Callable[[str | None], bytes]) -> Any:
    """The field's bytes, made once for each value."""
    values = pa.array([*map(field, column.dictionary.to_pylist()), field(None)], pa.binary())
    indices = column.indices
    if column.null_count:
        indices = indices.fill_null(len(values) - 1)
    return values.take(indices)


def _texts(column: Any) -> Any:
    """The field's bytes where nearly every value is another."""
    heads = np.zeros(len(column), [("type", ">i4"), ("length", ">i4")])
    heads["type"] = 25
    heads["length"] = pc.binary_length(column).fill_null(-1).to_numpy()
    values = column.fill_null("").cast(pa.binary())
    return pc.binary_join_element_wise(_binary(heads), values, pa.scalar(b"", pa.binary()))


@functools.lru_cache(1 << 18)
def _text(value: str | None) -> bytes:
    if value is None:
        return struct.pack(">ii", 25, -1)
    data = value.encode()
    return struct.pack(">ii", 25, len(data)) + data


@functools.lru_cache(1 << 18)
def _address(value: str | None) -> bytes:
    if value is None:
        return struct.pack(">ii", 869, -1)
    # not ipaddress, which takes 30 times as long
    text, _, prefix = value.rpartition("/")
    family = 3 if ":" in text else 2
    packed = socket.inet_pton(socket.AF_INET6 if family == 3 else socket.AF_INET, text)
    return struct.pack(">iiBBBB", 869, 4 + len(packed), family, int(prefix), 0, len(packed)) + packed


def _binary(rows: Any) -> Any:
    """Records of one size as an array of bytes."""
    offsets = np.arange(0, (len(rows) + 1) * rows.itemsize, rows.itemsize, dtype=np.int32)
    buffers = [None, pa.py_buffer(offsets.tobytes()), pa.py_buffer(rows.tobytes())]
    return pa.BinaryArray.from_buffers(pa.binary(), len(rows), buffers)


def _fixed(column: Any) -> Any:
    width = column.type.byte_width
    data = np.frombuffer(column.buffers()[1], np.uint8)
    return data[column.offset * width : (column.offset + len(column)) * width].reshape(-1, width)
