"""Sending alerts to webhooks, signed by the Standard Webhooks scheme (standardwebhooks.com).

What is due comes from the outbox, leased for a minute; a receiver that fails or hangs gets it again later,
with the same webhook-id, so that it can tell a duplicate. Nobody waits for a receiver: no access, and not
the sealer.
"""

import json
import time
from datetime import UTC, datetime
from threading import Event
from typing import Any, NamedTuple

import psycopg

from meshaudit import __version__
from meshaudit.errors import MeshauditError, translate

PAUSE = 1.0
_TIMEOUT = 10.0
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


def send_due(conn: psycopg.Connection[Any]) -> Sent:
    """Send what is due now."""
    delivered = failed = 0
    try:
        if not available():
            if conn.execute("select from meshaudit.webhooks() where waiting > 0").rowcount:
                raise MISSING
            return Sent(0, 0)
        while due := conn.execute(
            "select delivery_id, url, secret, message_id, body from meshaudit.take_deliveries(1)"
        ).fetchone():
            number, url, secret, message, body = due
            error = post(url, secret, message, body)
            conn.execute("select meshaudit.end_delivery(%s, %s)", [number, error])
            delivered, failed = delivered + (error is None), failed + (error is not None)
    except psycopg.Error as exc:
        raise translate(exc) from exc
    return Sent(delivered, failed)


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
    import httpx
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
    # No redirects: a signed message goes where it was meant to go. The answer's body is not read.
    with (
        httpx.Client(timeout=_TIMEOUT, follow_redirects=False, trust_env=False) as client,
        client.stream("POST", url, content=text.encode(), headers=headers) as answer,
    ):
        return None if answer.is_success else f"HTTP {answer.status_code}"


def follow(dsn: str, *, stop: Event, log: Any, pause: float = PAUSE) -> None:
    """Send what becomes due until `stop` is set. Raises nothing: what cannot be sent waits in the outbox."""
    delay, told = pause, ""
    while not stop.is_set():
        try:
            with psycopg.connect(dsn, autocommit=True, **_CONNECT) as conn:  # type: ignore[arg-type]
                while not stop.is_set():
                    sent = send_due(conn)
                    if sent != (0, 0):
                        log("alerts sent", delivered=sent.delivered, failed=sent.failed)
                    delay, told = pause, ""
                    stop.wait(pause)
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
