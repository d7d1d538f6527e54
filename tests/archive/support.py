"""What tests of archives and of retention share."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

from meshaudit.archive import expire, job
from meshaudit.faults import order
from meshaudit.verify import Problem, verify
from tests.support import Db

SOON = "2999-01-01"


ROWS, MONTHS = 600, 3


def accesses(text: str) -> list[Any]:
    """Of what a search printed, what is not about the log itself."""
    return [row for row in json.loads(text) if row["secret_table"] == "meshaudit.secrets"]


def found(db: Db) -> list[Problem]:
    """What both verifiers find; but for retirements without an entry they agree."""
    inside = sorted((Problem(*row) for row in db.su.execute("select * from meshaudit.verify()")), key=order)
    outside = verify(db.su).problems
    assert inside == outside
    return outside


def everything(db: Db) -> list[Any]:
    return db.su.execute('select * from meshaudit.audit_logs order by lane, seq, "timestamp"').fetchall()


QUESTIONS: tuple[tuple[str, ...], ...] = (
    (),
    ("--operation", "update"),
    ("--access-type", "write", "--outcome", "granted"),
    ("--scope", "project7"),
    ("--user-identity", "service_0"),
    ("--ip", "10.0.0.0/24"),
    ("--ip", "2001:db8::/32"),
    ("--secret-id", "none"),
)


def policy(db: Db, scope: str, database: str, archive: str | None = None, *, settled: bool = True) -> None:
    """Set a policy; settled: as if that, and what it ended, had been a week and a day ago."""
    db.su.execute("select meshaudit.set_retention(%s, %s, %s)", [scope, database, archive])
    if settled:
        a_week_later(db)


def a_week_later(db: Db) -> None:
    db.su.execute(
        "update meshaudit_private.retention set set_at = set_at - interval '8 days',"
        " ended_at = ended_at - interval '8 days'"
    )


def plan(db: Db) -> dict[str, tuple[str, str | None]]:
    rows = db.su.execute("select partition, action, detail from meshaudit.retention_plan()").fetchall()
    return {name: (action, detail) for name, action, detail in rows}


def actions(db: Db) -> list[str]:
    """Of the four months, oldest first."""
    return [action for action, _ in plan(db).values()][:4]


def archive(db: Db, place: Path | str, *names: str) -> None:
    """Archive these partitions, or all that are ready."""
    found = [
        p for p in job.candidates(db.su, datetime(2999, 1, 1, tzinfo=UTC)) if p.state in ("ready", "restored")
    ]
    wanted = [p for p in found if not names or p.name in names]
    list(job.archive(db.su, db.dsn(), place, wanted, lambda *_: None))


def refused(conn: psycopg.Connection[Any], state: str, query: str, *params: Any) -> str:
    with pytest.raises(psycopg.Error) as caught:
        conn.execute(query.encode(), params)
    assert caught.value.sqlstate == state, caught.value
    return str(caught.value)


def entries(db: Db, table: str) -> list[Any]:
    return db.su.execute(
        "select operation, secret_id, scope from meshaudit.audit_logs where secret_table = %s order by id",
        [table],
    ).fetchall()


def expired_two(past: Db, place: Path | str) -> list[str]:
    """All four archived; the first two have expired."""
    policy(past, "*", "1 day", "1 day")
    archive(past, place)
    names = [name for name, (action, _) in plan(past).items() if action == "expire"]
    for name in names[:2]:
        expire.expire(past.su, place, name)
    return names
