"""What the tests stand on: a Postgres (Pg), databases cloned from templates (Db), and waiting by watching.

Roles belong to the whole server, databases do not. So every name made here carries the process's tag, and
two test workers never meet, not even on one shared server.
"""

import itertools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from meshaudit.server import Server

TAG = f"{os.environ.get('PYTEST_XDIST_WORKER', 'main')}_{os.getpid()}"
# Every role made here has it: servers that trust nobody must be testable too.
PASSWORD = "test"
_numbers = itertools.count(1)

SETTINGS = {
    "wal_level": "logical",
    "max_connections": "300",
    "max_prepared_transactions": "50",
    "max_locks_per_transaction": "256",
    "max_wal_senders": "10",
    "max_replication_slots": "20",
    "shared_buffers": "128MB",
    # Durability is tested by killing processes, which loses nothing that reached the kernel.
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "on",
}


def unique(prefix: str) -> str:
    """A name that no other test, worker or earlier run uses."""
    return f"{prefix}_{TAG}_{next(_numbers)}"


def wait_until(predicate: Callable[[], Any], timeout: float = 10, what: str = "the expected state") -> Any:
    """Poll what the server itself says (pg_stat_activity, pg_locks); never guess with a sleep."""
    deadline = time.monotonic() + timeout
    while True:
        if found := predicate():
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come within {timeout} s")
        time.sleep(0.01)


@dataclass
class Pg:
    """One running server, reached as a superuser."""

    superuser_dsn: str
    server: Server | None = None

    def __post_init__(self) -> None:
        self.superuser = str(conninfo_to_dict(self.superuser_dsn).get("user", "postgres"))
        self.admin: psycopg.Connection[Any] = psycopg.connect(self.superuser_dsn, autocommit=True)
        self.version = self.admin.info.server_version // 10000

    def dsn(self, dbname: str | None = None, user: str | None = None) -> str:
        """A DSN for that database and role; the superuser's own by default."""
        changes: dict[str, str] = {}
        if dbname is not None:
            changes["dbname"] = dbname
        if user is not None and user != self.superuser:
            changes |= {"user": user, "password": PASSWORD}
        return make_conninfo(self.superuser_dsn, **changes)

    def has_extension(self, name: str) -> bool:
        """Whether this server could create that extension."""
        found = self.run("select from pg_available_extensions where name = %s", name)
        return found.rowcount > 0

    def run(self, statement: str, *params: Any) -> psycopg.Cursor[Any]:
        """A statement as superuser, in the maintenance database."""
        return self.admin.execute(statement.encode(), params or None)

    def create_role(self, name: str, options: str = "login") -> None:
        """A role with the tests' password, unless it is there."""
        if self.run("select from pg_roles where rolname = %s", name).rowcount == 0:
            self.admin.execute(
                sql.SQL("create role {} password {} {}").format(
                    sql.Identifier(name), PASSWORD, sql.SQL(options)
                )
            )

    def create_database(self, name: str, *, template: str | None = None, owner: str = "") -> None:
        """A database, cloned where a template is named."""
        statement = sql.SQL("create database {}").format(sql.Identifier(name))
        if owner:
            statement += sql.SQL(" owner {}").format(sql.Identifier(owner))
        if template:
            statement += sql.SQL(" template {}").format(sql.Identifier(template))
        self.admin.execute(statement)

    def drop_database(self, name: str) -> None:
        """Drop it whoever is connected, replication slots in use included (FORCE minds those)."""
        busy = (
            "select pg_terminate_backend(active_pid) from pg_replication_slots"
            " where database = %s and active_pid is not null"
        )
        wait_until(lambda: self.run(busy, name).rowcount == 0, what="unused replication slots")
        drop = sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name))
        self.admin.execute(drop)

    def close(self) -> None:
        """Close the superuser's connection; the server is someone else's to stop."""
        self.admin.close()


@dataclass
class Db:
    """A database of one test's own. `connect()` is its installer: superuser or Supabase-like."""

    pg: Pg
    name: str
    flavour: str
    installer: str
    _open: list[psycopg.Connection[Any]] = field(default_factory=list)
    _roles: list[str] = field(default_factory=list)
    _su: psycopg.Connection[Any] | None = None

    def __post_init__(self) -> None:
        self._grants = self._api_grants()

    def _api_grants(self) -> set[tuple[str, str, str]]:
        """Our roles that the API's roles, which all tests share, are members of: role, member, grantor."""
        rows = self.pg.run(
            "select roleid::regrole::text, member::regrole::text, grantor::regrole::text from pg_auth_members"
            " where roleid::regrole::text like 'meshaudit%'"
            " and member::regrole::text in ('anon', 'authenticated', 'service_role', 'authenticator')"
        )
        return set(rows.fetchall())

    def dsn(self, user: str | None = None) -> str:
        """A DSN for this database, by default as the installer."""
        return self.pg.dsn(self.name, user or self.installer)

    def connect(self, user: str | None = None, autocommit: bool = True, **kw: Any) -> psycopg.Connection[Any]:
        """A connection, closed at the test's end at the latest."""
        conn = psycopg.connect(self.dsn(user), autocommit=autocommit, **kw)
        self._open.append(conn)
        return conn

    @property
    def su(self) -> psycopg.Connection[Any]:
        """A superuser's connection to this database, opened once."""
        if self._su is None or self._su.closed:
            self._su = self.connect(self.pg.superuser)
        return self._su

    def role(self, prefix: str, *member_of: str, **attrs: bool) -> str:
        """A new login role: role("app", "meshaudit_client", bypassrls=True, login=False, …)."""
        name = unique(prefix)
        options = {"login": True, **attrs}
        self.pg.create_role(name, " ".join(("" if on else "no") + k for k, on in options.items()))
        self._roles.append(name)
        for group in member_of:
            grant = sql.SQL("grant {} to {}")
            self.pg.admin.execute(grant.format(sql.Identifier(group), sql.Identifier(name)))
        return name

    def waiting(self) -> list[int]:
        """The backends of this database that wait for a lock."""
        rows = self.pg.run(
            "select pid from pg_stat_activity where datname = %s and wait_event_type = 'Lock'",
            self.name,
        )
        return [pid for (pid,) in rows]

    def drop(self) -> None:
        """Close every connection, drop the database, then the roles (which may have owned things)."""
        for conn in self._open:
            conn.close()
        # A prepared transaction outlives its session and blocks the drop.
        gids = "select gid from pg_prepared_xacts where database = %s"
        prepared = [gid for (gid,) in self.pg.run(gids, self.name)]
        if prepared:
            with psycopg.connect(self.pg.dsn(self.name), autocommit=True) as conn:
                for gid in prepared:
                    conn.execute(sql.SQL("rollback prepared {}").format(gid))
        self.pg.drop_database(self.name)
        # What a test gave to a shared role, the next must not find.
        for grant in self._api_grants() - self._grants:
            self.pg.run("revoke {} from {} granted by {}".format(*grant))
        for role in self._roles:
            self.pg.admin.execute(sql.SQL("drop role if exists {}").format(sql.Identifier(role)))
