"""One archiver a ledger. The database holds the lock, and gives it up when the archiver is gone."""

import contextlib
from collections.abc import Callable, Iterator

import psycopg

from meshaudit import db
from meshaudit.errors import MeshauditError

# It is idle for as long as archiving takes; no snapshot is kept, so nothing is held up by it.
_IDLE = """
select pg_catalog.set_config(name, '0', true) from pg_catalog.pg_settings
where name in ('idle_in_transaction_session_timeout', 'transaction_timeout', 'statement_timeout')
"""


@contextlib.contextmanager
def exclusive(dsn: str) -> Iterator[Callable[[], None]]:
    """Hold the lock; what is given raises if it was lost."""
    with db.connect(dsn) as conn, conn.transaction():
        conn.execute(_IDLE)
        conn.execute("select meshaudit.begin_archiving()")

        def still_ours() -> None:
            try:
                conn.execute("select")
            except psycopg.Error as exc:
                raise MeshauditError(
                    "the connection that holds the archiver's lock was lost", "run it again"
                ) from exc

        yield still_ours
