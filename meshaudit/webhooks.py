"""Sending alerts to webhooks, signed by the Standard Webhooks scheme (standardwebhooks.com).

What is due comes from the outbox, leased for a minute; a receiver that fails or hangs gets it again later,
with the same webhook-id, so that it can tell a duplicate. Nobody waits for a receiver: no access, not the
sealer, and no other receiver. Each delivery is a thread that knows no database, with a deadline; there is
one at a time a webhook, and so many at most.
"""

import asyncio
import json
import time
from datetime import UTC, datetime
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import Any, NamedTuple

import psycopg

from meshaudit import __version__
from meshaudit.errors import MeshauditError, translate

PAUSE = 1.0
SENDER = "meshaudit webhook"
_TIMEOUT = 10.0  # for all of a delivery, name server included
_AT_ONCE = 32
_CONNECT = {"prepare_threshold": None, "connect_timeout": 10, "application_name": "meshaudit alerts"}
_LAST_DELAY = 30.0
MISSING = MeshauditError(
    "webhooks need the packages httpx and standardwebhooks", 'install: pip install "meshaudit[alerts]"'
)


class Sent(NamedTuple):
    """How a round went."""

    delivered: int
    failed: int


def available() -> bool:
    """Whether the extra `alerts` is installed."""
    try:
        import httpx  # noqa: F401
        import standardwebhooks  # noqa: F401
    except ImportError:
        return False
    return True


class _Sender:
    """What is under way; it outlives connections."""

    def __init__(self) -> None:
        self._busy: set[int] = set()
        self._ended: SimpleQueue[tuple[int, int, str | None]] = SimpleQueue()

    def start(self, conn: psycopg.Connection[Any]) -> bool:
        """Start what is due, as far as there is room; whether anything is under way."""
        room = _AT_ONCE - len(self._busy)
        if room > 0:
            if not available():
                if conn.execute("select from meshaudit.webhooks() where waiting > 0").rowcount:
                    raise MISSING
                return False
            due = conn.execute(
                "select delivery_id, webhook_id, url, secret, message_id, body"
                " from meshaudit.take_deliveries(%s::int, 1, %s::int[])",
                [room, list(self._busy)],
            ).fetchall()
            for delivery, webhook, *message in due:
                Thread(
                    target=self._deliver, args=(delivery, webhook, *message), name=SENDER, daemon=True
                ).start()
                self._busy.add(webhook)
        return bool(self._busy)

    def _deliver(self, delivery: int, webhook: int, *message: Any) -> None:
        self._ended.put((delivery, webhook, post(*message)))

    def end(self, conn: psycopg.Connection[Any], wait: float) -> Sent:
        """Note how deliveries went; waits for the first that ends."""
        delivered = failed = 0
        try:
            delivery, webhook, error = self._ended.get(timeout=wait)
            while True:
                self._busy.discard(webhook)
                conn.execute("select meshaudit.end_delivery(%s::bigint, %s::text)", [delivery, error])
                delivered, failed = delivered + (error is None), failed + (error is not None)
                delivery, webhook, error = self._ended.get_nowait()
        except Empty:
            return Sent(delivered, failed)


def send_due(conn: psycopg.Connection[Any]) -> Sent:
    """Send what is due now, and wait for the answers."""
    sender, total = _Sender(), Sent(0, 0)
    try:
        while sender.start(conn):
            sent = sender.end(conn, _TIMEOUT)
            total = Sent(total.delivered + sent.delivered, total.failed + sent.failed)
    except psycopg.Error as exc:
        raise translate(exc) from exc
    return total


def post(url: str, secret: str, message_id: str, body: dict[str, Any]) -> str | None:
    """Send one message; returns what went wrong. Raises nothing, whatever it is."""
    start = time.monotonic()
    try:
        return _post(url, secret, message_id, body)
    except Exception as exc:
        text = f"{type(exc).__name__} after {time.monotonic() - start:.1f} s: {exc}"
        # as the database takes it
        return text.encode(errors="backslashreplace").decode().replace("\0", "\\0")


def _post(url: str, secret: str, message_id: str, body: dict[str, Any]) -> str | None:
    from standardwebhooks import Webhook

    text = json.dumps(body, separators=(",", ":"), ensure_ascii=False)
    now = datetime.now(UTC)
    headers = {
        "content-type": "application/json",
        "user-agent": f"meshaudit/{__version__}",
        "webhook-id": message_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(secret).sign(message_id, now, text),
    }
    # Not asyncio.run(), which would wait for a name server that hangs.
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(_answer(url, text.encode(), headers))
    finally:
        loop.close()


async def _answer(url: str, content: bytes, headers: dict[str, str]) -> str | None:
    import httpx

    try:
        # httpx's own timeouts are for each read: who sends a byte now and then would never meet one.
        async with asyncio.timeout(_TIMEOUT):
            # No redirects: a signed message goes where it was meant to go. The answer's body is not read.
            async with (
                httpx.AsyncClient(timeout=None, follow_redirects=False, trust_env=False) as client,
                client.stream("POST", url, content=content, headers=headers) as answer,
            ):
                return None if answer.is_success else f"HTTP {answer.status_code}"
    except TimeoutError:
        return f"no answer within {_TIMEOUT:g} s"


def follow(dsn: str, *, stop: Event, log: Any, pause: float = PAUSE) -> None:
    """Send what becomes due until `stop` is set. Raises nothing: what cannot be sent waits in the outbox."""
    sender, delay, told = _Sender(), pause, ""
    while not stop.is_set():
        try:
            with psycopg.connect(dsn, autocommit=True, **_CONNECT) as conn:  # type: ignore[arg-type]
                while not stop.is_set():
                    sender.start(conn)
                    sent = sender.end(conn, pause)
                    if sent != (0, 0):
                        log("alerts sent", delivered=sent.delivered, failed=sent.failed)
                    delay, told = pause, ""
        except Exception as exc:
            error = _ours(exc)
            if error.message != told:
                log("alerts not sent", error=error.message, hint=error.hint)
                told = error.message
            stop.wait(delay)
            delay = min(delay * 2, _LAST_DELAY)


def _ours(exc: Exception) -> MeshauditError:
    if isinstance(exc, MeshauditError):
        return exc
    if isinstance(exc, psycopg.Error):
        return translate(exc)
    return MeshauditError(f"{type(exc).__name__}: {exc}", "it is tried again")
