"""What the OpenAPI document says that answers look like."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

_HASH = "^[0-9a-f]{64}$"
_EXAMPLE: dict[str, Any] = {
    "id": 6,
    "secret_id": "44e60559-bcd6-440d-8d99-6396399f27f9",
    "access_type": "read",
    "timestamp": "2026-11-24T03:41:11.498000Z",
    "user_identity": "deployer",
    "ip_address": "10.0.0.7",
    "operation": "read",
    "outcome": "granted",
    "secret_table": "meshaudit.secrets",
    "scope": "payments",
    "identity_source": "database",
    "claimed_identity": None,
    "db_user": "deployer",
    "db_role": "deployer",
    "application_name": "release",
    "user_agent": None,
    "request_id": None,
    "access_id": "0b1ff0a4-7d2c-4a83-9c0c-2d0f4fd0b2a1",
    "lane": 247,
    "seq": 4,
    "prev_hash": "2f" * 32,
    "hash": "9c" * 32,
}


class Entry(BaseModel):
    """An entry of the log: one access to one secret. No value is ever in it."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    id: int = Field(description="Number of the entry.")
    secret_id: str = Field(description="Which secret.")
    access_type: Literal["read", "write"]
    timestamp: str = Field(
        description="When, in UTC, to the microsecond.", json_schema_extra={"format": "date-time"}
    )
    user_identity: str = Field(description="Who, as the server knows: the login, or the JWT's subject.")
    ip_address: str | None = Field(description="From where.")
    operation: Literal["read", "create", "update", "delete"]
    outcome: Literal["granted", "denied", "rolled_back"]
    secret_table: str = Field(description="Which table; meshaudit.secrets is the vault.")
    scope: str = Field(description="Tenant or project of the secret.")
    identity_source: Literal["jwt", "database"]
    claimed_identity: str | None = Field(description="What the caller said about itself. Not verified.")
    db_user: str = Field(description="session_user.")
    db_role: str = Field(description="The role that called.")
    application_name: str | None = Field(description="As the client set it. Not verified.")
    user_agent: str | None = Field(description="From the gateway's request headers.")
    request_id: str | None = Field(description="From the gateway's request headers.")
    access_id: str = Field(description="Unique to the access.", json_schema_extra={"format": "uuid"})
    lane: int = Field(description="The chain that the entry is in.")
    seq: int = Field(description="Place in the lane.")
    prev_hash: str = Field(description="hash of the entry before it in the lane, in hex.", pattern=_HASH)
    hash: str = Field(
        description="SHA-256 of prev_hash and the entry's canonical bytes, in hex.", pattern=_HASH
    )


class Page(BaseModel):
    """A page of a search."""

    items: list[Entry]
    next_cursor: str | None = Field(
        description="Where the next page begins; null after the last one.", examples=["0003" + "4f" * 14]
    )


class Check(BaseModel):
    """One check of the log's health."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"check": "partitions ahead", "ok": True, "detail": "3 partitions ahead of now"}]
        }
    )

    check: str = Field(description="What was looked at.")
    ok: bool
    detail: str = Field(description="What was found, and what to do about it.")


class Status(BaseModel):
    """The log's health."""

    ok: bool = Field(description="Whether all checks are.")
    checks: list[Check]


class Alive(BaseModel):
    """That the server runs."""

    status: Literal["ok"]


class ProblemDocument(BaseModel):
    """An error (RFC 9457)."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "urn:meshaudit:problem:bad-parameter",
                    "title": "Bad Request",
                    "status": 400,
                    "detail": "limit must be 1 to 1000",
                    "hint": "for more, go on with next_cursor",
                    "parameter": "limit",
                }
            ]
        }
    )

    type: str = Field(description="Which kind: urn:meshaudit:problem:KIND.")
    title: str
    status: int
    detail: str = Field(description="What is wrong.")
    hint: str | None = Field(default=None, description="What would mend it.")
    parameter: str | None = Field(default=None, description="The parameter that is to blame.")


_WHEN = {
    400: "A parameter is unknown, given twice, or has no meaning; the document names it.",
    401: "No token, or one that is not valid.",
    403: "The token's role may not do this.",
    404: "No such entry, or not for this caller.",
    410: "The stream no longer reaches back to Last-Event-ID.",
    421: "Without authentication only loopback's names are answered to.",
    429: "This caller has too much open.",
    503: "The server is at its limits, or its database is not there; Retry-After says when to ask again.",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors that a route may answer with. 404, 405, 413, 414, 421 and 431 are any address's."""
    found: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        reference = {"$ref": "#/components/schemas/ProblemDocument"}
        found[status] = {
            "description": _WHEN[status],
            "content": {"application/problem+json": {"schema": reference}},
        }
        if status in (429, 503):
            text = {"description": "Seconds to wait.", "schema": {"type": "string", "pattern": "^[0-9]+$"}}
            found[status]["headers"] = {"Retry-After": text}
        if status == 401:
            text = {"description": "Bearer.", "schema": {"type": "string"}}
            found[status]["headers"] = {"WWW-Authenticate": text}
    return found
