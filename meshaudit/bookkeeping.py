"""yoyo's tables, in a schema of their own, and yoyo's backend on a connection that is ours.

Invariants
  * one transaction holds a migration's DDL and yoyo's mark of it: whatever dies, both are there or neither;
  * who migrates holds a table lock, which ends with the transaction: it cannot be left behind, works through
    poolers, and nobody else can take it, as nobody else has USAGE on the schema;
  * the tables are not in `public`, which Supabase exposes, and nobody but their owner has a right on them.
"""

import contextlib
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import psycopg
from yoyo import internalmigrations
from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend
from yoyo.connections import DatabaseURI
from yoyo.migrations import Migration, default_migration_table

from meshaudit.errors import NoPermission

SCHEMA = "meshaudit_migrations"

# A schema somebody else prepared could hold triggers that run with our rights.
_STRANGER = """
select n.nspowner::regrole::text from pg_namespace n join pg_roles r on r.oid = n.nspowner
where n.nspname = %s and r.rolname <> current_user and not r.rolsuper
"""

_CLOSE = f"""
do $$
declare
  v_right record;
  v_table regclass;
begin
  for v_right in
    select 'schema {SCHEMA}' as object, a.grantee from pg_namespace n, aclexplode(n.nspacl) a
      where n.nspname = '{SCHEMA}' and a.grantee <> n.nspowner
    union
    select format('table %s', c.oid::regclass), a.grantee from pg_class c, aclexplode(c.relacl) a
      where c.relnamespace = '{SCHEMA}'::regnamespace and c.relkind = 'r' and a.grantee <> c.relowner
  loop
    execute format('revoke all on %s from %s', v_right.object,
      case v_right.grantee when 0 then 'public' else v_right.grantee::regrole::text end);
  end loop;
  for v_table in
    select c.oid::regclass from pg_class c
      where c.relnamespace = '{SCHEMA}'::regnamespace and c.relkind = 'r' and not c.relrowsecurity
  loop
    execute format('alter table %s enable row level security', v_table);
  end loop;
end
$$
"""

_READABLE = f"""
select from pg_class c join pg_namespace n on n.oid = c.relnamespace
where n.nspname = '{SCHEMA}' and c.relname = '{default_migration_table}' and c.relkind = 'r'
  and has_schema_privilege(n.oid, 'usage') and has_table_privilege(c.oid, 'select')
"""


class Bookkeeping(PostgresqlPsycopgBackend):  # type: ignore[misc]
    """yoyo's backend for one open transaction. Make it with `locked`."""

    def __init__(self, conn: psycopg.Connection[Any]) -> None:
        self._given = conn
        uri = DatabaseURI("postgresql+psycopg", None, None, None, None, conn.info.dbname, {})
        super().__init__(uri, default_migration_table)

    def connect(self, dburi: DatabaseURI) -> psycopg.Connection[Any]:
        """yoyo would make a connection; the one given has the caller's options and lock."""
        return self._given

    def copy(self) -> "Bookkeeping":
        """yoyo runs scripts on a second connection; ours must be in the transaction that marks them."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Leave the connection to whoever opened it."""

    def open(self) -> None:
        """Make what is missing, take the lock, see to it that nobody else has a right here."""
        conn = self._given
        conn.execute(f"create schema if not exists {SCHEMA}")
        if stranger := conn.execute(_STRANGER, [SCHEMA]).fetchone():
            raise NoPermission(
                f'schema "{SCHEMA}" belongs to role {stranger[0]}', "migrate as that role, as it did before"
            )
        self._use_schema()
        lock_table = self.format_sql(self.create_lock_table_sql)
        conn.execute(lock_table.replace("CREATE TABLE", "CREATE TABLE IF NOT EXISTS").encode())
        # Keeps out yoyo's own command too: it locks by inserting a row here.
        conn.execute(f"lock table {SCHEMA}.{self.lock_table} in exclusive mode")
        if internalmigrations.needs_upgrading(self):
            internalmigrations.upgrade(self)
        self._internal_schema_updated = True
        conn.execute(_CLOSE)

    def reconcile(self, migrations: list[Migration], applied: int) -> None:
        """Make yoyo's marks agree with the schema, which may have been changed by other tools."""
        marked = self.get_applied_migration_hashes()
        for number, migration in enumerate(migrations):
            if number < applied and migration.hash not in marked:
                self.mark_one(migration)
            elif number >= applied and migration.hash in marked:
                self.unmark_one(migration)

    def remove(self) -> None:
        """Drop the schema, so that the database is as it was before the first migration."""
        self._given.execute(f"drop schema {SCHEMA} cascade")

    def log_migration(self, migration: Migration, operation: str) -> None:
        """yoyo calls it between a script and its mark, when the path is still the script's."""
        self._use_schema()
        super().log_migration(migration, operation)

    def get_log_data(self, migration: Migration | None = None, operation: str = "apply") -> dict[str, Any]:
        """yoyo's own asks the resolver for this host's name, and fails for a user without an entry."""
        row = self._given.execute("select gen_random_uuid()::text, session_user::text").fetchone()
        assert row is not None
        return {
            "id": row[0],
            "migration_id": migration.id if migration else None,
            "migration_hash": migration.hash if migration else None,
            "username": row[1],
            "hostname": socket.gethostname(),
            "created_at_utc": datetime.now(UTC).replace(tzinfo=None),
            "operation": operation,
        }

    def _use_schema(self) -> None:
        self._given.execute(f"set local search_path = {SCHEMA}, pg_temp")


@contextlib.contextmanager
def locked(conn: psycopg.Connection[Any]) -> Iterator[Bookkeeping]:
    """A transaction in which nobody else migrates this database."""
    book = Bookkeeping(conn)
    with book.transaction():
        # Should this host vanish, its session must not hold the lock for hours.
        conn.execute("set local idle_in_transaction_session_timeout = '1min'")
        book.open()
        yield book


def applied_at(conn: psycopg.Connection[Any]) -> dict[str, datetime]:
    """When each migration was applied, as far as yoyo knows and this role may see."""
    if not conn.execute(_READABLE).rowcount or conn.execute(_STRANGER, [SCHEMA]).rowcount:
        return {}
    rows = conn.execute(f"select migration_id, applied_at_utc from {SCHEMA}.{default_migration_table}")
    return {name: when.replace(tzinfo=UTC) for name, when in rows}
