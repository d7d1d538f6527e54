"""What the program asks of the schema about retention and holds: one function for each SQL function."""

from datetime import datetime
from typing import Any, NamedTuple

import psycopg
from psycopg.rows import class_row, scalar_row

from meshaudit import db
from meshaudit.errors import BadArgument
from meshaudit.filters import BIGINT

_READS = "connect as an auditor of scope '*', or as a member of meshaudit_operator"
_OWNER = "connect as the role that installed meshaudit, or as a superuser"
_AUDITOR = "connect as an auditor of that scope: select meshaudit.grant_auditor('your role', 'scope')"
_OPERATOR = "connect as a member of meshaudit_operator"


class Step(NamedTuple):
    """A row of meshaudit.retention_plan()."""

    partition: str
    from_time: datetime
    to_time: datetime
    action: str
    due: datetime | None
    detail: str | None


class Policy(NamedTuple):
    """A row of meshaudit.retention_policies(). Periods as Postgres says them."""

    scope: str
    keep_in_database: str
    keep_in_archive: str | None
    set_by: str
    set_at: datetime
    ended_at: datetime | None


class Hold(NamedTuple):
    """A row of meshaudit.holds()."""

    hold: int
    secret_id: str | None
    user_identity: str | None
    scope: str | None
    from_time: datetime | None
    to_time: datetime | None
    reason: str
    placed_by: str
    placed_at: datetime


def plan(conn: psycopg.Connection[Any]) -> list[Step]:
    """What the policies ask for now."""
    with db.errors(_READS), conn.cursor(row_factory=class_row(Step)) as cursor:
        return cursor.execute("select * from meshaudit.retention_plan()").fetchall()


def policies(conn: psycopg.Connection[Any]) -> list[Policy]:
    """The policies that count."""
    with db.errors(_READS), conn.cursor(row_factory=class_row(Policy)) as cursor:
        return cursor.execute(
            "select scope, keep_in_database::text as keep_in_database,"
            " keep_in_archive::text as keep_in_archive, set_by, set_at, ended_at"
            " from meshaudit.retention_policies()"
        ).fetchall()


def set_policy(conn: psycopg.Connection[Any], scope: str, database: str, archive: str | None) -> None:
    """Say how long a scope's entries are kept."""
    with db.errors(_OWNER):
        try:
            conn.execute(
                "select meshaudit.set_retention(%s, %s::interval, %s::interval)", [scope, database, archive]
            )
        except psycopg.DataError as exc:
            what = exc.diag.message_primary or str(exc)
            raise BadArgument(
                f"a period cannot be used: {what}", "write it like '90 days' or '7 years'"
            ) from exc


def remove_policy(conn: psycopg.Connection[Any], scope: str) -> bool:
    """Take a scope's policy away; False if there was none."""
    with db.errors(_OWNER):
        return bool(_scalar(conn, "select meshaudit.remove_retention(%s)", scope))


def expire(conn: psycopg.Connection[Any], partition: str) -> str:
    """Record that an archive has expired; the document to keep beside its manifest."""
    with db.errors(_OPERATOR):
        return str(_scalar(conn, "select meshaudit.expire_archive(%s)", partition))


def expiries(conn: psycopg.Connection[Any]) -> dict[str, str]:
    """The documents of all expiries, by partition."""
    with db.errors(_READS):
        return dict(conn.execute("select partition, document from meshaudit.expiries()").fetchall())


def manifests(conn: psycopg.Connection[Any]) -> dict[str, str]:
    """The manifests of all retirements, by partition."""
    with db.errors(_READS):
        return dict(conn.execute("select partition, manifest from meshaudit.retirements()").fetchall())


def holds(conn: psycopg.Connection[Any]) -> list[Hold]:
    """The legal holds that this login may see."""
    with db.errors(_AUDITOR), conn.cursor(row_factory=class_row(Hold)) as cursor:
        return cursor.execute("select * from meshaudit.holds()").fetchall()


def place_hold(conn: psycopg.Connection[Any], reason: str, **narrowed: Any) -> int:
    """Place one; returns its number. `narrowed`: secret_id, user_identity, scope, from_time, to_time."""
    names = ("secret_id", "user_identity", "scope", "from_time", "to_time")
    asked = (
        "select meshaudit.place_hold(%s, secret_id => %s, user_identity => %s, scope => %s,"
        " from_time => %s::timestamptz, to_time => %s::timestamptz)"
    )
    with db.errors(_AUDITOR):
        return int(_scalar(conn, asked, reason, *(narrowed.get(name) for name in names)))


def lift_hold(conn: psycopg.Connection[Any], hold: int, reason: str) -> bool:
    """Lift one; False if there is none of that number."""
    if abs(hold) > BIGINT:
        return False
    with db.errors(_AUDITOR):
        return bool(_scalar(conn, "select meshaudit.lift_hold(%s::bigint, %s::text)", hold, reason))


def _scalar(conn: psycopg.Connection[Any], statement: str, *params: Any) -> Any:
    with conn.cursor(row_factory=scalar_row) as cursor:
        return cursor.execute(statement.encode(), params).fetchone()
