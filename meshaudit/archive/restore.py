"""An archived partition's entries back into the database, which verifies them itself before it takes them."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import psycopg
import pyarrow.parquet as pq

from meshaudit import archive_verify
from meshaudit.archive.job import Progress
from meshaudit.archive_content import Broken
from meshaudit.archive_place import Place
from meshaudit.errors import BadArgument, MeshauditError

_BATCH = 5_000
_NAMES = "meshaudit verify --archive names what was altered"


def restore(conn: psycopg.Connection[Any], where: Path | str, partition: str, progress: Progress) -> int:
    """Restore one partition in one transaction; returns the number of its entries."""
    place, name = Place(where), f"{partition}.manifest.json"
    if name not in place.names(".manifest.json"):
        raise BadArgument(f"{place} has no archive of {partition}", "its files are named after partitions")
    try:
        manifest = archive_verify.parse(place, name)
    except Broken as broken:
        raise MeshauditError(f"{name}: {broken}", _NAMES) from broken
    problem = archive_verify.content(place, manifest)
    if problem is not None:
        raise MeshauditError(f"{manifest.data}: {problem}", _NAMES)
    done = 0
    with place.open(manifest.data) as file, conn.transaction():
        conn.execute("select meshaudit.restore_entries(null)")
        for rows in _rows(file):
            conn.execute("select meshaudit.restore_entries(%s)", [json.dumps(rows)])
            done += len(rows)
            progress(partition, "restoring", done)
        conn.execute("select meshaudit.restore_partition(%s)", [partition])
    return done


def _rows(source: Path | BinaryIO) -> Iterator[list[dict[str, Any]]]:
    hashes: dict[int, bytes] = {}
    with pq.ParquetFile(source, pre_buffer=True) as file:
        # one by one: what is read ahead is a row group, not the file
        groups = (file.iter_batches(_BATCH, row_groups=[group]) for group in range(file.num_row_groups))
        for batch in itertools.chain.from_iterable(groups):
            rows = batch.to_pylist()
            for row in rows:
                row["prev_hash"] = "\\x" + (row["prev_hash"] or hashes[row["lane"]]).hex()
                hashes[row["lane"]] = row["hash"]
                row["hash"] = "\\x" + row["hash"].hex()
                row["access_id"] = row["access_id"].hex()
                row["timestamp"] = row["timestamp"].isoformat()
            yield rows
