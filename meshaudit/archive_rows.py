"""Every hash and link of a Parquet file of entries, recomputed.

Written from docs/archive-format.md and docs/canonical-bytes.md.

Whole columns at a time: the canonical bytes of some ten thousand entries are one column, of which DataFusion
makes the sha256; called from Python for each entry, that would take three times as long. It shares no code
with what writes archives.
"""

import math
import socket
import struct
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datafusion import SessionConfig, SessionContext, col
from datafusion import functions as df

from meshaudit import canonical
from meshaudit.archive_content import Broken, Content, Stretch
from meshaudit.arrow_memory import frugal

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
_KIND = {name: 869 if name == "ip_address" else 25 for name in _FEW}
_COMMON = 4096  # more values than that are not combined with those of other columns
_BATCH = 16_384  # of which no buffer is above 8 MB: jemalloc gives larger ones back at once
_PG_EPOCH = int(canonical.EPOCH.timestamp()) * 1_000_000
_LANES = 1 << 20  # more than a database can have; a bound for the tables below


# The bytes of each value that a column has, and which of them each entry has.
Values = Mapping[str, tuple[Any, Any]]


def read(
    source: Path | BinaryIO,
    start: datetime | None = None,
    end: datetime | None = None,
    wanted: Mapping[int, int] | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Content:
    """Recompute a file. Raises Broken. `wanted`: a seq of each lane whose hash the caller wants to know."""
    frugal()
    try:
        with pq.ParquetFile(source, read_dictionary=_FEW, pre_buffer=False) as file:
            if {name: file.schema_arrow.field(name).type for name in file.schema_arrow.names} != {
                **TYPES,
                **{name: pa.dictionary(pa.int32(), _TEXT) for name in _FEW},
            }:
                raise Broken("its columns are not those of an archive")
            rows = _Rows(wanted or {})
            bounds = [None if at is None else canonical.microseconds(at) + _PG_EPOCH for at in (start, end)]
            # One by one: what is read ahead is a row group, not the file.
            for group in range(file.num_row_groups):
                for batch in file.iter_batches(_BATCH, row_groups=[group], use_threads=False):
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
        self._known: dict[str, tuple[Any, Any]] = {}  # a column's last dictionary, and its values' bytes
        self._hasher = SessionContext(SessionConfig().with_target_partitions(1).with_batch_size(_BATCH))

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
        digests = self._digests(_hashed_bytes(batch, self._values(batch), prev_hashes, lanes, seqs, times))
        if (digests != hashes).any():
            at = int(np.flatnonzero((digests != hashes).any(axis=1))[0])
            where = f"lane {lanes[at]}, seq {seqs[at]}, id {batch.column('id')[at].as_py()}"
            raise Broken(f"the entry at {where} is not what was hashed")
        found = np.flatnonzero(self._wanted[lanes] == seqs)
        for at in found.tolist():
            self.hashes[int(lanes[at]), int(seqs[at])] = hashes[at].tobytes()
        self.entries += len(lanes)

    def _digests(self, entries: pa.Array) -> Any:
        """The sha256 of each, a row of bytes."""
        batch = pa.RecordBatch.from_arrays([entries], names=["entry"])
        frame = self._hasher.create_dataframe([[batch]], name="entries")
        (digests,) = pa.Table.from_batches(frame.select(df.sha256(col("entry"))).collect()).columns
        self._hasher.deregister_table("entries")
        return np.concatenate([_fixed(chunk.cast(pa.binary(32))) for chunk in digests.chunks])

    def _values(self, batch: pa.RecordBatch) -> "Values":
        """The bytes of each value of the columns that have few, made once for a dictionary."""
        found = {}
        for name in _FEW:
            column = batch.column(name)
            known = self._known.get(name)
            if known is None or not known[0].equals(column.dictionary):
                known = self._known[name] = column.dictionary, _values(name, column.dictionary)
            indices = column.indices
            if column.null_count:
                indices = indices.fill_null(len(column.dictionary))
            found[name] = known[1], indices
        return found

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
        count = len(lanes)
        # numpy sorts numbers this small by radix
        small = lanes.astype(np.uint16) if lanes.max() < 1 << 16 else lanes
        order = np.argsort(small, kind="stable")
        sorted_lanes, sorted_seqs = lanes[order], seqs[order]
        first = np.append(True, sorted_lanes[1:] != sorted_lanes[:-1])
        heads = sorted_lanes[first]
        before_seq = np.append(0, sorted_seqs[:-1])
        before_seq[first] = self._seqs[heads]
        # Where the entry before is: in this batch, or at its end, among the lanes' last ones.
        before = np.empty(count, np.int64)
        before[order[1:]] = order[:-1]
        before[order[first]] = count + np.arange(len(heads))
        known = np.concatenate((hashes, self._hashes[heads])).view("V32").ravel()
        linked = known[before]

        told = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
        gaps = (before_seq == 0) | (before_seq + 1 != sorted_seqs)
        if (len(told) == 0 and gaps.any()) or not np.isin(order[gaps], told).all():
            raise Broken("an entry does not say which one it follows")
        place = np.empty(count, np.int64)
        place[order] = np.arange(count)
        said = _fixed(column)
        for at in told[np.argsort(place[told])].tolist():
            lane = int(lanes[at])
            if lane in self._began:
                self._end(lane, int(before_seq[place[at]]), known[before[at]].tobytes())
            self._began[lane] = int(seqs[at]), said[at].tobytes()
        linked[told] = said[told].view("V32").ravel()

        last = order[np.append(first[1:], True)]
        self._seqs[lanes[last]], self._hashes[lanes[last]] = seqs[last], hashes[last]
        return linked

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


# The fixed parts: prev_hash and the first four fields, the time, the access_id.
_INT = [("type", ">i4"), ("length", ">i4"), ("value", ">i8")]
_HEAD = np.dtype([("prev", "V32"), ("version", ">i4", 3), ("lane", ">i4", 3), ("seq", _INT), ("id", _INT)])
_ACCESS = np.dtype([("type", ">i4"), ("length", ">i4"), ("value", "V16")])


def _hashed_bytes(
    batch: pa.RecordBatch, values: Values, prev_hashes: Any, lanes: Any, seqs: Any, times: Any
) -> pa.Array:
    """prev_hash and canonical bytes of every entry."""
    head = np.empty(len(lanes), _HEAD)
    head["prev"] = prev_hashes
    head["version"] = (23, 4, canonical.VERSION)
    head["lane"][:, 0], head["lane"][:, 1], head["lane"][:, 2] = 23, 4, lanes
    _fill(head["seq"], 20, 8, seqs)
    _fill(head["id"], 20, 8, batch.column("id").to_numpy())
    when = np.empty(len(lanes), _INT)
    _fill(when, 1184, 8, times - _PG_EPOCH)
    access = np.empty(len(lanes), _ACCESS)
    _fill(access, 2950, 16, np.ascontiguousarray(_fixed(batch.column("access_id"))).view("V16").ravel())
    fields: list[Any] = [_binary(head)]
    neighbours: list[tuple[Any, Any]] = []  # columns of few values
    for name in (*canonical.Entry._fields[3:], ""):
        if name in values and len(values[name][0]) <= _COMMON:
            neighbours.append(values[name])
            continue
        fields += _joined(neighbours)
        neighbours = []
        if name in values:
            fields += _joined([values[name]])
        elif name == "timestamp":
            fields.append(_binary(when))
        elif name == "access_id":
            fields.append(_binary(access))
        elif name:
            fields += _texts(batch.column(name))
    return pc.binary_join_element_wise(*fields, pa.scalar(b"", pa.binary()))


def _fill(record: Any, kind: int, length: int, values: Any) -> None:
    record["type"], record["length"], record["value"] = kind, length, values


def _values(name: str, texts: Any) -> Any:
    """The field's bytes for each value, and, last, for none."""
    if name == "ip_address":
        values = _addresses(texts)
    else:
        values = pc.binary_join_element_wise(*_texts(texts), pa.scalar(b"", pa.binary()))
    return pa.concat_arrays([values, pa.array([struct.pack(">ii", _KIND[name], -1)], pa.binary())])


def _joined(columns: list[tuple[Any, Any]]) -> list[Any]:
    """Neighbouring fields as one: the bytes of each combination are made once."""
    if len(columns) < 2:
        return [values.take(indices) for values, indices in columns]
    if math.prod(len(values) for values, _ in columns) >= 1 << 62:
        return _joined(columns[: len(columns) // 2]) + _joined(columns[len(columns) // 2 :])
    codes = np.zeros(len(columns[0][1]), np.int64)
    for values, indices in columns:
        codes *= len(values)
        codes += indices.to_numpy()
    found = pc.dictionary_encode(pa.array(codes))
    codes = found.dictionary.to_numpy()
    parts = []
    for values, _ in reversed(columns):
        codes, rest = np.divmod(codes, len(values))
        parts.append(values.take(pa.array(rest)))
    return [pc.binary_join_element_wise(*reversed(parts), pa.scalar(b"", pa.binary())).take(found.indices)]


def _texts(column: Any) -> list[Any]:
    """The field's bytes where nearly every value is another."""
    heads = np.empty(len(column), [("type", ">i4"), ("length", ">i4")])
    heads["type"] = 25
    heads["length"] = pc.binary_length(column).fill_null(-1).to_numpy()
    return [_binary(heads), column.fill_null("").cast(pa.binary())]


def _addresses(texts: Any) -> Any:
    """Addresses as the canonical bytes have them. The usual ones at once, the others one by one."""
    usual = pc.invert(pc.match_substring(texts, ":"))
    others = [_address(text) for text in texts.filter(pc.invert(usual)).to_pylist()]
    plain = texts.filter(usual)
    parts = pc.split_pattern(pc.replace_substring(plain, "/", "."), ".").flatten().cast(pa.uint8()).to_numpy()
    parts = parts.reshape(len(plain), 5)
    digits = 1 + (parts > 9) + (parts > 99)
    if (digits.sum(axis=1) + 4 != pc.binary_length(plain).to_numpy()).any():
        raise Broken("an entry's ip_address is not spelt as one")
    rows = np.empty(len(parts), [("type", ">i4"), ("length", ">i4"), ("head", "u1", 4), ("address", "u1", 4)])
    rows["type"], rows["length"], rows["head"] = 869, 8, (2, 0, 0, 4)
    rows["head"][:, 1], rows["address"] = parts[:, 4], parts[:, :4]
    if not others:
        return _binary(rows)
    where = np.argsort(~usual.to_numpy(zero_copy_only=False), kind="stable")
    back = np.empty(len(where), np.int64)
    back[where] = np.arange(len(where))
    return pa.concat_arrays([_binary(rows), pa.array(others, pa.binary())]).take(pa.array(back))


def _address(text: str) -> bytes:
    address, _, prefix = text.rpartition("/")
    family = 3 if ":" in address else 2
    packed = socket.inet_pton(socket.AF_INET6 if family == 3 else socket.AF_INET, address)
    return struct.pack(">iiBBBB", 869, 4 + len(packed), family, int(prefix), 0, len(packed)) + packed


def _binary(rows: Any) -> Any:
    """Records of one size as an array of bytes."""
    offsets = np.arange(0, (len(rows) + 1) * rows.itemsize, rows.itemsize, dtype=np.int32)
    return pa.BinaryArray.from_buffers(
        pa.binary(), len(rows), [None, pa.py_buffer(offsets), pa.py_buffer(rows.view(np.uint8))]
    )


def _fixed(column: Any) -> Any:
    width = column.type.byte_width
    data = np.frombuffer(column.buffers()[1], np.uint8)
    return data[column.offset * width : (column.offset + len(column)) * width].reshape(-1, width)
