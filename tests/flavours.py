"""The ways in which meshaudit gets installed, each built once a session as a template database.

superuser      a plain server, installed by its superuser
supabase_old   by a role like Supabase's postgres, with the default privileges of before 2026-05-30
supabase_new   the same, with those of after: TRUNCATE, TRIGGER and REFERENCES on tables
"""

from collections.abc import Callable

import psycopg
from psycopg import sql

from meshaudit import schema
from tests.support import Db, Pg, unique

FLAVOURS = ("superuser", "supabase_old", "supabase_new")
INSTALLER = "supabase_admin_like"
_API_ROLES = ("anon", "authenticated", "service_role")
# Any number that every session of this project uses: two workers may share one server.
_INSTALL_LOCK = 8147

_AUTH = """
create schema auth;
grant usage on schema auth to anon, authenticated, service_role, supabase_admin_like;
create function auth.uid() returns uuid language sql stable as $$
  select coalesce(
    nullif(current_setting('request.jwt.claim.sub', true), ''),
    nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub'
  )::uuid
$$;
grant usage on schema public to anon, authenticated, service_role;
"""

_DEFAULTS = {
    "supabase_old": ("all on tables", "all on sequences", "all on functions"),
    "supabase_new": ("truncate, trigger, references on tables",),
}


class Templates:
    """Template databases, made when first asked for. `pg_for` says on which server a flavour lives."""

    def __init__(self, pg_for: Callable[[str], Pg]) -> None:
        self._pg_for = pg_for
        self._made: dict[str, tuple[Pg, str]] = {}

    def clone(self, flavour: str) -> Db:
        """A fresh database of that flavour, with meshaudit installed."""
        return self._clone(flavour, install=True)

    def clone_empty(self, flavour: str) -> Db:
        """A fresh database of that flavour, before meshaudit is installed."""
        return self._clone(flavour, install=False)

    def _clone(self, flavour: str, *, install: bool) -> Db:
        key = flavour if install else f"{flavour}_empty"
        if key not in self._made:
            pg = self._pg_for(flavour)
            self._made[key] = (pg, _build(pg, flavour, install=install))
        pg, template = self._made[key]
        name = unique("test")
        pg.create_database(name, template=template, owner=_installer(pg, flavour))
        return Db(pg, name, flavour, _installer(pg, flavour))

    def drop(self) -> None:
        """Leave a shared server as it was, roles aside."""
        for pg, template in self._made.values():
            pg.drop_database(template)


def _installer(pg: Pg, flavour: str) -> str:
    return pg.superuser if flavour == "superuser" else INSTALLER


def _build(pg: Pg, flavour: str, *, install: bool) -> str:
    name = unique(f"template_{flavour}")
    pg.run("select pg_advisory_lock(%s)", _INSTALL_LOCK)
    try:
        if flavour != "superuser":
            _supabase_roles(pg)
        pg.create_database(name, owner=_installer(pg, flavour))
        if flavour != "superuser":
            _supabase_database(pg, name, flavour)
        if install:
            with psycopg.connect(pg.dsn(name, _installer(pg, flavour)), autocommit=True) as conn:
                schema.install(conn)
    except BaseException:
        pg.drop_database(name)
        raise
    finally:
        pg.run("select pg_advisory_unlock(%s)", _INSTALL_LOCK)
    return name


def _supabase_roles(pg: Pg) -> None:
    pg.create_role("anon", "nologin")
    pg.create_role("authenticated", "nologin")
    pg.create_role("service_role", "nologin bypassrls")
    pg.create_role("authenticator", "login noinherit")
    pg.create_role(INSTALLER, "login createrole createdb replication bypassrls nosuperuser")
    pg.run("grant anon, authenticated, service_role to authenticator")
    pg.run(f"grant anon, authenticated, service_role, pg_monitor, pg_read_all_data to {INSTALLER}")
    if pg.version < 16:
        return  # there CREATEROLE may grant any role
    # On a shared server a superuser may have installed first: only ADMIN lets another role use roles
    # that it did not make.
    ours = pg.run("select rolname from pg_roles where rolname like 'meshaudit\\_%%'").fetchall()
    for (role,) in ours:
        grant = sql.SQL("grant {} to {} with admin option")
        if pg.run("select pg_has_role(%s, %s, 'member')", INSTALLER, role).fetchone() == (False,):
            pg.admin.execute(grant.format(sql.Identifier(role), sql.Identifier(INSTALLER)))


def _supabase_database(pg: Pg, name: str, flavour: str) -> None:
    with psycopg.connect(pg.dsn(name), autocommit=True) as conn:
        conn.execute(_AUTH)
        for where in ("", " in schema public"):
            for privileges in _DEFAULTS[flavour]:
                conn.execute(
                    f"alter default privileges for role {INSTALLER}{where}"
                    f" grant {privileges} to {', '.join(_API_ROLES)}".encode()
                )
