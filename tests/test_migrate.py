"""`meshaudit migrate` as a program: what it says, refuses and keeps, alone, in company and killed."""

import random
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from meshaudit import migrate
from meshaudit.errors import (
    BadArgument,
    MeshauditError,
    NoPermission,
    NotMigrated,
    SchemaTooNew,
    Unreachable,
)
from meshaudit.version import installed, known, require_current
from tests.flavours import Templates
from tests.migration_support import BOOKS, ROOT, assert_same, dump, reference
from tests.support import Db, unique, wait_until


def test_nobody_else_can_touch_the_bookkeeping(any_empty_db: Db) -> None:
    migrate.migrate(any_empty_db.dsn())
    exposed = any_empty_db.su.execute(
        "select c.oid::regclass, r.rolname from pg_class c, pg_roles r"
        " where c.relnamespace = to_regnamespace(%(schema)s) and c.relkind = 'r'"
        " and r.rolname in ('anon', 'authenticated', 'service_role', 'meshaudit_operator')"
        " and (has_schema_privilege(r.oid, %(schema)s, 'usage, create')"
        "  or has_table_privilege(r.oid, c.oid, %(rights)s))",
        {"schema": BOOKS, "rights": "select, insert, update, delete, truncate, trigger, references"},
    ).fetchall()
    assert exposed == []
    tables = any_empty_db.su.execute(
        "select relname, relrowsecurity, relowner::regrole::text from pg_class"
        " where relnamespace = to_regnamespace(%s) and relkind = 'r' order by 1",
        [BOOKS],
    ).fetchall()
    names = ("_yoyo_log", "_yoyo_migration", "_yoyo_version", "yoyo_lock")
    assert tables == [(name, True, any_empty_db.installer) for name in names]


def test_a_schema_prepared_by_somebody_else_is_refused(empty_db: Db) -> None:
    stranger = empty_db.role("stranger")
    empty_db.su.execute(f"create schema {BOOKS} authorization {stranger}")
    with pytest.raises(NoPermission, match=stranger):
        migrate.migrate(empty_db.dsn())
    assert installed(empty_db.su) is None


def test_status_before_and_after(any_empty_db: Db) -> None:
    dsn = any_empty_db.dsn()
    assert [(s.name, s.applied, s.applied_at) for s in migrate.status(dsn)] == [
        (name, False, None) for name in known()
    ]
    told: list[str] = []
    migrate.migrate(dsn, progress=told.append)
    assert told == known()
    after = migrate.status(dsn)
    now = any_empty_db.su.execute("select now()").fetchone()
    assert now is not None
    assert all(
        s.applied and s.applied_at and abs((now[0] - s.applied_at).total_seconds()) < 60 for s in after
    )
    # whoever may not see when still sees what
    reader = any_empty_db.role("reader")
    seen = migrate.status(any_empty_db.dsn(reader))
    assert [(s.applied, s.applied_at) for s in seen] == [(True, None)] * len(known())


def test_names_are_checked(empty_db: Db) -> None:
    for command in (migrate.migrate, migrate.down):
        with pytest.raises(BadArgument, match='no migration "nonsense"') as refused:
            command(empty_db.dsn(), "nonsense")
        assert known()[0] in refused.value.hint
    assert migrate.migrate(empty_db.dsn(), to=known()[0]) == known()[:1]
    assert migrate.migrate(empty_db.dsn(), to=known()[0]) == []
    assert migrate.down(empty_db.dsn(), to=known()[0]) == []
    assert migrate.down(empty_db.dsn()) == known()[:1]
    assert migrate.down(empty_db.dsn()) == []


def test_commands_can_tell_an_unfit_schema(empty_db: Db) -> None:
    # a login without any right, as a command's may be
    conn = empty_db.connect(empty_db.role("nobody"))
    with pytest.raises(NotMigrated, match="no meshaudit schema"):
        require_current(conn)
    migrate.migrate(empty_db.dsn())
    require_current(conn)
    empty_db.su.execute(
        "create or replace function meshaudit.schema_version() returns text language sql stable"
        " as $$ select 'from_the_future' $$"
    )
    for attempt in (migrate.migrate, migrate.down, migrate.status):
        with pytest.raises(SchemaTooNew, match="from_the_future"):
            attempt(empty_db.dsn())
    with pytest.raises(SchemaTooNew):
        require_current(conn)


def test_an_older_schema_is_not_migrated(db: Db, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [*known(), "next"]
    monkeypatch.setattr("meshaudit.version.known", lambda: names)
    with pytest.raises(NotMigrated, match='program at "next"'):
        require_current(db.su)


def test_a_foreign_schema_of_our_name(empty_db: Db) -> None:
    empty_db.su.execute("create schema meshaudit")
    with pytest.raises(MeshauditError, match="not meshaudit's"):
        migrate.migrate(empty_db.dsn())
    assert empty_db.su.execute("select to_regnamespace(%s)", [BOOKS]).fetchone() == (None,)


def test_a_role_that_may_not_install_is_told_so(empty_db: Db) -> None:
    nobody = empty_db.role("nobody")
    with pytest.raises(NoPermission) as refused:
        migrate.migrate(empty_db.dsn(nobody))
    assert "CREATEROLE" in refused.value.hint


def race(*databases: Db) -> list[list[str]]:
    with ThreadPoolExecutor(len(databases)) as pool:
        return list(pool.map(lambda d: migrate.migrate(d.dsn()), databases))


def test_two_at_once_do_it_once(any_empty_db: Db, template: Templates) -> None:
    # both stand at the first statement until this is gone
    gate = any_empty_db.connect(any_empty_db.pg.superuser, autocommit=False)
    gate.execute(f"create schema {BOOKS}")
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(migrate.migrate, any_empty_db.dsn()) for _ in range(2)]
        wait_until(lambda: len(any_empty_db.waiting()) == 2)
        gate.rollback()
        assert sorted(r.result() for r in runs) == [[], known()]
    assert_same(dump(any_empty_db), reference(template, any_empty_db.flavour))


def test_two_databases_of_one_server_at_once(template: Templates) -> None:
    databases = [template.clone_empty("supabase_new") for _ in range(3)]
    try:
        assert race(*databases) == [known()] * 3
        for db in databases:
            assert_same(dump(db), reference(template, "supabase_new"))
        with ThreadPoolExecutor(3) as pool:
            assert list(pool.map(lambda d: migrate.down(d.dsn()), databases)) == [known()[::-1]] * 3
    finally:
        for db in databases:
            db.drop()


# Runs one command and dies before its nth statement, or so many seconds after it has sent the nth.
VICTIM = """
import os, signal, sys, threading, psycopg
from meshaudit import migrate
command, dsn, left, delay = getattr(migrate, sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
die = lambda: os.kill(os.getpid(), signal.SIGKILL)
real = psycopg.Cursor.execute
def execute(*args, **kwargs):
    global left
    left -= 1
    if left == 0:
        threading.Timer(float(delay), die).start() if delay else die()
    return real(*args, **kwargs)
psycopg.Cursor.execute = execute
command(dsn)
print(-left)
"""


def victim(db: Db, command: str, statement: int, delay: str = "") -> subprocess.CompletedProcess[str]:
    args = [sys.executable, "-c", VICTIM, command, db.dsn(), str(statement), delay]
    done = subprocess.run(args, cwd=ROOT, capture_output=True, text=True, check=False)
    others = "select count(*) from pg_stat_activity where datname = %s and backend_type = 'client backend'"
    mine = len([c for c in db._open if not c.closed])
    wait_until(lambda: db.pg.run(others, db.name).fetchone() == (mine,), what="the victim's backend to end")
    return done


def is_whole(db: Db) -> bool:
    """Whether the migration is there; and yoyo's mark must say the same."""
    there = installed(db.su) is not None
    marked = False
    if db.su.execute("select to_regclass(%s)", [f"{BOOKS}._yoyo_migration"]).fetchone() != (None,):
        marked = db.su.execute(f"select from {BOOKS}._yoyo_migration").rowcount > 0
    assert there == marked
    return there


def test_killed_anywhere_and_run_again(empty_db: Db, template: Templates) -> None:
    total = int(victim(empty_db, "migrate", 0).stdout)
    back = int(victim(empty_db, "down", 0).stdout)
    assert not is_whole(empty_db)
    rng = random.Random(unique("seed"))
    # the last is a look whether there is more to do, the one before it the COMMIT
    for statement in sorted({*rng.sample(range(2, total - 1), 2), total - 1}):
        assert victim(empty_db, "migrate", statement).returncode == -signal.SIGKILL
        assert not is_whole(empty_db)
    # while the server is at work on a long script
    for _ in range(2):
        victim(empty_db, "migrate", rng.randrange(2, total), delay=str(rng.uniform(0, 0.3)))
        is_whole(empty_db)
    migrate.migrate(empty_db.dsn())
    assert is_whole(empty_db)
    assert_same(dump(empty_db), reference(template, "superuser"))
    assert victim(empty_db, "down", rng.randrange(2, back)).returncode == -signal.SIGKILL
    assert is_whole(empty_db)
    assert migrate.down(empty_db.dsn()) == known()[::-1]


def test_a_lost_connection_is_one_of_our_errors(empty_db: Db) -> None:
    def terminate(name: str) -> None:
        empty_db.su.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid()"
        )

    with pytest.raises(Unreachable):
        migrate.migrate(empty_db.dsn(), progress=terminate)
    assert migrate.migrate(empty_db.dsn()) == known()
