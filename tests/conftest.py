"""Fixtures. Which server they run on, by the first of these that is set:

MESHAUDIT_TEST_DSN     any server, as superuser; made databases and roles carry unique names
MESHAUDIT_TEST_IMAGE   a container image, through testcontainers
MESHAUDIT_TEST_PG      15, 16, 17, 18 or embedded (the default)
"""

import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, settings

from meshaudit.server import Server
from tests import servers
from tests.flavours import FLAVOURS, Templates
from tests.support import SETTINGS, Db, Pg

# One database serves all examples of a property.
_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}
settings.register_profile("local", **_COMMON)  # type: ignore[arg-type]
settings.register_profile("ci", derandomize=True, print_blob=True, **_COMMON)  # type: ignore[arg-type]
settings.load_profile("ci" if os.environ.get("CI") else "local")

# What some tests need and skip without; the header tells which are there.
OPTIONAL_TOOLS = ("sqitch", "pgbouncer", "faketime")


def pytest_configure() -> None:
    # Only an exception lets fixtures stop their servers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # A shell's background job ignores it, and so would the programs that tests interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> list[str]:
    found = (f"{t} {'found' if shutil.which(t) else 'ABSENT'}" for t in OPTIONAL_TOOLS)
    return [f"postgres: {_wanted()}", f"optional tools: {', '.join(found)}"]


def _wanted() -> str:
    if os.environ.get("MESHAUDIT_TEST_DSN"):
        return "MESHAUDIT_TEST_DSN"
    if image := os.environ.get("MESHAUDIT_TEST_IMAGE"):
        return f"image {image}"
    return os.environ.get("MESHAUDIT_TEST_PG") or "embedded"


@contextlib.contextmanager
def _server() -> Iterator[Pg]:
    server: Server | None = None
    with contextlib.ExitStack() as stack:
        if given := os.environ.get("MESHAUDIT_TEST_DSN"):
            dsn = given
        elif image := os.environ.get("MESHAUDIT_TEST_IMAGE"):
            dsn = stack.enter_context(_container(image))
        else:
            bindir = servers.bindir_for(_wanted())
            server = stack.enter_context(
                Server.temporary(bindir=bindir, settings=SETTINGS, parent=servers.memory())
            )
            dsn = server.dsn()
        pg = Pg(dsn, server)
        stack.callback(pg.close)
        yield pg


@contextlib.contextmanager
def _container(image: str) -> Iterator[str]:
    from testcontainers.community.postgres import PostgresContainer

    container = PostgresContainer(image, username="postgres", password="postgres", driver=None)
    flags = " ".join(f"-c {key}={value}" for key, value in SETTINGS.items())
    with container.with_command(f"postgres {flags}") as running:
        yield running.get_connection_url()


@pytest.fixture(scope="session")
def pg() -> Iterator[Pg]:
    """The server, with nothing of Supabase on it."""
    with _server() as pg:
        yield pg


@pytest.fixture(scope="session")
def template(pg: Pg) -> Iterator[Templates]:
    """Template databases by flavour, and `clone` and `clone_empty` to copy them."""
    with contextlib.ExitStack() as stack:
        supabase: list[Pg] = []

        def pg_for(flavour: str) -> Pg:
            # A server of its own: there the Supabase-like role makes the product's roles itself,
            # which it could not where a superuser has made them.
            if flavour == "superuser" or os.environ.get("MESHAUDIT_TEST_DSN"):
                return pg
            if not supabase:
                supabase.append(stack.enter_context(_server()))
            return supabase[0]

        templates = Templates(pg_for)
        yield templates
        templates.drop()


def _fresh(template: Templates, flavour: str) -> Iterator[Db]:
    db = template.clone(flavour)
    try:
        yield db
    finally:
        db.drop()


@pytest.fixture
def db(template: Templates) -> Iterator[Db]:
    """A database of this test's own, installed by a superuser."""
    yield from _fresh(template, "superuser")


@pytest.fixture
def supabase_db(template: Templates) -> Iterator[Db]:
    """One installed by a Supabase-like role, under today's default privileges."""
    yield from _fresh(template, "supabase_new")


@pytest.fixture(params=FLAVOURS)
def any_db(request: pytest.FixtureRequest, template: Templates) -> Iterator[Db]:
    """The same test on every flavour."""
    yield from _fresh(template, request.param)


@pytest.fixture
def empty_db(template: Templates) -> Iterator[Db]:
    """A database without meshaudit, for migrations."""
    db = template.clone_empty("superuser")
    try:
        yield db
    finally:
        db.drop()


@pytest.fixture(params=FLAVOURS)
def any_empty_db(request: pytest.FixtureRequest, template: Templates) -> Iterator[Db]:
    """A database without meshaudit, of every flavour."""
    keeper = None
    if os.environ.get("MESHAUDIT_TEST_DSN"):
        # There a Supabase-like role could not make again the roles that a superuser had made and dropped.
        keeper = template.clone("superuser")
    db = template.clone_empty(request.param)
    try:
        yield db
    finally:
        db.drop()
        if keeper is not None:
            keeper.drop()


@pytest.fixture
def conn(db: Db) -> psycopg.Connection[Any]:
    """A superuser's connection to `db`."""
    return db.su
