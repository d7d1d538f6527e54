"""The application: its parts, its routes, its OpenAPI document and the page that shows it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import fastapi_offline
from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse, HTMLResponse, Response
from starlette.types import ASGIApp

from meshaudit import __version__
from meshaudit.api import export, health, logs, problems, pump, stream
from meshaudit.api.auth import Tokens
from meshaudit.api.context import Context
from meshaudit.api.gate import Gate
from meshaudit.api.limits import Limits
from meshaudit.api.listener import Listener
from meshaudit.api.metrics import Metrics
from meshaudit.api.models import ProblemDocument
from meshaudit.api.settings import Settings

_LAST_WORDS = 6.0  # seconds: more than a Reading takes for its last entry
LOOPBACK_NAMES = frozenset(("localhost", "127.0.0.1", "::1"))
_STATIC = Path(fastapi_offline.__file__).parent / "static"
_DOCS = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>meshaudit API</title>
<link rel="stylesheet" href="docs/swagger-ui.css"></head>
<body><div id="swagger-ui"></div>
<script src="docs/swagger-ui-bundle.js"></script><script src="docs/start.js"></script></body></html>
"""
_START = 'SwaggerUIBundle({url: "openapi.json", dom_id: "#swagger-ui", deepLinking: true});\n'
_ABOUT = """\
Who read or changed which secret, when and from where.

Each request runs in the database as the token's role with the token's claims, and row security decides
what it shows.
Errors are problem documents (RFC 9457).
"""


def create(settings: Settings) -> tuple[ASGIApp, FastAPI]:
    """The application as a server runs it, and the framework's part of it."""
    app = FastAPI(
        title="meshaudit",
        version=__version__,
        description=_ABOUT,
        lifespan=_lifespan,
        docs_url=None,
        redoc_url=None,
        # it would send the client, and its token, to whatever host the request names
        redirect_slashes=False,
    )
    metrics = Metrics()
    app.state.context = Context(settings, Tokens(settings), Gate(settings), metrics, Listener(settings.dsn))
    # The longer paths first: /api/audit-logs/{id} fits them all.
    for module in (export, stream, logs, health):
        app.include_router(module.router)
    _document(app, authenticated=settings.authenticated)
    _serve_docs(app)
    problems.install(app)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET"],
            allow_headers=["Authorization", "Last-Event-ID", "X-Request-Id"],
            expose_headers=["X-Request-Id", "Retry-After"],
        )
    if settings.otel:
        from meshaudit.api.tracing import instrument

        instrument(app)
    hosts = frozenset() if settings.authenticated else LOOPBACK_NAMES
    return Limits(app, metrics, settings.max_requests, hosts), app


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    parts: Context = app.state.context
    await parts.gate.pool.open()
    listening = asyncio.create_task(parts.listener.run())
    try:
        yield
    finally:
        listening.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await listening
        # they record how far they came
        await pump.ended(_LAST_WORDS)
        await parts.gate.pool.close()
        if provider := getattr(app.state, "tracer_provider", None):
            await asyncio.to_thread(provider.shutdown)


def _document(app: FastAPI, *, authenticated: bool) -> None:
    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _openapi(app, authenticated=authenticated)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _openapi(app: FastAPI, *, authenticated: bool) -> dict[str, Any]:
    document = get_openapi(
        title=app.title,
        version=app.version,
        description=app.description,
        routes=app.routes,
        openapi_version="3.1.0",
    )
    schemas = document["components"]["schemas"]
    schemas["ProblemDocument"] = ProblemDocument.model_json_schema()
    # The framework's own form of an error, which nothing here has.
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for path, item in document["paths"].items():
        for operation in item.values():
            operation["responses"].pop("422", None)
            for parameter in operation.get("parameters", []):
                _plain(parameter)
            if authenticated and (path.startswith("/api/") or path == "/metrics"):
                operation["security"] = [{"token": []}]
    if authenticated:
        document["components"]["securitySchemes"] = {
            "token": {
                "type": "http",
                "scheme": "bearer",
                "bearerFormat": "JWT",
                "description": "HS256, RS256 or ES256.",
            }
        }
    return document


def _plain(parameter: dict[str, Any]) -> None:
    """A parameter in a query is a string or is not there: it is never null."""
    schema = parameter["schema"]
    for choice in schema.pop("anyOf", []):
        if choice.get("type") != "null":
            schema.update(choice)
    if examples := schema.pop("examples", None):
        parameter["examples"] = {f"example {n}": {"value": value} for n, value in enumerate(examples, 1)}
    schema.pop("title", None)


def _serve_docs(app: FastAPI) -> None:
    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(_DOCS)

    @app.get("/docs/start.js", include_in_schema=False)
    async def start() -> Response:
        return Response(_START, media_type="text/javascript")

    @app.get("/docs/{name}", include_in_schema=False)
    async def static(name: str, _: Request) -> Response:
        if name not in ("swagger-ui-bundle.js", "swagger-ui.css"):
            raise problems.not_found("there is nothing at this address")
        return FileResponse(_STATIC / name)
