"""What the program asks of the schema: one Python function for each SQL function, and no table.

Every function takes an open connection and raises the errors of meshaudit.errors.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import class_row, scalar_row

from meshaudit import db
from meshaudit.errors import BadArgument

PAGE = 1000  # the most that search_audit_logs() gives at once

_AUDITOR = "ask for: select meshaudit.grant_auditor('your role')"
_OPERATOR = "connect as a member of meshaudit_operator, or as an auditor"
_TABLE_OWNER = "connect as the table's owner, who is in meshaudit_client or meshaudit_operator"
_OWNER = "connect as the role that installed meshaudit, or as a superuser"


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of meshaudit.audit_logs, and `cursor`, its place for the next search."""

    id: int
    secret_id: str
    access_type: str
    timestamp: datetime
    user_identity: str
    ip_address: IPv4Address | IPv6Address | IPv4Interface | IPv6Interface | None
    operation: str
    outcome: str
    secret_table: str
    scope: str
    identity_source: str
    claimed_identity: str | None
    db_user: str
    db_role: str
    application_name: str | None
    user_agent: str | None
    request_id: str | None
    access_id: UUID
    lane: int
    seq: int
    prev_hash: bytes | None  # None in what comes from the feed
    hash: bytes
    cursor: str


COLUMNS = tuple(field.name for field in fields(Entry) if field.name != "cursor")


@dataclass(frozen=True, slots=True)
class Filters:
    """Filters of search_audit_logs(), all optional and combined; from_time <= timestamp < to_time."""

    secret_id: str | None = None
    from_time: datetime | None = None
    to_time: datetime | None = None
    user_identity: str | None = None
    access_type: str | None = None
    operation: str | None = None
    outcome: str | None = None
    scope: str | None = None
    ip: str | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """A row of meshaudit.status()."""

    check: str
    ok: bool
    detail: str


_SEARCH = """
select l.*, meshaudit.log_cursor(l."timestamp", l.id) as cursor
from meshaudit.search_audit_logs(
  secret_id => %(secret_id)s::text, from_time => %(from_time)s::timestamptz,
  to_time => %(to_time)s::timestamptz, user_identity => %(user_identity)s::text,
  access_type => %(access_type)s::text, operation => %(operation)s::text, outcome => %(outcome)s::text,
  scope => %(scope)s::text, ip => %(ip)s::inet, after => %(after)s::text, page_size => %(page_size)s::int) l
"""


def search(
    conn: psycopg.Connection[Any], filters: Filters, *, after: str | None = None, limit: int | None = None
) -> Iterator[list[Entry]]:
    """Entries, newest first, a page at a time: memory holds one page, whatever `limit` (None: all)."""
    left = limit
    wanted = {field.name: getattr(filters, field.name) for field in fields(Filters)}
    while left is None or left > 0:
        size = PAGE if left is None else min(PAGE, left)
        with db.errors(_AUDITOR), conn.cursor(row_factory=class_row(Entry)) as cursor:
            try:
                page = cursor.execute(_SEARCH, {**wanted, "after": after, "page_size": size}).fetchall()
            except psycopg.DataError as exc:
                what = exc.diag.message_primary or str(exc)
                raise BadArgument(
                    f"a filter cannot be used: {what}", "check the times and the cursor"
                ) from exc
        if page:
            yield page
        if len(page) < size:
            return
        after = page[-1].cursor
        left = None if left is None else left - size


def sees_everything(conn: psycopg.Connection[Any]) -> bool:
    """Whether a search shows this login the whole log, or only some scopes."""
    with db.errors(_AUDITOR):
        return bool(_scalar(conn, "select meshaudit.sees_everything()"))


def server_time(conn: psycopg.Connection[Any], ago: timedelta = timedelta()) -> datetime:
    """The server's clock, which is the one that entries carry, `ago` before now."""
    with db.errors():
        found: datetime = _scalar(conn, "select pg_catalog.clock_timestamp() - %s::interval", ago)
    return found


def status(conn: psycopg.Connection[Any]) -> list[Check]:
    """Health, one row a check."""
    with db.errors(_OPERATOR), conn.cursor(row_factory=class_row(Check)) as cursor:
        return cursor.execute('select "check", ok, detail from meshaudit.status()').fetchall()


def maintain(conn: psycopg.Connection[Any]) -> str:
    """The nightly job; says what it did."""
    with db.errors("connect as a member of meshaudit_operator"):
        return str(_scalar(conn, "select meshaudit.maintain()"))


def protection_plan(
    conn: psycopg.Connection[Any], table: str, columns: list[str], scope_column: str | None, mode: str
) -> list[str]:
    """What protect() would execute; raises as it would."""
    with db.errors(_TABLE_OWNER), conn.cursor(row_factory=scalar_row) as cursor:
        cursor.execute(
            "select meshaudit.protection_plan(%s::regclass, %s, %s, %s)",
            [_table(conn, table), columns, scope_column, mode],
        )
        return cursor.fetchall()


def protect(
    conn: psycopg.Connection[Any], table: str, columns: list[str], scope_column: str | None, mode: str
) -> str:
    """Put a table under audit; says what it did. Waits at most 10 s for those who use the table."""
    with db.errors(_TABLE_OWNER), conn.transaction():
        conn.execute("select pg_catalog.set_config('lock_timeout', '10s', true)")
        asked = "select meshaudit.protect(%s::regclass, %s, %s, %s)"
        return str(_scalar(conn, asked, _table(conn, table), columns, scope_column, mode))


def unprotect(conn: psycopg.Connection[Any], table: str, *, dry_run: bool = False) -> str:
    """Take a table back out; says what it did, or with dry_run would have done."""
    with db.errors(_TABLE_OWNER), conn.transaction(force_rollback=dry_run):
        conn.execute("select pg_catalog.set_config('lock_timeout', '10s', true)")
        return str(_scalar(conn, "select meshaudit.unprotect(%s::regclass)", _table(conn, table)))


def _table(conn: psycopg.Connection[Any], name: str) -> int:
    """The oid of a table that is named as SQL names it."""
    try:
        found = _scalar(conn, "select pg_catalog.to_regclass(%s)::oid", name)
    except (psycopg.errors.InvalidName, psycopg.errors.SyntaxError):
        found = None
    if found is None:
        raise BadArgument(f"no table {name}", 'name it as SQL does: secrets, app.secrets, app."Secrets"')
    return int(found)


def grant_auditor(conn: psycopg.Connection[Any], identity: str, scope: str) -> None:
    """Let a database role or a JWT subject read the log of a scope."""
    with db.errors(_OWNER):
        conn.execute("select meshaudit.grant_auditor(%s, %s)", [identity, scope])


def revoke_auditor(conn: psycopg.Connection[Any], identity: str, scope: str) -> bool:
    """Take a grant back; False if there was none."""
    with db.errors(_OWNER):
        return bool(_scalar(conn, "select meshaudit.revoke_auditor(%s, %s)", identity, scope))


def identity_of(conn: psycopg.Connection[Any], pseudonym: str) -> str | None:
    """Who is behind a pseudonym, as far as this login may know; None if nobody is. Recorded."""
    with db.errors(_AUDITOR):
        found = _scalar(conn, "select meshaudit.identity_of(%s)", pseudonym)
    return None if found is None else str(found)


def erase_identity(conn: psycopg.Connection[Any], identity: str, reason: str) -> int:
    """Destroy what joins an identity with its pseudonyms; returns how many there were. Recorded."""
    with db.errors(_OWNER):
        return int(_scalar(conn, "select meshaudit.erase_identity(%s, %s)", identity, reason))


def is_role(conn: psycopg.Connection[Any], identity: str) -> bool:
    """Whether the server has a role of that name."""
    with db.errors():
        asked = "select pg_catalog.to_regrole(pg_catalog.quote_ident(%s)) is not null"
        return bool(_scalar(conn, asked, identity))


def _scalar(conn: psycopg.Connection[Any], statement: str, *params: Any) -> Any:
    with conn.cursor(row_factory=scalar_row) as cursor:
        return cursor.execute(statement.encode(), params).fetchone()
