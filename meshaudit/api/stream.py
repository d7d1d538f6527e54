"""The stream: entries as they become visible, by server-sent events.

Invariants
  * an event's id is its feed_id, which is given in the order of visibility: to go on behind the last id
    seen misses nothing
    and repeats nothing, whatever was restarted meanwhile;
  * what a subscriber gets is what it may read itself: each look at the feed is a transaction in its name,
    so that a grant
    that is taken back ends it, and so does the token's end;
  * where nothing passes the filters the id still moves on, so that a quiet subscriber does not fall behind
    the feed's end.
"""

import asyncio
import json
import re
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.responses import Response, StreamingResponse
from psycopg import sql

from meshaudit.api.auth import Caller
from meshaudit.api.context import Context, Parts, Who
from meshaudit.api.models import problems
from meshaudit.api.params import FilterQuery, single
from meshaudit.api.problems import Problem, bad_parameter, gone, of_database
from meshaudit.api.pump import Pump
from meshaudit.api.readings import Reading
from meshaudit.api.rows import matching, shown
from meshaudit.queries import Filters

router = APIRouter(tags=["audit log"])

_HEARTBEAT = 10.0
_BATCH = 500
_RETRY = 1000  # milliseconds after which a client comes back
_LOOK = sql.SQL("""
select r.oldest, r.newest, e.* from meshaudit.feed_range() r
left join lateral (
  select l.feed_id, l.kind, l.alert, {shown} from meshaudit.audit_feed l
  where l.feed_id > {after} and {matching} order by l.feed_id limit {batch}
) e on true
order by e.feed_id
""")
_EVENT = {
    "type": "object",
    "description": "One event; data is JSON.",
    "properties": {name: {"type": "string"} for name in ("id", "event", "data")}
    | {"retry": {"type": "integer"}},
}
_NEWEST = "select newest from meshaudit.feed_range()"


@dataclass
class _Subscriber:
    parts: Context
    caller: Caller
    request: Request
    wanted: Filters
    reading: Reading
    position: int = 0
    shown: int = 0  # entries

    async def begin(self) -> None:
        """Start at the present."""
        async with self.parts.reading, self.parts.gate.acting(self.caller, self.request) as conn:
            row = await (await conn.execute(_NEWEST)).fetchone()
        self.position = int(row["newest"] or 0) if row else 0

    async def look(self) -> tuple[list[dict[str, Any]], bool]:
        """What has come, and whether there is more."""
        statement = _LOOK.format(
            shown=shown(fed=True),
            after=sql.Literal(self.position),
            matching=matching(self.wanted, self.reading.names()),
            batch=sql.Literal(_BATCH),
        )
        async with self.parts.reading, self.parts.gate.acting(self.caller, self.request) as conn:
            rows = await (await conn.execute(statement)).fetchall()
        oldest, newest = rows[0]["oldest"], int(rows[0]["newest"] or 0)
        first = newest + 1 if oldest is None else int(oldest)
        if self.position + 1 < first or self.position > newest:
            raise gone(
                f"the feed holds the events {first} to {newest}, and {self.position} is not followed by them",
                "search for what is missing with GET /api/audit-logs, and start a stream without"
                " Last-Event-ID",
            )
        events = [row for row in rows if row["feed_id"] is not None]
        self.shown += sum(row["kind"] == "entry" for row in events)
        full = len(events) == _BATCH
        self.position = events[-1]["feed_id"] if full else newest
        return events, full


@router.get(
    "/api/audit-logs/stream",
    summary="Follow the audit log",
    description="New entries that the caller may see and that pass all filters, as server-sent events,"
    " in the order in"
    " which they become visible. An event's id is its place: sent back as Last-Event-ID it goes on"
    " behind it, without a"
    " gap and without a repetition. Events: `entry` (as in a search, without prev_hash), `alert`, and"
    " `end`, which says"
    " why the server ends the stream. The stream ends when the token does. That it began, and how many"
    " entries it was, are entries themselves.",
    operation_id="streamAuditLogs",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "Events, until the client goes.",
            "content": {
                "text/event-stream": {
                    "schema": _EVENT,
                    "example": 'event: entry\nid: 42\ndata: {"id": 6, "secret_id": "…"}\n\n',
                }
            },
        },
        **problems(400, 401, 403, 410, 429, 503),
    },
    dependencies=[Depends(single)],
)
async def stream(
    request: Request,
    query: Annotated[FilterQuery, Query()],
    caller: Who,
    parts: Parts,
    last_event_id: Annotated[
        str | None,
        Header(description="The last id seen. Without it the stream starts now.", pattern="^[0-9]{1,18}$"),
    ] = None,
) -> Response:
    wanted = query.filters()
    place = () if last_event_id is None else (f"after {last_event_id[:18]}",)
    reading = Reading(parts, caller, request, "stream", wanted, *place)
    follower = _Subscriber(parts, caller, request, wanted, reading)
    if last_event_id is not None:
        if not re.fullmatch("[0-9]{1,18}", last_event_id, re.ASCII):
            raise bad_parameter("Last-Event-ID", "Last-Event-ID is not an id of this stream")
        follower.position = int(last_event_id)
    chunks = await Pump(_follow(follower, resume=last_event_id is not None)).started()
    return StreamingResponse(chunks, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


async def _follow(follower: _Subscriber, *, resume: bool) -> AsyncGenerator[bytes, None]:
    with follower.parts.streams.taken(follower.caller.subject):
        if not resume:
            await follower.begin()
        moved = follower.parts.listener.moved
        await follower.reading.begun()
        events, more = await follower.look()
        try:
            yield f"retry: {_RETRY}\n".encode() + _events(events, follower.position)
            async for chunk in _go_on(follower, moved, more):
                yield chunk
        finally:
            if follower.shown:
                await follower.reading.ended(follower.shown)


async def _go_on(follower: _Subscriber, moved: asyncio.Event, more: bool) -> AsyncGenerator[bytes, None]:
    parts = follower.parts
    ends, why = _end(follower)
    while time.time() < ends and not parts.stopping.is_set():
        if not more:
            await _wait(moved, parts.stopping, min(_HEARTBEAT, max(0.0, ends - time.time())))
        moved = parts.listener.moved
        before = follower.position
        try:
            events, more = await follower.look()
        except Exception as exc:
            # A status can no longer be sent. The client comes back with its last id, and gets one.
            problem = exc if isinstance(exc, Problem) else of_database(exc)
            yield _end_event(problem.kind, problem.detail)
            return
        if events or follower.position != before:
            yield _events(events, follower.position)
        elif not moved.is_set():
            yield b": still here\n\n"
    yield _end_event("stopping", "the server stops") if parts.stopping.is_set() else _end_event(*why)


def _end(follower: _Subscriber) -> tuple[float, tuple[str, str]]:
    longest = time.time() + follower.parts.settings.stream_seconds
    if follower.caller.expires is not None and follower.caller.expires < longest:
        return follower.caller.expires, ("expired", "the token has expired; come back with a new one")
    return longest, ("long", "a stream lasts only so long; come back")


async def _wait(moved: asyncio.Event, stopping: asyncio.Event, seconds: float) -> None:
    """Until the feed moves, the server stops, or so long."""
    tasks = [asyncio.ensure_future(event.wait()) for event in (moved, stopping)]
    try:
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


def _events(rows: list[dict[str, Any]], position: int) -> bytes:
    """Events; then, if the place is further on, that alone, which a client keeps and does not show."""
    parts = [_event(row) for row in rows]
    if not rows or rows[-1]["feed_id"] != position:
        parts.append(f"id: {position}\n\n")
    return "".join(parts).encode()


def _event(row: dict[str, Any]) -> str:
    hidden = ("oldest", "newest", "feed_id", "kind", "alert")
    data = {name: value for name, value in row.items() if name not in hidden}
    if row["kind"] != "entry":
        data = {"scope": row["scope"], "alert": row["alert"]}
    return f"event: {row['kind']}\nid: {row['feed_id']}\ndata: {json.dumps(data)}\n\n"


def _end_event(why: str, detail: str) -> bytes:
    return f"event: end\ndata: {json.dumps({'reason': why, 'detail': detail})}\n\n".encode()
