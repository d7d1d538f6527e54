"""However meshaudit is installed, the database is the same; what is taken back leaves nothing."""

import sys
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from meshaudit import migrate
from meshaudit.errors import (
    AppendOnly,
    MeshauditError,
)
from meshaudit.resources import migrations_dir
from meshaudit.scripts import read
from meshaudit.version import installed, known, require_current
from scripts import dist
from tests import servers
from tests.flavours import Templates
from tests.migration_support import (
    BOOKS,
    assert_same,
    dump,
    needs_sqitch,
    reference,
    run,
    sqitch,
    write_entry,
)
from tests.support import Db
from tests.test_supabase import VAULT


def test_yoyo_equals_sql(any_empty_db: Db, template: Templates) -> None:
    before = dump(any_empty_db)
    assert migrate.migrate(any_empty_db.dsn()) == known()
    assert_same(dump(any_empty_db), reference(template, any_empty_db.flavour))
    # down, and up once more
    assert migrate.down(any_empty_db.dsn()) == known()[::-1]
    assert_same(dump(any_empty_db), before)
    assert any_empty_db.su.execute("select to_regnamespace(%s)", [BOOKS]).fetchone() == (None,)
    assert migrate.migrate(any_empty_db.dsn()) == known()
    assert_same(dump(any_empty_db), reference(template, any_empty_db.flavour))


@needs_sqitch
def test_sqitch_equals_sql(any_empty_db: Db, template: Templates) -> None:
    before = dump(any_empty_db)
    sqitch(any_empty_db, "deploy")  # and verify, as sqitch.conf says
    assert_same(dump(any_empty_db), reference(template, any_empty_db.flavour))
    # yoyo, afterwards, finds it done and leaves it alone
    assert migrate.migrate(any_empty_db.dsn()) == []
    assert any_empty_db.su.execute("select to_regnamespace(%s)", [BOOKS]).fetchone() == (None,)
    state = migrate.status(any_empty_db.dsn())
    assert [(s.name, s.applied, s.applied_at) for s in state] == [(name, True, None) for name in known()]
    sqitch(any_empty_db, "revert", "-y")
    assert_same(dump(any_empty_db), before)


def test_the_single_file_equals_sql(any_empty_db: Db, template: Templates, tmp_path: Path) -> None:
    file = tmp_path / "meshaudit.sql"
    file.write_text(dist.single_file(), "utf-8")
    psql = (servers.client("psql"), "-X", "-q", "-f", file, "-d", any_empty_db.dsn())
    run(*psql)
    assert_same(dump(any_empty_db), reference(template, any_empty_db.flavour))
    require_current(any_empty_db.connect())
    with pytest.raises(RuntimeError, match='schema "meshaudit" already exists'):
        run(*psql)
    assert migrate.down(any_empty_db.dsn()) == known()[::-1]


def test_yoyos_own_command(empty_db: Db, template: Templates) -> None:
    given = conninfo_to_dict(empty_db.dsn())
    user = quote(str(given["user"]), "") + (
        f":{quote(str(given['password']), '')}" if "password" in given else ""
    )
    uri = f"postgresql+psycopg://{user}@{given['host']}:{given['port']}/{empty_db.name}?schema={BOOKS}"
    yoyo = [sys.executable, "-m", "yoyo", "apply", "--batch", "--no-config-file", "-d", uri]
    empty_db.su.execute(f"create schema {BOOKS}")
    run(*yoyo, migrations_dir() / "yoyo")
    assert_same(dump(empty_db), reference(template, "superuser"))
    assert migrate.migrate(empty_db.dsn()) == []
    # applied but not marked, as a crash of that command can leave it
    empty_db.su.execute(f"delete from {BOOKS}._yoyo_migration")
    run(*yoyo, migrations_dir() / "yoyo")
    assert empty_db.su.execute(f"select count(*) from {BOOKS}._yoyo_migration").fetchone() == (len(known()),)
    # and the lock that it leaves when killed stops nobody
    empty_db.su.execute(f"insert into {BOOKS}.yoyo_lock values (1, now(), 1)")
    assert migrate.down(empty_db.dsn()) == known()[::-1]


@needs_sqitch
def test_sqitch_refuses_to_drop_entries(empty_db: Db, template: Templates) -> None:
    sqitch(empty_db, "deploy")
    sqitch(empty_db, "verify")
    write_entry(empty_db)
    with pytest.raises(RuntimeError, match="the audit log holds entries"):
        sqitch(empty_db, "revert", "-y")
    assert installed(empty_db.su) == known()[-1]
    sqitch(empty_db, "revert", "-y", options="-c meshaudit.destroy_audit_log=yes")
    assert installed(empty_db.su) is None
    sqitch(empty_db, "deploy")
    assert_same(dump(empty_db), reference(template, "superuser"))


@pytest.mark.parametrize(
    "damage",
    [
        "drop function meshaudit.read_secret_by_key",
        "alter table meshaudit_private.ledger disable trigger chain_entry",
        "alter table meshaudit_private.ledger_default enable trigger append_only",
        "alter table meshaudit_private.ledger_default disable row level security",
        "alter view meshaudit.audit_logs reset (security_invoker)",
        "alter schema meshaudit owner to current_user",
    ],
)
def test_verify_scripts_raise(db: Db, damage: str) -> None:
    for name in known():
        db.su.execute(read("verify", name).encode())
    db.su.execute(damage.encode())
    with pytest.raises(psycopg.Error, match=r"missing|act as its caller"):
        db.su.execute(read("verify", known()[0]).encode())


def test_down_refuses_to_drop_entries(any_empty_db: Db) -> None:
    before = dump(any_empty_db)
    migrate.migrate(any_empty_db.dsn())
    write_entry(any_empty_db)
    full = dump(any_empty_db)
    with pytest.raises(AppendOnly, match="holds entries") as refused:
        migrate.down(any_empty_db.dsn())
    assert "--destroy-audit-log" in refused.value.hint
    assert_same(dump(any_empty_db), full)
    # an auditor's membership was granted by the owner, who is about to go
    any_empty_db.connect().execute(
        f"select meshaudit.grant_auditor('{any_empty_db.role('auditor')}')".encode()
    )
    migrate.down(any_empty_db.dsn(), destroy_audit_log=True)
    assert_same(dump(any_empty_db), before)
    assert migrate.migrate(any_empty_db.dsn()) == known()


def test_down_gives_up_when_the_log_is_in_use(empty_db: Db, monkeypatch: pytest.MonkeyPatch) -> None:
    migrate.migrate(empty_db.dsn())
    reader = empty_db.connect(autocommit=False)
    reader.execute("select from meshaudit_private.ledger")
    quick = read("revert", known()[0]).replace("lock_timeout = '10s'", "lock_timeout = '10ms'")
    monkeypatch.setattr("meshaudit.scripts.read", lambda kind, name: quick)
    with pytest.raises(MeshauditError, match="in use"):
        migrate.down(empty_db.dsn())
    reader.rollback()
    assert migrate.down(empty_db.dsn()) == known()[::-1]


def test_roles_stay_where_another_database_needs_them(db: Db, empty_db: Db) -> None:
    migrate.migrate(empty_db.dsn())
    migrate.down(empty_db.dsn())
    write_entry(db)
    assert db.su.execute("select count(*) from pg_roles where rolname like 'meshaudit\\_%'").fetchone() == (
        4,
    )


def test_down_as_a_role_reached_by_set_role(template: Templates) -> None:
    db = template.clone("supabase_new")
    try:
        person = db.role("person", "supabase_admin_like")
        db.pg.run(f"alter role {person} set role = supabase_admin_like")
        assert migrate.down(db.dsn(person)) == known()[::-1]
    finally:
        db.drop()


def test_down_refuses_while_tables_are_protected(any_empty_db: Db) -> None:
    before = dump(any_empty_db)
    migrate.migrate(any_empty_db.dsn())
    conn = any_empty_db.connect()
    conn.execute("create schema mine; create table mine.t (id int primary key, v text)")
    conn.execute("insert into mine.t values (1, 'S1')")
    conn.execute("select meshaudit.protect('mine.t', '{v}')")
    with pytest.raises(MeshauditError, match=r"still protected: mine\.t"):
        migrate.down(any_empty_db.dsn(), destroy_audit_log=True)
    assert conn.execute("select v from mine.t").fetchall() == [("S1",)]
    conn.execute("select meshaudit.unprotect('mine.t')")
    # what somebody has put beside the protected tables is not ours to drop
    any_empty_db.su.execute("create table meshaudit_protected.theirs ()")
    with pytest.raises(MeshauditError, match="holds tables that are not ours: theirs"):
        migrate.down(any_empty_db.dsn(), destroy_audit_log=True)
    any_empty_db.su.execute("drop table meshaudit_protected.theirs")
    migrate.down(any_empty_db.dsn(), destroy_audit_log=True)
    assert conn.execute("select v from mine.t").fetchall() == [("S1",)]
    conn.execute("drop schema mine cascade")
    assert_same(dump(any_empty_db), before)


def test_down_closes_the_path_to_supabases_vault(template: Templates) -> None:
    db = template.clone_empty("supabase_new")
    try:
        db.su.execute(VAULT.encode())
        before = dump(db)
        migrate.migrate(db.dsn())
        db.connect().execute("select meshaudit.open_supabase_vault()")
        migrate.down(db.dsn(), destroy_audit_log=True)
        assert_same(dump(db), before)
        left = "select rolname from pg_roles where rolname = 'meshaudit_owner' and not exists (select from pg_database where datname ~ 'template_supabase')"
        assert db.su.execute(left).fetchall() == []
        assert migrate.migrate(db.dsn()) == known()
    finally:
        db.drop()
