"""The current state of the schema, installed from sql/ without migrations.

Tests, `meshaudit demo` and the single-file install start here; databases that live on are migrated.
"""

from typing import Any

import psycopg

from meshaudit.resources import sql_dir


def current_state() -> list[tuple[str, str]]:
    """(file name, text) of every file in sql/, in the order in which they must run."""
    return [(path.name, path.read_text("utf-8")) for path in sorted(sql_dir().glob("*.sql"))]


def install(conn: psycopg.Connection[Any]) -> None:
    """Run all of sql/ in one transaction: either everything is there or nothing is."""
    with conn.transaction():
        for name, text in current_state():
            try:
                # Bytes without parameters go by the simple protocol, which takes many statements.
                conn.execute(text.encode("utf-8"), prepare=False)
            except psycopg.Error as exc:
                exc.add_note(f"while installing sql/{name}")
                raise
