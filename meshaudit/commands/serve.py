"""serve: the HTTP API."""

import ipaddress
import os
from typing import Annotated, Any

import typer
from psycopg.rows import dict_row

from meshaudit import db, output
from meshaudit.commands.options import Dsn, dsn
from meshaudit.errors import BadArgument, MeshauditError

# Whoever holds a token would hold these too.
_POWER = """
select session_user as name, r.rolsuper, r.rolbypassrls,
  coalesce((select pg_catalog.pg_has_role(r.oid, o.oid, 'member') from pg_catalog.pg_roles o
            where o.rolname = 'meshaudit_owner'), false) as owner,
  exists (select from pg_catalog.pg_namespace n where n.nspname = 'meshaudit') as migrated
from pg_catalog.pg_roles r where r.rolname = session_user
"""


def _option(name: str, text: str, metavar: str = "TEXT") -> Any:
    return typer.Option(name, help=text, metavar=metavar)


def serve(
    context: typer.Context,
    host: Annotated[str, _option("--host", "Address to listen on.", "ADDRESS")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 8147,
    issuer: Annotated[str | None, _option("--issuer", "Tokens' iss; or MESHAUDIT_JWT_ISSUER.")] = None,
    audience: Annotated[str | None, _option("--audience", "Tokens' aud; or MESHAUDIT_JWT_AUDIENCE.")] = None,
    cors_origin: Annotated[
        list[str] | None, _option("--cors-origin", "Pages of this origin may ask; repeatable.", "ORIGIN")
    ] = None,
    trusted_proxy: Annotated[
        list[str] | None,
        _option("--trusted-proxy", "Believe its address headers; repeatable.", "NETWORK"),
    ] = None,
    pool_size: Annotated[int, typer.Option("--pool-size", min=2, max=100, help="Database connections.")] = 8,
    statement_timeout: Annotated[
        float, typer.Option("--statement-timeout", min=0.01, max=3600, help="Seconds for one search.")
    ] = 10.0,
    stream_for: Annotated[
        float, typer.Option("--stream-for", min=0.1, help="Seconds that a stream lasts at most.")
    ] = 3600.0,
    max_requests: Annotated[int, typer.Option("--max-requests", min=1, help="Requests at a time.")] = 64,
    max_streams: Annotated[int, typer.Option("--max-streams", min=1, help="Streams at a time.")] = 100,
    otel: Annotated[
        bool, typer.Option("--otel", help="Send OpenTelemetry traces; OTEL_* says where.")
    ] = False,
    database: Dsn = None,
) -> None:
    """Serve the audit log over HTTP; tokens are checked by MESHAUDIT_JWT_SECRET or MESHAUDIT_JWKS."""
    try:
        from meshaudit.api import server, settings
    except ImportError as exc:
        raise MeshauditError(f"serve needs {exc.name}", 'pip install "meshaudit[api]"') from exc
    given = settings.from_environment(os.environ)
    wanted = settings.Settings(
        dsn=dsn(context, database),
        jwt_secret=given["jwt_secret"],
        jwks=given["jwks"],
        issuer=issuer or given["issuer"],
        audience=audience or given["audience"],
        cors_origins=tuple(cors_origin or ()),
        trusted_proxies=settings.networks("--trusted-proxy", trusted_proxy or []),
        pool_size=pool_size,
        statement_seconds=statement_timeout,
        stream_seconds=stream_for,
        max_requests=max_requests,
        max_streams=max_streams,
        otel=otel,
    )
    if not wanted.authenticated and not _loopback(host):
        raise BadArgument(
            f"--host: {host} is not loopback, and there is no authentication",
            "set MESHAUDIT_JWT_SECRET or MESHAUDIT_JWKS, or listen on 127.0.0.1",
        )
    login = _check_login(wanted.dsn, authenticated=wanted.authenticated)
    listening = server.bind(host, port)
    with listening:
        if not wanted.authenticated:
            output.note(f"no authentication: whoever reaches this port reads the log as {login}")
        server.run(wanted, listening)


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_login(given: str, *, authenticated: bool) -> str:
    """Its name; it must answer, have the schema, and as a gateway no power of its own."""
    with db.connect(given) as conn, db.errors(), conn.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute(_POWER).fetchone()
    assert row is not None
    if not row["migrated"]:
        from meshaudit.errors import NotMigrated

        raise NotMigrated()
    power = next((what for what in ("rolsuper", "rolbypassrls", "owner") if row[what]), None)
    if authenticated and power:
        what = {
            "rolsuper": "is a superuser",
            "rolbypassrls": "bypasses row security",
            "owner": "owns the log",
        }[power]
        raise BadArgument(
            f"the login {row['name']} {what}: the server must have no power of its own",
            "connect as a gateway login, such as PostgREST's authenticator: create role … login noinherit",
        )
    return str(row["name"])
