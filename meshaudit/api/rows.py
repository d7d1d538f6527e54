"""Entries as the API shows them: one list of columns for pages, exports and the stream, and the filters
where the search
function is not what is asked."""

from typing import LiteralString

from psycopg import sql

from meshaudit.queries import COLUMNS, Filters

_SHOWN: dict[str, LiteralString] = {
    "timestamp": """pg_catalog.to_char(l."timestamp" at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')""",
    "ip_address": "pg_catalog.abbrev(l.ip_address)",
    "access_id": "l.access_id::text",
    "prev_hash": "pg_catalog.encode(l.prev_hash, 'hex')",
    "hash": "pg_catalog.encode(l.hash, 'hex')",
}
# What the feed does not hold.
_NOT_FED = ("prev_hash",)


def shown(*, fed: bool = False) -> sql.Composable:
    """The columns of `l`, as text where JSON has no better type."""
    names = [name for name in COLUMNS if not (fed and name in _NOT_FED)]
    return sql.SQL(", ").join(
        sql.SQL("{} as {}").format(
            sql.SQL(_SHOWN[name]) if name in _SHOWN else sql.Identifier("l", name), sql.Identifier(name)
        )
        for name in names
    )


def matching(wanted: Filters, names: sql.Composable | None) -> sql.Composable:
    """The conditions on `l` that search_audit_logs() would apply; values are quoted here, since COPY takes
    no parameters. names: an array of what the identity is called."""
    tests: list[sql.Composable] = [sql.SQL("true")]
    equal = ("secret_id", "access_type", "operation", "outcome", "scope")
    tests += [
        sql.SQL("{} = {}::text").format(sql.Identifier("l", name), sql.Literal(value))
        for name in equal
        if (value := getattr(wanted, name)) is not None
    ]
    if names is not None:
        tests.append(sql.SQL("l.user_identity = any ({})").format(names))
    if wanted.from_time is not None:
        tests.append(
            sql.SQL('l."timestamp" >= {}::timestamptz').format(sql.Literal(wanted.from_time.isoformat()))
        )
    if wanted.to_time is not None:
        tests.append(
            sql.SQL('l."timestamp" < {}::timestamptz').format(sql.Literal(wanted.to_time.isoformat()))
        )
    if wanted.ip is not None:
        tests.append(sql.SQL("l.ip_address <<= {}::inet").format(sql.Literal(wanted.ip)))
    return sql.SQL(" and ").join(tests)
