"""Supabase's Realtime: what its slot (wal2json) gives out, and to whom, decided as it decides."""

import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import errors as pg
from psycopg import sql

from meshaudit import schema
from tests.flavours import INSTALLER, Templates
from tests.journal_support import one
from tests.servers import ROOT
from tests.support import Db, unique, wait_until
from tests.test_feed import feed, write

NOTES = "create table public.notes (id int primary key, body text)"
# What Realtime reads: only tables of its publication, with their keys.
CHANGES = """
select c.data::jsonb from pg_logical_slot_get_changes(%s, null, null,
  'format-version', '2', 'include-pk', 'true', 'include-transaction', 'false', 'add-tables', (
    select coalesce(string_agg(format('%%s.%%s', schemaname, tablename), ','), 'nothing.nothing')
    from pg_publication_tables where pubname = 'supabase_realtime')) c
"""


@pytest.fixture(params=["superuser", "supabase_new"])
def realtime_db(request: pytest.FixtureRequest, template: Templates) -> Iterator[Db]:
    """Installed where the publication was there before, and owned by the installer."""
    db = template.clone_empty(request.param)
    try:
        conn = db.connect()
        conn.execute("create publication supabase_realtime")
        schema.install(conn)
        yield db
    finally:
        db.drop()


def published(db: Db) -> list[Any]:
    rows = db.su.execute(
        "select schemaname || '.' || tablename from pg_publication_tables where pubname = 'supabase_realtime'"
    )
    return [name for (name,) in rows]


def status(db: Db) -> tuple[Any, ...]:
    query = "select ok, detail from meshaudit.status() where \"check\" = 'realtime'"
    return tuple(db.su.execute(query.encode()).fetchall()[0])


def test_installing_publishes_the_feed_alone(realtime_db: Db) -> None:
    assert published(realtime_db) == ["meshaudit.audit_feed"]
    assert status(realtime_db) == (True, "supabase_realtime publishes the feed")
    nobody = (
        "select r.rolname from pg_roles r"
        " where pg_has_role(r.oid, 'meshaudit_owner', 'usage') and not rolsuper"
    )
    assert realtime_db.su.execute(nobody.encode()).fetchall() == [("meshaudit_owner",)]


def test_reverting_takes_it_out(realtime_db: Db) -> None:
    write(realtime_db.su)
    feed(realtime_db.su)
    conn = realtime_db.connect()
    conn.execute("set meshaudit.destroy_audit_log = 'yes'")
    conn.execute((ROOT / "migrations/revert/ledger.sql").read_bytes())
    assert published(realtime_db) == []
    assert realtime_db.su.execute("select to_regnamespace('meshaudit')").fetchall() == [(None,)]


def test_publishing_later(any_db: Db) -> None:
    installer = any_db.connect()
    call = "select meshaudit.publish_feed()"
    assert one(installer, call) == "there is no publication supabase_realtime"
    installer.execute("create publication supabase_realtime")
    assert not status(any_db)[0]
    assert one(installer, call) == "published"
    assert one(installer, call) == "published already"
    assert published(any_db) == ["meshaudit.audit_feed"]
    nobody = (
        "select count(*) from pg_auth_members"
        " where roleid = 'meshaudit_owner'::regrole and member::regrole::text = %s"
    )
    joined = one(any_db.su, nobody + (" and set_option" if any_db.pg.version >= 16 else ""), INSTALLER)
    assert joined == 0


def test_a_publication_of_somebody_else_is_no_failure(template: Templates) -> None:
    db = template.clone_empty("supabase_new")
    try:
        db.su.execute("create publication supabase_realtime")
        conn = db.connect()
        notices: list[str] = []
        conn.add_notice_handler(lambda n: notices.append(n.message_primary or ""))
        schema.install(conn)
        assert any("supabase_realtime" in notice for notice in notices)
        assert published(db) == []
        ok, detail = status(db)
        assert not ok
        assert "publish_feed" in detail
        with pytest.raises(pg.InsufficientPrivilege):
            conn.execute("select meshaudit.publish_feed()")
    finally:
        db.drop()


def test_a_publication_of_all_tables_is_told(db: Db) -> None:
    db.su.execute("create publication supabase_realtime for all tables")
    ok, detail = status(db)
    assert not ok
    assert "stream the inside" in detail


def allow_wal2json(db: Db) -> None:
    """Some releases load only the output plugins that a server lists; our own server then lists it."""
    setting = "select setting from pg_settings where name = 'output_plugin_libraries'"
    listed = db.su.execute(setting.encode()).fetchone()
    if listed is None or "wal2json" in listed[0]:
        return
    if db.pg.server is None:
        pytest.skip("this server does not list wal2json in output_plugin_libraries")
    wanted = [name.strip() for name in listed[0].split(",") if name.strip()] + ["wal2json"]
    change = sql.SQL("alter system set output_plugin_libraries = {}")
    db.pg.admin.execute(change.format(sql.SQL(", ").join(map(sql.Literal, wanted))))
    db.pg.run("select pg_reload_conf()")
    wait_until(lambda: "wal2json" in one(db.su, setting))


@pytest.fixture
def slot(realtime_db: Db) -> Iterator[str]:
    if realtime_db.pg.version != 15:
        pytest.skip("wal2json is tested on Debian's 15, where deps.sh installs it")
    allow_wal2json(realtime_db)
    name = unique("realtime")
    one(realtime_db.su, "select slot_name from pg_create_logical_replication_slot(%s, 'wal2json')", name)
    yield name
    realtime_db.su.execute("select pg_drop_replication_slot(%s)", [name])


def test_only_the_feed_is_published(realtime_db: Db, slot: str) -> None:
    su = realtime_db.su
    su.execute(NOTES.encode())
    su.execute("insert into public.notes values (1, 'x')")
    write(su, "k", "a")
    one(su, "select meshaudit.test_alert()")
    feed(su)
    changes = [row[0] for row in su.execute(CHANGES.encode(), [slot]).fetchall()]
    assert {(c["schema"], c["table"]) for c in changes} == {("meshaudit", "audit_feed")}
    assert [c["action"] for c in changes] == ["I", "I"]
    kinds = [{c["name"]: c["value"] for c in change["columns"]}["kind"] for change in changes]
    assert kinds == ["alert", "entry"]
    assert "'v'" not in json.dumps(changes)


def visible(db: Db, login: str, role: str, claims: dict[str, str], feed_ids: list[int]) -> list[int]:
    """As Realtime asks: a statement on the primary key is prepared as its own login, then for each subscriber
    the role and the claims are set, and it is executed."""
    seen = []
    with psycopg.connect(db.dsn(login), autocommit=False) as conn:
        for feed_id in feed_ids:
            row = f"select 1 from meshaudit.audit_feed where feed_id = '{feed_id}'"
            conn.execute(f"prepare stmt as select exists ({row})".encode())
            conn.execute(
                "select set_config('role', %s, true), set_config('request.jwt.claims', %s, true)",
                [role, json.dumps(claims)],
            )
            if one(conn, "execute stmt"):
                seen.append(feed_id)
            conn.execute("select set_config('role', null, true)")
            conn.execute("deallocate stmt")
    return seen


def test_subscribers_see_their_scopes(supabase_db: Db) -> None:
    db = supabase_db
    login = db.role("realtime", superuser=True)
    db.su.execute("select meshaudit.set_setting('realtime_roles', %s)", [login])
    for subject, scope in (("ann", "a"), ("bob", "b"), ("chief", "*")):
        db.su.execute("select meshaudit.grant_auditor(%s, %s)", [subject, scope])
    feed(db.su)
    start = one(db.su, "select newest from meshaudit.feed_range()")
    write(db.su, "k", "a")
    feed(db.su)
    write(db.su, "k", "b")
    feed(db.su)
    a, b = start + 1, start + 2
    seen = {
        subject: visible(db, login, "authenticated", {"sub": subject, "role": "authenticated"}, [a, b])
        for subject in ("ann", "bob", "chief", "eve")
    }
    assert seen == {"ann": [a], "bob": [b], "chief": [a, b], "eve": []}
    # no subject: nothing, whatever the login may itself
    assert visible(db, login, "authenticated", {"role": "authenticated"}, [a, b]) == []
    # a role that is no auditor has not even the right to ask
    with pytest.raises(pg.InsufficientPrivilege):
        visible(db, login, "anon", {"sub": "ann"}, [a])


def test_only_listed_logins_are_believed(supabase_db: Db) -> None:
    db = supabase_db
    db.su.execute("select meshaudit.grant_auditor('ann', '*')")
    write(db.su)
    feed(db.su)
    login = db.role("stranger")
    db.pg.run(sql.SQL("grant authenticated to {}").format(sql.Identifier(login)).as_string())
    newest = one(db.su, "select newest from meshaudit.feed_range()")
    assert visible(db, login, "authenticated", {"sub": "ann"}, [newest]) == []
    # and a listed login is believed about the feed alone, not about the log or its own entries
    db.su.execute("select meshaudit.set_setting('realtime_roles', %s)", [login])
    assert visible(db, login, "authenticated", {"sub": "ann"}, [newest]) == [newest]
    with psycopg.connect(db.dsn(login)) as conn:
        conn.execute("""select set_config('role', 'authenticated', true),
          set_config('request.jwt.claims', '{"sub": "ann"}', true)""")
        assert one(conn, "select count(*) from meshaudit.audit_logs") == 0
