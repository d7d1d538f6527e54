"""A superuser puts a retired partition's entries back: for tests of what lies beside retired entries."""

from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pyarrow.parquet as pq

from tests.archive.history import guards


def restore(su: psycopg.Connection[Any], place: Path, name: str) -> None:
    table = f"meshaudit_private.{name}"
    guards(su)
    hashes: dict[int, bytes] = {}
    with su.transaction():
        for row in pq.read_table(place / f"{name}.parquet").to_pylist():
            row["prev_hash"] = row["prev_hash"] or hashes[row["lane"]]
            hashes[row["lane"]] = row["hash"]
            row["access_id"] = UUID(bytes=row["access_id"])
            columns = ", ".join(f'"{column}"' for column in row)
            su.execute(
                f"insert into {table} ({columns}) values ({', '.join(['%s'] * len(row))})".encode(),
                [*row.values()],
            )
        su.execute("update meshaudit_private.retirements set restored = true where partition = %s", [name])
        su.execute("delete from meshaudit_private.retired_runs where partition = %s", [name])
