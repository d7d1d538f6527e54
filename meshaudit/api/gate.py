"""From a caller to a transaction in its name.

As PostgREST does it: the server logs in as a gateway role and, in each transaction, becomes the token's
role with its
claims, for that transaction only. Which roles a token may name is what the login may SET ROLE to, less
whatever would be
stronger than row security: superusers and the log's owner.

The client's address is the one fact that this server adds. What a client writes into address headers
counts only if it
is a trusted proxy; else they are dropped, and the peer's address takes their place.
"""

import ipaddress
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, LiteralString

from fastapi import Request
from psycopg import AsyncConnection
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from meshaudit.api.auth import Caller
from meshaudit.api.problems import forbidden, unavailable
from meshaudit.api.settings import Settings

Connection = AsyncConnection[DictRow]
_WAIT = 5.0  # seconds for a connection of the pool
_PLAIN_HEADERS = ("user-agent", "x-request-id")
_PRIVATE_HEADERS = ("authorization", "cookie", "proxy-authorization")

_BECOME = """
select pg_catalog.set_config('search_path', '', true), pg_catalog.set_config('timezone', 'UTC', true),
  pg_catalog.set_config('statement_timeout', %(timeout)s, true),
  pg_catalog.set_config('role', r.rolname, true),
  pg_catalog.set_config('request.jwt.claims', %(claims)s, true),
  pg_catalog.set_config('request.headers', %(headers)s, true),
  pg_catalog.set_config('request.cookies', '{}', true)
from pg_catalog.pg_roles r
where r.rolname = %(role)s and r.rolname <> session_user
  and pg_catalog.pg_has_role(session_user, r.oid, 'member')
  and not pg_catalog.pg_has_role(r.oid, 'meshaudit_owner', 'member')
"""
_AS_LOGIN = """
select pg_catalog.set_config('search_path', '', true), pg_catalog.set_config('timezone', 'UTC', true),
  pg_catalog.set_config('statement_timeout', %(timeout)s, true)
"""


class Gate:
    """The pool, and what goes through it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._acting = 0
        self.pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            settings.dsn,
            min_size=1,
            max_size=settings.pool_size,
            max_waiting=4 * settings.pool_size,
            timeout=_WAIT,
            open=False,
            check=AsyncConnectionPool.check_connection,
            # A server that comes back is found again within this time.
            reconnect_timeout=60,
            kwargs={
                "autocommit": True,
                "row_factory": dict_row,
                # Poolers hand each transaction to another server, which knows none of our prepared
                # statements.
                "prepare_threshold": None,
                "connect_timeout": 10,
                "keepalives_idle": 10,
                "keepalives_interval": 5,
                "keepalives_count": 3,
                "fallback_application_name": "meshaudit serve",
            },
        )

    @asynccontextmanager
    async def acting(
        self, caller: Caller, request: Request, *, isolation: LiteralString = ""
    ) -> AsyncIterator[Connection]:
        """A transaction as the caller; committed at the end."""
        async with self._connection() as conn, conn.transaction():
            if isolation:
                await conn.execute("set transaction isolation level " + isolation)
            await self._become(conn, caller, request)
            yield conn

    @asynccontextmanager
    async def _connection(self, timeout: float | None = None) -> AsyncIterator[Connection]:
        try:
            conn = await self.pool.getconn(timeout)
        except PoolTimeout:
            if self._acting < self._settings.pool_size:
                raise unavailable("database", "the database does not answer as it should", 5) from None
            raise
        self._acting += 1
        try:
            async with conn:
                yield conn
        finally:
            self._acting -= 1
            await self.pool.putconn(conn)

    async def _become(self, conn: Connection, caller: Caller, request: Request) -> None:
        timeout = str(int(self._settings.statement_seconds * 1000))
        if caller.role is None:
            await conn.execute(_AS_LOGIN, {"timeout": timeout})
            return
        cursor = await conn.execute(
            _BECOME,
            {
                "timeout": timeout,
                "role": caller.role,
                "claims": caller.claims,
                "headers": json.dumps(self._headers(request)),
            },
        )
        if cursor.rowcount != 1:
            # One answer for roles that do not exist and roles that may not be taken.
            raise forbidden("the token names no role that this server may take")
        # each time: the setting may have changed
        row = await (await conn.execute("select meshaudit.is_gateway() as believed")).fetchone()
        if not (row and row["believed"]):
            # Otherwise everybody would count as the login, and see what that may see.
            hint = "add the server's login to the setting gateway_roles: meshaudit.set_setting()"
            raise unavailable("not-a-gateway", "the database does not believe this server's claims", 60, hint)

    def _headers(self, request: Request) -> dict[str, str]:
        """What the database is told of the request's headers."""
        peer = request.client.host if request.client else ""
        sent = request.headers
        if self._trusts(peer):
            # Of a list the last address counts, which is the one that the proxy added.
            return {name: ", ".join(sent.getlist(name)) for name in sent if name not in _PRIVATE_HEADERS}
        headers = {name: sent[name] for name in _PLAIN_HEADERS if name in sent}
        return headers | ({"x-forwarded-for": peer} if peer else {})

    def _trusts(self, peer: str) -> bool:
        try:
            address = ipaddress.ip_address(peer)
        except ValueError:
            return False
        return any(address in network for network in self._settings.trusted_proxies)

    async def ready(self) -> None:
        """Raises unless the database answers."""
        async with self._connection(2) as conn:
            await conn.execute("select 1")


async def fetch_all(conn: Connection, statement: LiteralString, parameters: dict[str, Any]) -> list[DictRow]:
    """All rows."""
    cursor = await conn.execute(statement, parameters)
    return await cursor.fetchall()
