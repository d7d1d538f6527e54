"""Which migration a database is at, and whether this program fits it.

The schema itself says so (sql/63_version.sql), not a migration tool's records: a database made by sqitch, by
`meshaudit migrate` or from dist/meshaudit.sql is the same to us. The answer is read from the catalogue, which
every login may do.
"""

import re
from typing import Any

import psycopg

from meshaudit.errors import MeshauditError, NotMigrated, SchemaTooNew
from meshaudit.resources import migrations_dir

_INSTALLED = """
select (
  select p.prosrc from pg_catalog.pg_proc p
  where p.pronamespace = n.oid and p.proname = 'schema_version' and p.pronargs = 0)
from pg_catalog.pg_namespace n where n.nspname = 'meshaudit'
"""


def known() -> list[str]:
    """The names of all migrations of this program, in order: the changes of sqitch's plan."""
    lines = (migrations_dir() / "sqitch.plan").read_text("utf-8").splitlines()
    # %pragmas, @tags and #comments are no changes.
    return [line.split()[0] for line in lines if re.match(r"[^\s%@#]", line)]


def installed(conn: psycopg.Connection[Any]) -> str | None:
    """The database's last migration, or None without meshaudit. May be one that we do not know."""
    row = conn.execute(_INSTALLED).fetchone()
    if row is None:
        return None
    found = re.search(r"'([^']+)'", row[0] or "")
    if found is None:
        raise MeshauditError(
            'there is a schema "meshaudit" that is not meshaudit\'s', "rename it, or use another database"
        )
    return found[1]


def applied_count(conn: psycopg.Connection[Any]) -> int:
    """How many of `known()` the database has; raises SchemaTooNew if it has one that we do not know."""
    last = installed(conn)
    if last is None:
        return 0
    names = known()
    if last not in names:
        raise SchemaTooNew(f'this database\'s last migration, "{last}", is newer than this program')
    return names.index(last) + 1


def require_current(conn: psycopg.Connection[Any]) -> None:
    """Raise NotMigrated or SchemaTooNew unless the database is at this program's last migration."""
    names = known()
    count = applied_count(conn)
    if count == 0:
        raise NotMigrated("this database has no meshaudit schema")
    if count < len(names):
        raise NotMigrated(
            f'this database is at migration "{names[count - 1]}", this program at "{names[-1]}"'
        )
