"""Telling the database how far a verification is and what it found. Not the verifier's: that writes nothing.

Recording never gets in the way: where it cannot be done (READ ONLY, a standby, no privilege), the
verification is none the worse. Only who asks for it gets an error.
"""

import contextlib
import time
from typing import Any

import psycopg

from meshaudit import db
from meshaudit.errors import MeshauditError

_EVERY = 5.0  # seconds between two words of progress
_TELL = """
select meshaudit.record_verification(
  problems => %(problems)s::bigint, entries => %(entries)s::bigint, total => %(total)s::bigint,
  first_problem => %(first)s::text, verification => %(verification)s::bigint)
"""


class Recorder:
    """One verification's record."""

    def __init__(self, dsn: str, *, required: bool) -> None:
        self._dsn, self._required = dsn, required
        self._conn: psycopg.Connection[Any] | None = None
        self._open = contextlib.ExitStack()
        self._number: int | None = None
        self._told = time.monotonic()
        self._failed = False

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def progress(self, done: int, total: int) -> None:
        """Now and then; over a connection of its own, since the verifier's is in its snapshot."""
        if self._failed or time.monotonic() - self._told < _EVERY:
            return
        try:
            if self._conn is None:
                self._conn = self._open.enter_context(db.connect(self._dsn))
            self._number = _tell(self._conn, self._number, None, done, total, None)
            self._failed = self._number is None
        except (MeshauditError, psycopg.Error):
            self._failed = True
        self._told = time.monotonic()

    def end(self, conn: psycopg.Connection[Any], entries: int, problems: int, first: str | None) -> bool:
        """What was found. False: it could not be recorded."""
        try:
            with db.errors():
                recorded = _tell(conn, self._number, problems, entries, entries, first)
        except MeshauditError:
            if self._required:
                raise
            return False
        if recorded is None and self._required:
            raise MeshauditError(
                "the result was not recorded: nothing can be written here",
                "connect to the primary, without default_transaction_read_only, or leave --record out",
            )
        return recorded is not None


def _tell(
    conn: psycopg.Connection[Any],
    number: int | None,
    problems: int | None,
    entries: int,
    total: int,
    first: str | None,
) -> int | None:
    named = {
        "problems": problems,
        "entries": entries,
        "total": total,
        "first": first,
        "verification": number,
    }
    row = conn.execute(_TELL, named).fetchone()
    return row[0] if row else None
