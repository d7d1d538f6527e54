"""Alerts as the program asks for them: one Python function for each SQL function or view."""

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import psycopg
from psycopg.rows import class_row, dict_row

from meshaudit import db
from meshaudit.errors import BadArgument, BadSqlArgument, MeshauditError, translate
from meshaudit.filters import BIGINT, INTEGER
from meshaudit.output import stamp

_AUDITOR = "ask for: select meshaudit.grant_auditor('your role')"
_OPERATOR = "connect as a member of meshaudit_operator"
_OWNER = "connect as the role that installed meshaudit, or as a superuser"


@dataclass(frozen=True, slots=True)
class Alert:
    """A row of meshaudit.alerts."""

    alert_id: int
    raised_at: datetime
    rule: str
    severity: str
    scope: str
    user_identity: str | None
    identity_source: str | None
    message: str
    happened_at: datetime
    last_at: datetime
    count: int
    entry_id: int | None
    secret_id: str | None
    secret_table: str | None
    ip_address: Any
    window_start: datetime
    acknowledged_at: datetime | None
    acknowledged_by: str | None
    note: str | None

    def plain(self) -> dict[str, Any]:
        """As JSON shows it."""
        return {name: plain(value) for name, value in asdict(self).items()}


def plain(value: Any) -> Any:
    """A value as JSON shows it."""
    if value is None or isinstance(value, bool | int | str | list):
        return value
    return stamp(value) if isinstance(value, datetime) else str(value)


def listed(conn: psycopg.Connection[Any], *, limit: int, unacknowledged: bool) -> list[Alert]:
    """The newest alerts, newest first."""
    query = (
        "select * from meshaudit.alerts where %(all)s::bool or acknowledged_at is null"
        " order by alert_id desc limit %(limit)s::bigint"
    )
    with db.errors(_AUDITOR), conn.cursor(row_factory=class_row(Alert)) as cursor:
        return cursor.execute(query, {"all": not unacknowledged, "limit": limit or None}).fetchall()


def acknowledge(conn: psycopg.Connection[Any], alert_id: int, note: str | None) -> bool:
    """Take note of an alert; False if there is none that the caller sees."""
    if abs(alert_id) > BIGINT:
        return False
    with db.errors(_AUDITOR):
        return bool(_one(conn, "select meshaudit.acknowledge_alert(%s::bigint, %s::text)", alert_id, note))


def raise_one(conn: psycopg.Connection[Any]) -> int:
    """Raise an alert that goes every way; returns its id."""
    with db.errors(_OPERATOR):
        return int(_one(conn, "select meshaudit.test_alert()"))


def rules(conn: psycopg.Connection[Any]) -> list[dict[str, Any]]:
    """The rules."""
    query = f"""select rule, enabled, severity, threshold, {_written("period")}, {_written("learns")},
      time_zone, opens, closes, days, about from meshaudit.alert_rules order by rule"""
    return _rows(conn, query, _AUDITOR)


def _written(column: str) -> str:
    # As one gives it to --period, whatever the server's IntervalStyle is.
    parts = ", ".join(
        f"({n}, '{unit}', extract({unit} from {column})::float8)"
        for n, unit in enumerate(("year", "month", "day", "hour", "minute", "second"))
    )
    return f"""case when {column} is not null then coalesce((
      select string_agg(value || ' ' || unit || case when value = 1 then '' else 's' end, ' ' order by n)
      from (values {parts}) v (n, unit, value) where value <> 0), '0 seconds') end as {column}"""


def webhooks(conn: psycopg.Connection[Any]) -> list[dict[str, Any]]:
    """The webhooks, without their secrets."""
    return _rows(conn, "select * from meshaudit.webhooks()", _OPERATOR)


def set_rule(conn: psycopg.Connection[Any], rule: str, values: dict[str, Any]) -> None:
    """Change a rule; None leaves a value as it is."""
    query = """select meshaudit.set_alert_rule(%(rule)s::text, enabled => %(enabled)s::bool,
      threshold => %(threshold)s::bigint, period => %(period)s::interval, learns => %(learns)s::interval,
      severity => %(severity)s::text, time_zone => %(time_zone)s::text, opens => %(opens)s::time,
      closes => %(closes)s::time, days => %(days)s::int[])"""
    with db.errors(_OWNER):
        try:
            conn.execute(query, {"rule": rule} | values)
        except psycopg.DataError as exc:
            what = exc.diag.message_primary or str(exc)
            raise BadArgument(
                f"a value cannot be used: {what}",
                "a period is like '5 minutes', a time like 07:00, a day 1 (Monday) to 7",
            ) from exc
        except psycopg.Error as exc:
            if exc.sqlstate == BadSqlArgument.sqlstate and "no alert rule" in (
                exc.diag.message_primary or ""
            ):
                raise _unfit(conn, rule, exc) from exc
            raise


def _unfit(conn: psycopg.Connection[Any], rule: str, exc: psycopg.Error) -> MeshauditError:
    """Whether there is no such rule, or one that takes no such value: the database says that in one error."""
    try:
        there = _one(conn, "select count(*) from meshaudit.alert_rules where rule = %s::text", rule)
        any_there = there or _one(conn, "select count(*) from meshaudit.alert_rules")
    except psycopg.Error:
        any_there = 0
    if not any_there:
        # Not this role's to see.
        return translate(exc)
    if not there:
        return BadArgument(f"no alert rule {rule!r}", "meshaudit alerts rules lists them")
    return BadArgument(
        f"the alert rule {rule!r} takes no such value",
        "what is empty in meshaudit alerts rules, a rule does not take",
    )


def add_webhook(conn: psycopg.Connection[Any], url: str, secret: str | None) -> tuple[int, str]:
    """Have alerts sent to a URL; returns the webhook's number and its secret."""
    with db.errors(_OWNER):
        row = conn.execute(
            "select * from meshaudit.add_webhook(%s::text, %s::text)", [url, secret]
        ).fetchone()
    assert row is not None
    return int(row[0]), str(row[1])


def remove_webhook(conn: psycopg.Connection[Any], number: int) -> bool:
    """No more alerts to it; False if there is none."""
    if abs(number) > INTEGER:
        return False
    with db.errors(_OWNER):
        return bool(_one(conn, "select meshaudit.remove_webhook(%s::int)", number))


def _rows(conn: psycopg.Connection[Any], query: str, hint: str) -> list[dict[str, Any]]:
    with db.errors(hint), conn.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(query.encode()).fetchall()
    return [{name: plain(value) for name, value in row.items()} for row in rows]


def _one(conn: psycopg.Connection[Any], query: str, *params: Any) -> Any:
    row = conn.execute(query.encode(), params or None).fetchone()
    return row and row[0]
