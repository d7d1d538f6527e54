"""Entries from the database into a Parquet file, a batch at a time: memory does not grow with their number.

prev_hash is written only where it is not what the file says already: the hash of the row before it in the
lane, with the seq before it. Elsewhere it is NULL, and costs nothing.
"""

import contextlib
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, BinaryIO

import adbc_driver_postgresql.dbapi as adbc
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from psycopg.conninfo import make_conninfo

from meshaudit.archive.layout import COLUMNS, ROW_GROUP, SCHEMA, WRITER, query
from meshaudit.arrow_memory import frugal
from meshaudit.errors import MeshauditError

_BATCHES = {"adbc.postgresql.batch_size_hint_bytes": 4 << 20}

Progress = Callable[[int], None]
_ALTERED = "run meshaudit verify: it names what was altered"


def write(dsn: str, start: datetime, end: datetime, sink: BinaryIO, progress: Progress) -> int:
    """Write the entries of start <= timestamp < end; returns their number."""
    frugal()
    links = _Links()
    count = 0
    with _batches(dsn, query(start, end)) as batches, pq.ParquetWriter(sink, SCHEMA, **WRITER) as file:
        waiting: list[pa.RecordBatch] = []
        rows = 0
        for batch in batches:
            waiting.append(links.shorten(batch))
            rows += batch.num_rows
            if rows >= ROW_GROUP:
                table = pa.Table.from_batches(waiting, SCHEMA)
                whole = rows - rows % ROW_GROUP
                file.write_table(table.slice(0, whole), row_group_size=ROW_GROUP)
                waiting, rows, count = table.slice(whole).to_batches(), rows - whole, count + whole
                progress(count)
        if waiting:
            file.write_table(pa.Table.from_batches(waiting, SCHEMA), row_group_size=ROW_GROUP)
    count += rows
    progress(count)
    return count


@contextlib.contextmanager
def _batches(dsn: str, text: str) -> Iterator[Iterator[pa.RecordBatch]]:
    given = make_conninfo(dsn, client_encoding="UTF8", application_name="meshaudit archive")
    try:
        with adbc.connect(given) as conn, conn.cursor(adbc_stmt_kwargs=_BATCHES) as cursor:
            cursor.execute("set jit = off")
            # A sort would hold the whole partition; the index has the order already.
            cursor.execute("set enable_sort = off")
            cursor.execute("set max_parallel_workers_per_gather = 0")
            cursor.execute("set statement_timeout = 0")
            cursor.execute(text)
            yield iter(cursor.fetch_record_batch())
    except adbc.Error as exc:
        raise MeshauditError(f"reading the log failed: {str(exc).splitlines()[0]}") from exc


class _Links:
    """Knows, for each lane, the last seq and hash that are in the file."""

    def __init__(self) -> None:
        self._seqs: Any = np.zeros(0, np.int64)
        self._hashes: Any = np.zeros((0, 32), np.uint8)

    def shorten(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The batch in the archive's types, without the links that go without saying."""
        try:
            columns = {name: _cast(batch.column(name), SCHEMA.field(name)) for name in COLUMNS}
        except pa.ArrowInvalid as exc:
            raise MeshauditError("the log holds an entry that cannot be one", _ALTERED) from exc
        lanes, seqs = columns["lane"].to_numpy(), columns["seq"].to_numpy()
        if len(lanes) == 0:
            return pa.RecordBatch.from_arrays(list(columns.values()), schema=SCHEMA)
        if lanes.min() < 0:
            raise MeshauditError("the log holds an entry in no lane", _ALTERED)
        hashes, prev_hashes = _bytes(columns["hash"]), _bytes(columns["prev_hash"])
        self._grow(int(lanes.max()) + 1)

        count = len(lanes)
        # numpy sorts numbers this small by radix
        order = np.argsort(lanes.astype(np.uint16) if lanes.max() < 1 << 16 else lanes, kind="stable")
        sorted_lanes = lanes[order]
        first = np.append(True, sorted_lanes[1:] != sorted_lanes[:-1])
        heads = sorted_lanes[first]
        # Where the entry before is: in this batch, or behind it, where the lanes' last ones are put.
        before = np.empty(count, np.int64)
        before[order[1:]] = order[:-1]
        before[order[first]] = count + np.arange(len(heads))
        before_seq = np.append(seqs, self._seqs[heads])[before]
        known = np.concatenate((hashes, self._hashes[heads])).view(np.int64)[before]
        same = (known == np.ascontiguousarray(prev_hashes).view(np.int64)).all(axis=1)
        told = ~((before_seq > 0) & (before_seq + 1 == seqs) & same)
        last = order[np.append(first[1:], True)]
        self._seqs[lanes[last]], self._hashes[lanes[last]] = seqs[last], hashes[last]

        said = np.zeros((count, 32), np.uint8)
        said[told] = prev_hashes[told]
        bitmap = pa.py_buffer(np.packbits(told, bitorder="little"))
        columns["prev_hash"] = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(32), count, [bitmap, pa.py_buffer(said.ravel())]
        )
        return pa.RecordBatch.from_arrays(list(columns.values()), schema=SCHEMA)

    def _grow(self, lanes: int) -> None:
        missing = lanes - len(self._seqs)
        if missing > 0:
            self._seqs = np.append(self._seqs, np.zeros(missing, np.int64))
            self._hashes = np.append(self._hashes, np.zeros((missing, 32), np.uint8), axis=0)


def _cast(column: Any, field: pa.Field) -> Any:
    if column.null_count and (not field.nullable or field.name == "prev_hash"):
        raise pa.ArrowInvalid(f"{field.name} is null")
    return column.cast(field.type)


def _bytes(column: Any) -> Any:
    width = column.type.byte_width
    data = np.frombuffer(column.buffers()[1], np.uint8)
    return data[column.offset * width : (column.offset + len(column)) * width].reshape(-1, width)
