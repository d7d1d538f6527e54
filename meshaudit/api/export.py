"""Exports: all that matches, of one snapshot, as the database writes it.

The database makes the text and COPY carries it, so that a row costs this server next to nothing and memory
holds a few
chunks, whatever the number of rows. An export that breaks off ends without the last chunk: to a client it
is an error,
never a shorter log.
"""

import re
from collections.abc import AsyncGenerator
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response, StreamingResponse
from psycopg import sql
from pydantic import Field

from meshaudit.api.auth import Caller
from meshaudit.api.context import Context, Parts, Who
from meshaudit.api.models import problems
from meshaudit.api.params import FilterQuery, single
from meshaudit.api.problems import bad_parameter
from meshaudit.api.pump import Pump
from meshaudit.api.readings import Reading
from meshaudit.api.rows import matching, shown
from meshaudit.output import escaped, harmless
from meshaudit.queries import COLUMNS, Filters

router = APIRouter(tags=["audit log"])

_CHUNK = 65536
_MEDIA = {"csv": "text/csv; charset=utf-8", "jsonl": "application/jsonl; charset=utf-8"}
# A row without any of these has nothing to escape: most have none, and a look is quick.
_SUSPECT = bytes(b for b in range(256) if (b < 32 and b not in b"\t\n") or b in b"\\\x7f\xc2\xe2\xef")
# A field that may be one, told quickly; and the fields of a row.
_FORMULA = re.compile(rb"""(?:^|,)"? *[=+\-@\t\n']""")
_FIELD = re.compile(r'(^|,)("(?:[^"]|"")*"|[^",\n]*)')
_ROWS = sql.SQL(
    'select {shown} from meshaudit.audit_logs l where {matching} order by l."timestamp" desc, l.id desc'
)
_CSV = sql.SQL("copy ({rows}) to stdout with (format csv, encoding 'UTF8')")
_JSON = sql.SQL("copy (select pg_catalog.row_to_json(t) from ({rows}) t) to stdout with (encoding 'UTF8')")


class ExportQuery(FilterQuery):
    """Filters, and what to write."""

    format: Annotated[
        str | None,
        Field(default=None, description="csv (without it) or jsonl: a JSON object a line.", examples=["csv"]),
    ]


@router.get(
    "/api/audit-logs/export",
    summary="Export the audit log",
    description="All entries that the caller may see and that pass all filters, newest first, as of one"
    " moment. Of any"
    " size: it is streamed. An answer that ends before its last chunk is not complete. That it began, and how"
    " many entries it was, are entries themselves. In CSV, control characters but tab and line feed are"
    " escaped: `\\x1b`, `\\u202e`, and `\\x5c` for a backslash that could be read as such an escape.",
    operation_id="exportAuditLogs",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "The entries.",
            "content": {
                "text/csv": {"schema": {"type": "string"}, "example": ",".join(COLUMNS) + "\n"},
                "application/jsonl": {
                    "schema": {"type": "string"},
                    "example": '{"id": 6, "secret_id": "…"}\n',
                },
            },
        },
        **problems(400, 401, 403, 429, 503),
    },
    dependencies=[Depends(single)],
)
async def export(
    request: Request, query: Annotated[ExportQuery, Query()], caller: Who, parts: Parts
) -> Response:
    form = query.format or "csv"
    if form not in _MEDIA:
        raise bad_parameter("format", "format must be csv or jsonl")
    chunks = await Pump(_write(parts, caller, request, query.filters(), form)).started()
    name = f'attachment; filename="audit-logs.{form}"'
    return StreamingResponse(chunks, media_type=_MEDIA[form], headers={"Content-Disposition": name})


def _csv(row: bytes) -> bytes:
    """A row as `meshaudit logs` writes it too, without control characters and formulas."""
    if len(row.translate(None, _SUSPECT)) != len(row):
        row = escaped(row.decode()).encode()
    if _FORMULA.search(row):
        row = _FIELD.sub(_harmless, row.decode()).encode()
    return row


def _harmless(found: re.Match[str]) -> str:
    before, field = found.groups()
    quote = '"' if field.startswith('"') else ""
    text = field[1:-1] if quote else field
    return f"{before}{quote}{harmless(text)}{quote}"


async def _write(
    parts: Context, caller: Caller, request: Request, wanted: Filters, form: str
) -> AsyncGenerator[bytes, None]:
    reading = Reading(parts, caller, request, "export", wanted, form)
    entries, whole = 0, False
    with parts.exports.taken(caller.subject):
        await reading.begun()
        rows = _ROWS.format(shown=shown(), matching=matching(wanted, reading.names()))
        statement = (_CSV if form == "csv" else _JSON).format(rows=rows)
        try:
            isolation = "repeatable read, read only"
            acting = parts.gate.acting(caller, request, isolation=isolation)
            async with acting as conn, conn.cursor() as cursor:
                limit = str(int(parts.settings.export_seconds * 1000))
                await conn.execute("select pg_catalog.set_config('statement_timeout', %s, true)", [limit])
                buffer = bytearray(",".join(COLUMNS).encode() + b"\n" if form == "csv" else b"")
                async with cursor.copy(statement) as copy:
                    async for row in copy:
                        # JSON has no raw control characters, so that COPY doubles backslashes and escapes
                        # nothing else.
                        buffer += _csv(bytes(row)) if form == "csv" else bytes(row).replace(b"\\\\", b"\\")
                        entries += 1
                        if len(buffer) >= _CHUNK:
                            yield bytes(buffer)
                            buffer.clear()
                yield bytes(buffer)
            whole = True
        finally:
            # Of one that is broken off, what was read from the database: a little more than was sent.
            await reading.ended(entries, whole=whole)
