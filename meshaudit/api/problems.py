"""What goes wrong, as RFC 9457 problem documents. A problem tells what the caller did and may do; never
what the
database holds, or how it is reached."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import psycopg
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from psycopg_pool import PoolTimeout, TooManyRequests
from starlette.exceptions import HTTPException

MEDIA_TYPE = "application/problem+json"
_log = logging.getLogger("meshaudit.api")


@dataclass(eq=False)
class Problem(Exception):
    """An answer that is an error. `kind` names it in its type, urn:meshaudit:problem:KIND."""

    status: int
    kind: str
    detail: str
    hint: str = ""
    parameter: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    def response(self) -> Response:
        """The document."""
        body: dict[str, Any] = {
            "type": f"urn:meshaudit:problem:{self.kind}",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
        }
        if self.hint:
            body["hint"] = self.hint
        if self.parameter:
            body["parameter"] = self.parameter
        return JSONResponse(body, self.status, dict(self.headers), MEDIA_TYPE)


def bad_parameter(name: str, detail: str, hint: str = "") -> Problem:
    """400."""
    return Problem(400, "bad-parameter", detail, hint, name)


def unauthenticated(detail: str, *, error: str = "invalid_token") -> Problem:
    """401, with the challenge of RFC 6750. Without a token the challenge names no error."""
    challenge = 'Bearer realm="meshaudit"' + (f', error="{error}"' if error else "")
    return Problem(401, "unauthenticated", detail, headers={"WWW-Authenticate": challenge})


def forbidden(detail: str, hint: str = "") -> Problem:
    """403."""
    return Problem(403, "forbidden", detail, hint)


def not_found(detail: str) -> Problem:
    """404."""
    return Problem(404, "not-found", detail)


def gone(detail: str, hint: str) -> Problem:
    """410: the stream no longer reaches back so far."""
    return Problem(410, "gone", detail, hint, "Last-Event-ID")


def too_many(detail: str, seconds: int) -> Problem:
    """429: this caller has too much open."""
    return Problem(429, "too-many", detail, headers={"Retry-After": str(seconds)})


def unavailable(kind: str, detail: str, seconds: int, hint: str = "") -> Problem:
    """503: later, perhaps."""
    return Problem(503, kind, detail, hint, headers={"Retry-After": str(seconds)})


def of_database(exc: Exception) -> Problem:
    """What an error of the database, or of the way to it, means to the caller."""
    if isinstance(exc, PoolTimeout | TooManyRequests):
        return unavailable("busy", "all connections to the database are in use, or it cannot be reached", 1)
    state = exc.sqlstate if isinstance(exc, psycopg.Error) else None
    diag = exc.diag if isinstance(exc, psycopg.Error) else None
    message, hint = (diag.message_primary or "", diag.message_hint or "") if diag else ("", "")
    match state:
        case "MA001":
            return forbidden(message, hint)
        case "MA004":
            return not_found(message)
        case "MA005":
            return Problem(400, "bad-parameter", message, hint)
        case "42501":
            return forbidden(
                "the token's role may not do this",
                "the role must be a member of meshaudit_auditor: name it in the setting api_roles, then call"
                " meshaudit.grant_auditor() for the token's sub",
            )
        case "57014":
            return unavailable(
                "timeout", "the search took too long and was stopped", 5, "narrow the range of time"
            )
        case "MA002" | "25006":
            return unavailable(
                "cannot-record", "reading the log is recorded, and this cannot be recorded now", 5
            )
        case "42P01" | "42883" | "3F000" | "42704":
            return unavailable(
                "not-migrated", "this database's meshaudit is missing or older", 60, "meshaudit migrate"
            )
    if state is None or state[:2] in ("08", "53", "57", "40", "55"):
        _log.warning("database: %s", " ".join(str(exc).split()))
        return unavailable("database", "the database does not answer as it should", 5)
    if state.startswith("22"):
        return Problem(400, "bad-parameter", "a parameter has a value that the database cannot take")
    _log.error("database: %s %s", state, message)
    return Problem(500, "internal", "something went wrong; the server's log says what")


def install(app: FastAPI) -> None:
    """Let every error leave as a problem document."""

    async def problem(_: Request, exc: Exception) -> Response:
        assert isinstance(exc, Problem)
        return exc.response()

    async def database(_: Request, exc: Exception) -> Response:
        return of_database(exc).response()

    async def invalid(_: Request, exc: Exception) -> Response:
        assert isinstance(exc, RequestValidationError)
        return _invalid(exc).response()

    async def http(_: Request, exc: Exception) -> Response:
        assert isinstance(exc, HTTPException)
        kind = {404: "not-found", 405: "method-not-allowed"}.get(exc.status_code, "http")
        detail = {404: "there is nothing at this address", 405: "this address does not take this method"}
        said = detail.get(exc.status_code, str(exc.detail))
        return Problem(exc.status_code, kind, said, headers=exc.headers or {}).response()

    async def internal(_: Request, exc: Exception) -> Response:
        return Problem(500, "internal", "something went wrong; the server's log says what").response()

    app.add_exception_handler(Exception, internal)
    app.add_exception_handler(Problem, problem)
    app.add_exception_handler(psycopg.Error, database)
    app.add_exception_handler(PoolTimeout, database)
    app.add_exception_handler(TooManyRequests, database)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)


def _invalid(exc: RequestValidationError) -> Problem:
    first = exc.errors()[0]
    place = [str(part) for part in first["loc"]]
    name = place[-1] if len(place) > 1 else ""
    if first["type"] == "extra_forbidden":
        return bad_parameter(
            name, f"there is no parameter {name!r}", "the OpenAPI document lists them: /openapi.json"
        )
    return bad_parameter(name, f"{name}: {first['msg']}")
