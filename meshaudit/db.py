"""Connections as the commands use them, and one place where database errors become ours."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from meshaudit.errors import BadArgument, MeshauditError, NoPermission, translate

_TIMEOUT = 10  # seconds; libpq would wait for minutes for a host that swallows packets


@contextlib.contextmanager
def errors(permission_hint: str = "") -> Iterator[None]:
    """Translate what the database raises; `permission_hint` says what this caller would need."""
    try:
        yield
    except psycopg.Error as exc:
        raise _hinted(translate(exc), permission_hint) from exc
    except NoPermission as error:
        raise _hinted(error, permission_hint) from error.__cause__


def _hinted(error: MeshauditError, permission_hint: str) -> MeshauditError:
    # Only in place of the hint that fits every case; a better one stays.
    if permission_hint and isinstance(error, NoPermission) and error.hint == NoPermission.default_hint:
        error.hint = permission_hint
    return error


@contextlib.contextmanager
def connect(dsn: str = "") -> Iterator[psycopg.Connection[Any]]:
    """An autocommit connection; an empty DSN leaves everything to libpq's variables."""
    with errors():
        try:
            given = conninfo_to_dict(dsn)
        except psycopg.ProgrammingError as exc:
            message = str(exc).strip()
            raise BadArgument(message, "a DSN looks like postgresql://user:password@host:5432/db") from exc
        options: dict[str, Any] = {"fallback_application_name": "meshaudit"}
        if "connect_timeout" not in given and "PGCONNECT_TIMEOUT" not in os.environ:
            options["connect_timeout"] = _TIMEOUT
        # Poolers hand each transaction to another server, which knows none of our prepared statements.
        with psycopg.connect(dsn, autocommit=True, prepare_threshold=None, **options) as conn:
            # psycopg warns of time zones it does not know, and a client's PGTZ may be one.
            conn.execute("select pg_catalog.set_config('timezone', 'UTC', false)")
            yield conn


def forget_other_servers() -> None:
    """Drop libpq's variables: PGHOSTADDR or PGSSLMODE are meant for other servers than one of our own."""
    for name in [name for name in os.environ if name.startswith("PG")]:
        del os.environ[name]
