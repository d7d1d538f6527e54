"""Pages of the log, and single entries."""

from typing import Annotated

import psycopg
from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import JSONResponse, Response
from psycopg import sql

from meshaudit.api.context import Parts, Who
from meshaudit.api.models import Entry, Page, problems
from meshaudit.api.params import PageQuery, entry_id, no_query, single
from meshaudit.api.problems import bad_parameter, not_found
from meshaudit.api.rows import shown

router = APIRouter(tags=["audit log"])

_SEARCH = sql.SQL("""
select {shown}, meshaudit.log_cursor(l."timestamp", l.id) as cursor
from meshaudit.search_audit_logs(
  secret_id => %(secret_id)s::text, from_time => %(from_time)s::timestamptz,
  to_time => %(to_time)s::timestamptz, user_identity => %(user_identity)s::text,
  access_type => %(access_type)s::text, operation => %(operation)s::text, outcome => %(outcome)s::text,
  scope => %(scope)s::text, ip => %(ip)s::inet, after => %(after)s::text, page_size => %(page_size)s::int) l
""").format(shown=shown())
_ONE = sql.SQL("select {shown} from meshaudit.audit_log(%(id)s) l").format(shown=shown())


@router.get(
    "/api/audit-logs",
    summary="Search the audit log",
    description="Entries that the caller may see and that pass all filters, newest first, a page at a time.",
    operation_id="searchAuditLogs",
    response_model=Page,
    responses=problems(400, 401, 403, 429, 503),
    dependencies=[Depends(single)],
)
async def search(
    request: Request, query: Annotated[PageQuery, Query()], caller: Who, parts: Parts
) -> Response:
    after, size = query.page()
    wanted = query.filters()
    named = {name: getattr(wanted, name) for name in wanted.__slots__}
    with parts.searches.taken(caller.subject):
        async with parts.gate.acting(caller, request) as conn:
            try:
                cursor = await conn.execute(_SEARCH, {**named, "after": after, "page_size": size})
            except psycopg.Error as exc:
                if exc.sqlstate == "MA005" and "cursor" in (exc.diag.message_primary or ""):
                    detail = "cursor is not one that this gave"
                    raise bad_parameter("cursor", detail, "take next_cursor of the page before") from exc
                raise
            items = await cursor.fetchall()
    cursors = [item.pop("cursor") for item in items]
    return JSONResponse({"items": items, "next_cursor": cursors[-1] if len(items) == size else None})


@router.get(
    "/api/audit-logs/{id}",
    summary="One entry",
    description="The entry of that number, if the caller may see it.",
    operation_id="getAuditLog",
    response_model=Entry,
    responses=problems(400, 401, 403, 404, 429, 503),
    dependencies=[Depends(no_query)],
)
async def one(
    request: Request,
    id: Annotated[str, Path(description="The entry's id.", examples=["6"], pattern="^[1-9][0-9]{0,17}$")],
    caller: Who,
    parts: Parts,
) -> Response:
    number = entry_id(id)
    with parts.searches.taken(caller.subject):
        async with parts.gate.acting(caller, request) as conn:
            row = await (await conn.execute(_ONE, {"id": number})).fetchone()
    if row is None:
        raise not_found("there is no such entry, or you may not see it")
    return JSONResponse(row)
