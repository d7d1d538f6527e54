"""What the journal's tests share: entries as told by the log, sealing to the end, sessions of clients."""

from typing import Any, NamedTuple
from uuid import UUID, uuid4

import psycopg

from tests.support import Db, wait_until

READ = "select meshaudit.read_secret(%s)"
READ_MANY = "select * from meshaudit.read_secrets(%s)"
Conn = psycopg.Connection[Any]


class Told(NamedTuple):
    """An entry, less what differs from run to run."""

    operation: str
    outcome: str
    secret_id: str


def one(conn: Conn, query: str, *params: Any) -> Any:
    row = conn.execute(query.encode(), params or None).fetchone()
    assert row is not None
    return row[0]


def seal(conn: Conn) -> int:
    """Seal until two runs find nothing: the first commit may have flushed what the second one sees."""
    total, quiet = 0, 0
    while quiet < 2:
        made = int(one(conn, "select meshaudit.seal()"))
        total, quiet = total + made, 0 if made else quiet + 1
    return total


class Journal:
    """An armed journal in a database, with a secret in its vault and roles for clients."""

    def __init__(self, db: Db) -> None:
        self.db = db
        self.operator = db.connect()
        self.operator.execute("select meshaudit.arm_journal()")
        self.role = db.role("client", "meshaudit_client")
        self.secret: UUID = self.write("first")
        self.start = self.last_id()

    def write(self, key: str) -> UUID:
        with psycopg.connect(self.db.dsn(self.role), autocommit=True) as conn:
            return UUID(str(one(conn, "select meshaudit.write_secret(%s, %s)", key, key.encode())))

    def many(self, count: int) -> list[UUID]:
        with psycopg.connect(self.db.dsn(self.role), autocommit=True) as conn:
            rows = conn.execute(
                "select meshaudit.write_secret('many ' || i, 'value') from generate_series(1, %s) i", [count]
            ).fetchall()
        self.start = self.last_id()
        return [row[0] for row in rows]

    def client(self, **kw: Any) -> Conn:
        return self.db.connect(self.role, **kw)

    def last_id(self) -> int:
        return int(one(self.db.su, "select coalesce(max(id), 0) from meshaudit.audit_logs"))

    def seal(self) -> int:
        return seal(self.operator)

    def told(self) -> list[Told]:
        """The entries since this was made, in the order of their accesses; the chain must hold."""
        assert self.db.su.execute("select * from meshaudit.verify()").fetchall() == []
        rows = self.db.su.execute(
            "select operation, outcome, secret_id from meshaudit.audit_logs where id > %s"
            ' order by "timestamp"',
            [self.start],
        )
        return [Told(*row) for row in rows]

    def outcomes(self) -> list[str]:
        return [entry.outcome for entry in self.told()]

    def entry(self) -> dict[str, Any]:
        """The newest entry, whole."""
        with self.db.su.cursor(row_factory=psycopg.rows.dict_row) as cursor:
            row = cursor.execute("select * from meshaudit.audit_logs order by id desc limit 1").fetchone()
        assert row is not None
        return row

    def refused(self) -> tuple[int, int, int]:
        """How many records were forged, garbage, replayed."""
        query = "select forged, garbage, replayed from meshaudit_private.journal_progress"
        forged, garbage, replayed = self.db.su.execute(query).fetchall()[0]
        return forged, garbage, replayed

    def status(self) -> dict[str, tuple[bool, str]]:
        rows = self.operator.execute('select "check", ok, detail from meshaudit.status()').fetchall()
        return {name: (ok, detail) for name, ok, detail in rows}

    def terminate(self, conn: Conn) -> None:
        """Kill that session's backend, and wait until its locks are gone too."""
        pid = conn.info.backend_pid
        self.db.pg.run("select pg_terminate_backend(%s)", pid)
        gone = "select from pg_stat_activity where pid = %s"
        wait_until(lambda: self.db.pg.run(gone, pid).rowcount == 0, what="the backend's end")


def stranger() -> UUID:
    """The id of no secret."""
    return uuid4()
