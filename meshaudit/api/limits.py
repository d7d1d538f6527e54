"""How much a client may send, how much may be open at once, and the headers that every answer has.

Pure ASGI, outside of the framework, so that nothing gets past it: a request that is too large or too many
is answered
before anything of it is looked at.
"""

import asyncio
import logging
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from meshaudit.api.metrics import Metrics
from meshaudit.api.problems import Problem, too_many, unavailable

_log = logging.getLogger("meshaudit.api")
HEADER_BYTES = 16384
QUERY_BYTES = 8192
_STALL = 30.0  # seconds that a client may take none of what it asked for
_PUBLIC_ID = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:")

_SECURITY = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none';"
    " form-action 'none'",
}
# The documentation's page has a script and a style of its own, and asks this server alone.
_DOCS_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:;"
    " connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)


class Slots:
    """How many of a kind are open: in all, and for one caller."""

    def __init__(self, what: str, total: int, each: int) -> None:
        self._what, self._total, self._each = what, total, each
        self._open: Counter[str] = Counter()

    @property
    def open(self) -> int:
        """How many there are."""
        return self._open.total()

    @contextmanager
    def taken(self, who: str) -> Iterator[None]:
        """One of them, or 429 or 503 at once: who waits holds something too."""
        if self._open[who] >= self._each:
            raise too_many(f"you have {self._each} {self._what} open, which is the most", 5)
        if self._open.total() >= self._total:
            raise unavailable("busy", f"{self._total} {self._what} are open, which is the most", 5)
        self._open[who] += 1
        try:
            yield
        finally:
            self._open[who] -= 1
            if not self._open[who]:
                del self._open[who]


class Limits:
    """The outermost layer."""

    def __init__(self, app: ASGIApp, metrics: Metrics, max_requests: int, hosts: frozenset[str]) -> None:
        self._app, self._metrics, self._max, self._hosts = app, metrics, max_requests, hosts
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = _lists(scope)
        request_id = _request_id(headers)
        begun, status, started = time.perf_counter(), 500, False

        async def guarded(message: Message) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                started = True
                status = message["status"]
                message["headers"] = _complete(scope["path"], message.get("headers", []), request_id)
            # A client that stops reading would keep a snapshot, or a place among the streams, for ever.
            await asyncio.wait_for(send(message), _STALL)

        self._running += 1
        try:
            if problem := self._refusal(scope, headers):
                await problem.response()(scope, receive, guarded)
            else:
                await self._app(scope, receive, guarded)
        except asyncio.CancelledError:
            # The server stops, and has waited long enough. Unfinished, the answer is an error for the client.
            _log.warning("%s %s: broken off, the server stops", request_id, scope["path"])
        except TimeoutError:
            _log.warning(
                "%s %s: broken off, the client took nothing for %d s", request_id, scope["path"], _STALL
            )
        except Exception as exc:
            # Left unfinished, the answer ends in an error for the client too.
            _log.error(
                "%s %s: %s: %s", request_id, scope["path"], type(exc).__name__, " ".join(str(exc).split())
            )
            if not started:
                problem = Problem(500, "internal", "something went wrong; the server's log says what")
                await problem.response()(scope, receive, guarded)
        finally:
            self._running -= 1
            self._metrics.request(scope, status, time.perf_counter() - begun)

    def _refusal(self, scope: Scope, headers: Mapping[str, list[str]]) -> Problem | None:
        # The token has a bound, and an answer, of its own.
        size = sum(len(n) + len(v) for n, v in scope["headers"] if n.lower() != b"authorization")
        body = headers.get("content-length", ["0"])[0]
        # Streams have limits of their own, and the health of a busy server must still be told.
        limited = scope["path"].startswith("/api/") and scope["path"] != "/api/audit-logs/stream"
        host = headers.get("host", [""])[0]
        if self._hosts and not self._hosts & {host, host.rpartition(":")[0].strip("[]")}:
            # Without authentication, a page that a browser shows must not reach this by a name of its own.
            return Problem(421, "misdirected", "without authentication this answers only to loopback's names")
        if size > HEADER_BYTES:
            return Problem(431, "too-large", f"the headers have more than {HEADER_BYTES} bytes")
        if len(scope["query_string"]) > QUERY_BYTES:
            return Problem(414, "too-large", f"the query has more than {QUERY_BYTES} bytes")
        if (body.isdecimal() and int(body) > 0) or "transfer-encoding" in headers:
            return Problem(413, "too-large", "no request takes a body", headers={"Connection": "close"})
        if limited and self._running > self._max:
            return unavailable("busy", f"{self._max} requests are running, which is the most", 1)
        return None


def _lists(scope: Scope) -> Mapping[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in scope["headers"]:
        found.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
    return found


def _request_id(headers: Mapping[str, list[str]]) -> str:
    given = headers.get("x-request-id", [""])[0]
    return given if 1 <= len(given) <= 128 and _PUBLIC_ID.issuperset(given) else str(uuid.uuid4())


def _complete(path: str, given: list[tuple[bytes, bytes]], request_id: str) -> list[tuple[bytes, bytes]]:
    there = {name.lower() for name, _ in given}
    wanted = _SECURITY | {"x-request-id": request_id}
    if path.startswith("/docs"):
        wanted["content-security-policy"] = _DOCS_POLICY
    added = [(n.encode(), v.encode()) for n, v in wanted.items() if n.encode() not in there]
    return [*given, *added]
