"""Bring a database's schema up to this program's, down again, or say where it stands.

Each migration is one transaction, from the check whether it is needed to yoyo's mark that it is done: a run
that is killed anywhere can be run again, and of two runs at once one does the work.
"""

import contextlib
import glob
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
from psycopg import errors as pg
from yoyo.migrations import Migration, read_migrations

from meshaudit import bookkeeping, db
from meshaudit.errors import BadArgument, MeshauditError
from meshaudit.resources import migrations_dir
from meshaudit.version import applied_count, known, require_current

__all__ = ["MigrationState", "down", "known", "migrate", "require_current", "status"]

_HINT = "migrate as a superuser, or as a role with CREATEROLE and CREATE on the database"
_TRIES = 5


@dataclass(frozen=True)
class MigrationState:
    """A migration and whether the database has it; applied_at is None where yoyo did not apply it."""

    name: str
    applied: bool
    applied_at: datetime | None


def status(dsn: str) -> list[MigrationState]:
    """Every migration of this program, in order."""
    with _session(dsn) as conn:
        count, times = applied_count(conn), bookkeeping.applied_at(conn)
    return [
        MigrationState(name, number < count, times.get(name) if number < count else None)
        for number, name in enumerate(known())
    ]


def migrate(dsn: str, to: str | None = None, progress: Callable[[str], None] | None = None) -> list[str]:
    """Apply what is missing, up to and including `to`; returns what it applied."""
    names = known()
    target = len(names) if to is None else _place(to)
    done: list[str] = []
    with _session(dsn) as conn:
        while (count := _retried(lambda: _one_up(conn, target, progress))) is not None:
            done.append(names[count])
    return done


def down(dsn: str, to: str | None = None, destroy_audit_log: bool = False) -> list[str]:
    """Take back every migration, or all after `to`; returns which.

    Raises AppendOnly if that would drop entries of the log and `destroy_audit_log` is not set.
    """
    names = known()
    target = 0 if to is None else _place(to)
    done: list[str] = []
    with _session(dsn) as conn:
        while (count := _retried(lambda: _one_down(conn, target, destroy_audit_log))) is not None:
            done.append(names[count])
    return done


def _one_up(conn: psycopg.Connection[Any], target: int, progress: Callable[[str], None] | None) -> int | None:
    # Nothing to do leaves the database untouched, the bookkeeping included.
    if applied_count(conn) >= target:
        return None
    with bookkeeping.locked(conn) as book:
        count = applied_count(conn)
        if count >= target:
            return None  # another run was faster
        migrations = _migrations()
        book.reconcile(migrations, count)
        if progress is not None:
            progress(migrations[count].id)
        book.apply_one(migrations[count])
    return count


def _one_down(conn: psycopg.Connection[Any], target: int, destroy: bool) -> int | None:
    if applied_count(conn) <= target:
        return None
    try:
        with bookkeeping.locked(conn) as book:
            count = applied_count(conn)
            if count <= target:
                return None
            if destroy:
                conn.execute("select set_config('meshaudit.destroy_audit_log', 'yes', true)")
            migrations = _migrations()
            book.reconcile(migrations, count)
            book.rollback_one(migrations[count - 1])
            if count == 1:
                book.remove()
    except pg.LockNotAvailable as exc:
        raise MeshauditError(
            "the audit log is in use, nothing was dropped",
            "end the transactions that use it, then run this again",
        ) from exc
    return count - 1


def _retried(attempt: Callable[[], int | None]) -> int | None:
    """Run it again when it met another run, here or in another database of this server.

    Roles belong to the whole server: two databases may create, grant or drop the same ones at once.
    """
    for left in reversed(range(_TRIES)):
        try:
            return attempt()
        except (
            pg.DeadlockDetected,
            pg.DuplicateObject,
            pg.DuplicateSchema,
            pg.DuplicateTable,
            pg.InternalError_,  # "tuple concurrently updated"
            pg.InvalidSchemaName,
            pg.UndefinedObject,
            pg.UndefinedTable,
            pg.UniqueViolation,
        ):
            if not left:
                raise
    raise AssertionError


def _migrations() -> list[Migration]:
    """yoyo's migrations, in the plan's order."""
    # A path may hold what glob takes for a pattern.
    found = {m.id: m for m in read_migrations(glob.escape(str(migrations_dir() / "yoyo")))}
    return [found[name] for name in known()]


def _place(name: str) -> int:
    names = known()
    if name not in names:
        raise BadArgument(f'there is no migration "{name}"', f"migrations: {', '.join(names)}")
    return names.index(name) + 1


@contextlib.contextmanager
def _session(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    with db.connect(dsn) as conn, db.errors(_HINT):
        yield conn
