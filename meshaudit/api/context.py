"""What the routes of one server share, and how a route gets at it."""

import asyncio
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from meshaudit.api.auth import Caller, Tokens
from meshaudit.api.gate import Gate
from meshaudit.api.limits import Slots
from meshaudit.api.listener import Listener
from meshaudit.api.metrics import Metrics
from meshaudit.api.settings import Settings


@dataclass
class Context:
    """One server's parts."""

    settings: Settings
    tokens: Tokens
    gate: Gate
    metrics: Metrics
    listener: Listener
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        half = max(1, self.settings.pool_size // 2)
        self.streams = Slots("streams", self.settings.max_streams, 10)
        # An export holds a connection as long as it takes.
        self.exports = Slots("exports", half, max(1, half // 2))
        self.searches = Slots("requests", self.settings.max_requests, max(1, self.settings.max_requests // 2))
        # All streams read at once when something happens; the other requests must get through.
        self.reading = asyncio.Semaphore(half)


def of(request: Request) -> Context:
    """The context of the server that got this request."""
    found: Context = request.app.state.context
    return found


async def _caller(request: Request) -> Caller:
    return await of(request).tokens.caller(request.headers.getlist("authorization"))


Who = Annotated[Caller, Depends(_caller)]
Parts = Annotated[Context, Depends(of)]
