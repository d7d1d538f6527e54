"""OpenTelemetry: real requests make spans, and no span holds a token, a claim, a filter's value or a secret."""

import asyncio
import time
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from meshaudit.api import tracing
from meshaudit.api.app import create
from meshaudit.api.settings import Settings
from tests.api_support import SECRET, bearer, gateway, record, token
from tests.support import Db


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """Where spans go instead of over the network."""
    made = InMemorySpanExporter()
    monkeypatch.setattr(tracing, "_exporter", lambda: made)
    return made


def _ask(settings: Settings, requests: list[tuple[str, dict[str, str]]]) -> list[int]:
    """Each request by its path and headers, of the application itself."""

    async def run() -> list[int]:
        application, app = create(settings)
        transport = httpx.ASGITransport(application)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=30) as client,
        ):
            return [(await client.get(path, headers=headers)).status_code for path, headers in requests]

    return asyncio.run(run())


def _text(span: ReadableSpan) -> str:
    parts: list[Any] = [span.to_json(), *(event.attributes for event in span.events)]
    return " ".join(str(part) for part in parts)


def test_spans_hold_nothing_that_is_confidential(db: Db, exporter: InMemorySpanExporter) -> None:
    login = gateway(db)
    db.su.execute("select meshaudit.grant_auditor('the-subject')")
    record(db, "the-key", scope="the-scope")
    row = db.su.execute("select secret_id from meshaudit.audit_logs where operation = 'create'").fetchone()
    assert row is not None
    settings = Settings(dsn=db.dsn(login), jwt_secret=SECRET, otel=True, stream_seconds=0.2)
    who = bearer("the-subject", email="the-claim@example.com") | {
        "Cookie": "session=the-cookie",
        "X-Api-Key": "the-header",
        "User-Agent": "the-agent",
    }
    expired = token(sub="the-subject", exp=int(time.time()) - 60)
    filters = f"?secret_id={row[0]}&scope=the-scope&user_identity=the-user"
    requests = [
        ("/api/audit-logs" + filters, who),
        ("/api/audit-logs/1", who),
        ("/api/audit-logs/export" + filters, who),
        ("/api/audit-logs/stream" + filters, who),
        ("/api/audit-logs?limit=the-mistake", who),
        ("/api/audit-logs", {"Authorization": f"Bearer {expired}"}),
        (f"/api/audit-logs?token={who['Authorization'][7:]}", who),
        ("/the-guess", who),
        ("/healthz", who),
        ("/metrics", who),
    ]
    assert _ask(settings, requests) == [200, 200, 200, 200, 400, 401, 400, 404, 200, 200]
    spans = exporter.get_finished_spans()
    routes = [(span.attributes or {}).get("http.route") for span in spans]
    # One each, whatever was streamed; none for what is asked every few seconds.
    assert routes == [
        "/api/audit-logs",
        "/api/audit-logs/{id}",
        "/api/audit-logs/export",
        "/api/audit-logs/stream",
        *["/api/audit-logs"] * 3,
        None,
    ]
    confidential = [str(row[0]), SECRET, expired, who["Authorization"][7:], "Bearer"]
    confidential += [
        f"the-{word}" for word in ("subject", "key", "scope", "claim", "cookie", "header", "user", "mistake")
    ]
    for span in spans:
        for word in confidential:
            assert word not in _text(span), (word, span.to_json())
    assert {span.resource.attributes["service.name"] for span in spans} == {"meshaudit"}
