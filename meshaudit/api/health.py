"""Health: of the log, to who may know; of the server, to whoever watches over it; and numbers for
Prometheus."""

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response

from meshaudit.api.context import Parts, Who
from meshaudit.api.metrics import CONTENT_TYPE
from meshaudit.api.models import Alive, Status, problems
from meshaudit.api.params import no_query
from meshaudit.api.problems import unavailable

router = APIRouter(tags=["health"])


@router.get(
    "/api/status",
    summary="Health of the log",
    description="What `meshaudit status` prints: one line a check. For who may see the whole log, and"
    " for operators.",
    operation_id="getStatus",
    response_model=Status,
    responses=problems(400, 401, 403, 429, 503),
    dependencies=[Depends(no_query)],
)
async def status(request: Request, caller: Who, parts: Parts) -> Response:
    with parts.searches.taken(caller.subject):
        async with parts.gate.acting(caller, request) as conn:
            cursor = await conn.execute('select s."check", s.ok, s.detail from meshaudit.status() s')
            checks = await cursor.fetchall()
    return JSONResponse({"ok": all(check["ok"] for check in checks), "checks": checks})


@router.head("/healthz", include_in_schema=False, dependencies=[Depends(no_query)])
@router.get(
    "/healthz",
    summary="Whether the server runs",
    operation_id="isAlive",
    response_model=Alive,
    responses=problems(400),
    dependencies=[Depends(no_query)],
)
async def healthz() -> Response:
    """That it answers. It does not ask the database."""
    return JSONResponse({"status": "ok"})


@router.head("/readyz", include_in_schema=False, dependencies=[Depends(no_query)])
@router.get(
    "/readyz",
    summary="Whether the server can serve",
    operation_id="isReady",
    response_model=Alive,
    responses=problems(400, 503),
    dependencies=[Depends(no_query)],
)
async def readyz(parts: Parts) -> Response:
    """That its database answers and that it is not about to stop."""
    if parts.stopping.is_set():
        raise unavailable("stopping", "the server stops", 5)
    await parts.gate.ready()
    return JSONResponse({"status": "ok"})


@router.get(
    "/metrics",
    summary="Numbers for Prometheus",
    description="Of the log and of this server, in Prometheus's text format. For who may see the whole"
    " log, and for"
    " operators: give the scraper a token of its own.",
    operation_id="getMetrics",
    responses={
        200: {
            "description": "The numbers.",
            "content": {
                "text/plain": {"schema": {"type": "string"}, "example": "meshaudit_partitions_ahead 3.0\n"}
            },
        },
        **problems(400, 401, 403, 503),
    },
    response_class=Response,
    dependencies=[Depends(no_query)],
)
async def metrics(request: Request, caller: Who, parts: Parts) -> Response:
    async with parts.gate.acting(caller, request) as conn:
        rows = await (
            await conn.execute("select m.name, m.labels, m.value from meshaudit.metrics() m")
        ).fetchall()
    parts.metrics.open("streams", parts.streams.open)
    parts.metrics.open("exports", parts.exports.open)
    return Response(parts.metrics.page(rows), media_type=CONTENT_TYPE)
