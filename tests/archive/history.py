"""A ledger with a past: months of entries with correct chains, as a superuser can load them.

The product has no way to say when an access was; the guards are off while this runs.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg

_LOAD = Path(__file__).with_name("history.sql")


def load(su: psycopg.Connection[Any], *, months: int = 3, rows: int = 600, lanes: int = 5) -> None:
    """Fill the months before this one of a ledger that has no entry yet."""
    with su.transaction():
        su.execute(_LOAD.read_bytes())
        su.execute("alter table meshaudit_private.ledger disable trigger user")
        su.execute("select pg_temp.load(%s, %s, %s, 0.5)", [months, rows, lanes])
        for trigger in ("append_only", "chain_entry"):
            guards(su, f"enable always trigger {trigger}")


def partitions(su: psycopg.Connection[Any], *states: str) -> list[str]:
    """The past months' partitions in one of these states, oldest first."""
    rows = su.execute("select partition, from_time, state from meshaudit.partitions()").fetchall()
    return [name for name, start, state in rows if start < datetime.now(UTC) and state in states]


def guards(su: psycopg.Connection[Any], change: str = "disable trigger user") -> None:
    """Switch the guards of the ledger and all its partitions."""
    leaves = su.execute(
        "select inhrelid::regclass::text from pg_inherits"
        " where inhparent = 'meshaudit_private.ledger'::regclass"
    ).fetchall()
    for (table,) in [("meshaudit_private.ledger",), *leaves]:
        su.execute(f"alter table {table} {change}".encode())
