"""protect() and unprotect(): same answers as before, an entry for each value, and back without a trace."""

import threading
from typing import Any

import psycopg
import pytest
from psycopg import errors as pg

from tests.protect.support import ID1, ID2, App, dump
from tests.support import Db, wait_until


def test_answers_stay_and_a_dump_shows_no_difference(any_app: App) -> None:
    app, questions = (
        any_app,
        (
            "select * from secrets order by key",
            "select key from secrets where project_id = 1 order by key limit 2",
            "select s.value, p.name from secrets s join projects p on p.id = s.project_id order by s.key",
            "select count(*) from secrets",
            "select key from secrets where value = 'secret2'",
            "select json_agg(x), count(x) from (select id, value from secrets order by key) x",
        ),
    )
    before = [app.conn.execute(q.encode()).fetchall() for q in questions]
    assert len(before[0]) == 3
    dumped = dump(app.db)
    app.protect()
    assert [app.conn.execute(q.encode()).fetchall() for q in questions] == before
    app.owner.execute("select meshaudit.unprotect('secrets')")
    assert dump(app.db) == dumped
    assert [app.conn.execute(q.encode()).fetchall() for q in questions] == before
    left = "select count(*) from pg_proc where pronamespace = 'meshaudit_private'::regnamespace and proname ~ '_[0-9]+(_[0-9]+)?$'"
    assert app.db.su.execute(left.encode()).fetchone() == (0,)
    assert app.db.su.execute(
        "select has_schema_privilege(%s, 'meshaudit_private', 'usage')", [app.user]
    ).fetchone() == (False,)


def test_reads_are_recorded_exactly(protected: App) -> None:
    c, seen = protected.conn, protected.entries
    c.execute("select id, key, project_id, updated_at from secrets")
    c.execute("select count(*) from secrets")
    assert seen() == []
    c.execute("select * from secrets where key = 'k2'")
    assert seen() == [("read", ID2)]
    c.execute("select value from secrets order by key desc limit 1")
    assert [o for o, _ in seen()] == ["read"]
    # PostgREST's way of asking for a page
    c.execute(
        "with s as (select secrets.* from secrets order by key limit 2 offset 0), n as (select 1 from secrets)"
        " select (select count(*) from n), json_agg(x), count(x) from (select * from s) x"
    )
    assert len(seen()) == 2
    c.execute(
        "with s as (select secrets.* from secrets) select json_agg(x), count(x) from (select * from s) x"
    )
    assert len(seen()) == 3
    # rows that OFFSET skips are evaluated all the same
    c.execute("select value from secrets order by key limit 1 offset 1")
    assert len(seen()) == 2
    c.execute("select value from secrets where project_id = 2")
    assert seen() == []
    c.execute("select value, value from secrets where key = 'k2'")
    assert seen() == [("read", ID2)]
    # only the last row is remembered: never fewer than one for each, but more after another row
    for again in (
        "select value from secrets union all select value from secrets",
        "select a.value, b.value from secrets a, secrets b",
    ):
        c.execute(again.encode())
        read = [row for _, row in seen()]
        assert len(set(read)) == 3
        assert len(read) > 3


def test_writes_are_recorded_and_answer_as_before(protected: App) -> None:
    c, seen = protected.conn, protected.entries
    row = c.execute(
        "insert into secrets (project_id, key, value) values (1, 'new', 'v') returning id, n, value, created_at = updated_at"
    ).fetchone()
    assert row is not None
    assert row[1:] == (7, b"v", True)
    new = str(row[0])
    assert seen() == [("create", new)]
    row = c.execute(
        "update secrets set key = 'newer' where key = 'new' returning key, value, updated_at > created_at"
    ).fetchone()
    assert row == ("newer", b"v", True)
    assert seen() == [("read", new), ("update", new)]
    assert c.execute("update secrets set value = 'w' where key = 'newer' returning value").fetchone() == (
        b"w",
    )
    assert seen() == [("read", new), ("update", new)]
    assert c.execute("update secrets set key = key where project_id = 1").rowcount == 4
    assert c.execute("delete from secrets where key = 'newer' returning value").fetchone() == (b"w",)
    assert seen()[-1] == ("delete", new)
    with c.cursor().copy("copy secrets (project_id, key, value) from stdin") as copy:
        copy.write_row((1, "copied", b"x"))
    assert [o for o, _ in seen()] == ["create"]
    protected.owner.execute("delete from projects where id = 1")
    assert [o for o, _ in seen()] == ["delete"] * 4
    scope = "select distinct scope from meshaudit_private.ledger where secret_table = 'public.secrets'"
    assert protected.db.su.execute(scope.encode()).fetchall() == [("1",)]
    assert protected.db.su.execute("select * from meshaudit.verify()").fetchall() == []


def test_row_security_and_constraints_act_as_before(protected: App) -> None:
    c = protected.conn
    for bad, error in (
        ("insert into secrets (project_id, key, value) values (2, 'x', 'v')", pg.InsufficientPrivilege),
        ("update secrets set project_id = 2 where key = 'k2'", pg.InsufficientPrivilege),
        ("insert into secrets (project_id, key, value) values (1, 'k2', 'v')", pg.UniqueViolation),
        ("insert into secrets (project_id, key, value) values (1, 'bad', 'v')", pg.CheckViolation),
        ("insert into secrets (project_id, key) values (1, 'x')", pg.NotNullViolation),
        ("update secrets set value = null where key = 'k2'", pg.NotNullViolation),
    ):
        with pytest.raises(error) as caught:
            c.execute(bad.encode())
        assert "secret2" not in str(caught.value)
    assert c.execute("update secrets set key = 'z' where id = %s", [ID1]).rowcount == 0
    assert c.execute("delete from secrets where id = %s", [ID1]).rowcount == 0
    # the owner goes past row security, as before
    assert protected.owner.execute("select value from secrets where id = %s", [ID1]).fetchone() == (
        b"secret1",
    )
    assert protected.entries()[-1] == ("read", ID1)


def test_rolled_back_and_read_only_reads(protected: App) -> None:
    c, su = protected.conn, protected.db.su
    c.execute("begin read only")
    assert len(c.execute("select key from secrets").fetchall()) == 3
    with pytest.raises(psycopg.Error) as caught:
        c.execute("select value from secrets")
    assert caught.value.sqlstate == "MA002"
    c.execute("rollback")
    su.execute("select meshaudit.arm_journal()")
    for begin in ("begin read only", "begin"):
        c.execute(begin.encode())
        c.execute("select value from secrets where id = %s", [ID2])
        c.execute("rollback")
    protected.entries()
    sealed = 0

    def both_sealed() -> bool:
        nonlocal sealed
        sealed += int(su.execute("select meshaudit.seal()").fetchall()[0][0])
        return sealed == 2

    wait_until(both_sealed, what="both sealed")
    rows = su.execute(
        "select outcome from meshaudit_private.ledger where secret_id = %s order by id desc limit 2", [ID2]
    )
    assert sorted(o for (o,) in rows) == ["granted", "rolled_back"]
    su.execute("select meshaudit.disarm_journal()")


def test_journal_mode(app: App) -> None:
    app.db.su.execute("select meshaudit.arm_journal()")
    app.protect(mode="journal")
    app.conn.execute("select value from secrets")
    app.conn.execute("insert into secrets (project_id, key, value) values (1, 'j', 'v')")
    app.conn.execute("update secrets set value = 'w' where key = 'j'")
    assert app.entries() == []
    sealed: list[str] = []

    def all_sealed() -> bool:
        app.db.su.execute("select meshaudit.seal()")
        sealed.extend(o for o, _ in app.entries())
        return len(sealed) == 6

    wait_until(all_sealed, what="six entries")
    assert sorted(sealed) == ["create", "read", "read", "read", "read", "update"]
    app.db.su.execute("select meshaudit.disarm_journal()")


def test_no_write_without_a_state_of_the_journal(app: App) -> None:
    """A dump of the schema alone has none."""
    app.db.su.execute("select meshaudit.arm_journal()")
    app.protect(mode="journal")
    app.db.su.execute("create table public.kept as select * from meshaudit_private.journal")
    app.db.su.execute("delete from meshaudit_private.journal")
    for query in (
        "select value from secrets",
        "insert into secrets (project_id, key, value) values (1, 'j', 'v')",
        "insert into secrets (project_id, key, value) values (1, 'j', 'v'), (1, 'k', 'v')",
        "update secrets set value = 'w'",
        "delete from secrets",
    ):
        with pytest.raises(psycopg.Error) as caught:
            app.conn.execute(query.encode())
        assert caught.value.sqlstate == "MA002", query
    app.db.su.execute("insert into meshaudit_private.journal select * from public.kept")


def test_concurrent_claims_are_not_granted_twice(protected: App) -> None:
    other = protected.db.connect(protected.user)
    other.execute("set app.who = 'ann'")
    claim = b"update secrets set key = 'claimed' where key = 'k2'"
    protected.conn.execute("begin")
    assert protected.conn.execute(claim).rowcount == 1
    result: list[Any] = []

    def second() -> None:
        try:
            result.append(other.execute(claim).rowcount)
        except psycopg.Error as exc:
            result.append(exc.sqlstate)

    thread = threading.Thread(target=second)
    thread.start()
    wait_until(lambda: protected.db.waiting(), what="the second claim to wait")
    protected.conn.execute("commit")
    thread.join(10)
    assert result == ["40001"]


def test_an_update_that_meets_a_row_twice(db: Db) -> None:
    """UPDATE … FROM with several source rows for one target: Postgres takes one, and skips the others."""
    c = db.connect(db.role("app", "meshaudit_client"))
    for table in ("plain", "t"):
        db.su.execute(
            f"create table {table} (id int primary key, key text, n int default 0, v text);"
            f" insert into {table} (id, key, v) select i, 'k' || i, 'S' || i from generate_series(1, 3) i;"
            f" grant select, insert, update on {table} to {c.info.user}".encode()
        )
    db.su.execute("select meshaudit.protect('t', array['v'])")
    twice = "from (values ('a'), ('b')) v (k) where s.id = 1"
    for before, statement in (
        ("", f"update {{}} s set key = v.k {twice} returning s.*"),
        ("", f"update {{}} s set key = v.k, v = v.k {twice} returning s.id, v.k"),
        ("", "update {} s set n = n + 1 from generate_series(1, 3) i where s.id < 3"),
        ("", f"update {{}} s set id = 7, key = v.k {twice}"),
        (
            "update {} set n = 5; savepoint a; update {} set n = 6; release a",
            f"update {{}} s set n = n + 1 {twice}",
        ),
        ("update {} set n = 5; savepoint a", f"update {{}} s set n = n + 1 {twice}"),
        (
            "insert into {} (id, key, v) values (8, 'k', 'S')",
            "update {} s set n = n + i from generate_series(1, 3) i where id = 8",
        ),
        (
            "",
            "with a as (update {} set key = 'a' where id = 1 returning id) update {} s set key = 'b' from a where s.id = 1 returning s.*",
        ),
    ):
        told = []
        for table in ("plain", "t"):
            c.execute("begin")
            if before:
                c.execute(before.replace("{}", table).encode())
            done = c.execute(statement.replace("{}", table).encode())
            shown = done.fetchall() if done.description else []
            rest = c.execute(f"select * from {table} order by id".encode()).fetchall()
            told.append((done.statusmessage, shown, rest))
            c.execute("rollback")
        assert told[1] == told[0], statement


def test_a_row_that_an_after_trigger_has_changed_is_not_skipped(db: Db) -> None:
    """On a table it runs when the statement is through; here it would hide the statement's own change."""
    c = db.su
    c.execute(
        "create table t (id int primary key, one boolean default false, v text) partition by range (id);"
        "create table t1 partition of t for values from (0) to (10);"
        "insert into t values (1, false, 'S1'), (2, false, 'S2');"
        "create function only_one() returns trigger language plpgsql as $$ begin"
        " update meshaudit_protected.t1 set one = not one where id <> new.id and pg_trigger_depth() < 3; return null; end $$"
    )
    c.execute("select meshaudit.protect('t', array['v'])")
    assert c.execute("update t set one = true from (values (1), (1)) v (i) where id = i").rowcount == 1
    c.execute(
        "create trigger only_one after update on meshaudit_protected.t1 for each row execute function only_one()"
    )
    for statement in (
        "update t set one = true",
        "update t set one = not one from (values (1), (1)) v (i) where id = i",
    ):
        with pytest.raises(pg.TriggeredDataChangeViolation):
            c.execute(statement.encode())
    c.execute("drop trigger only_one on meshaudit_protected.t1")
    assert c.execute("select id, one from t order by id").fetchall() == [(1, True), (2, False)]


def test_a_delete_is_the_tables_own(protected: App) -> None:
    """It is no read, and where another transaction has changed the row its WHERE is asked again, as before."""
    c, seen = protected.conn, protected.entries
    assert c.execute("delete from secrets where key = 'k4' returning id, key").fetchone() is not None
    assert [o for o, _ in seen()] == ["delete"]
    other = protected.db.connect(protected.user)
    other.execute("set app.who = 'ann'")
    for key, left in (("k2", 0), ("gone", 1)):
        c.execute("begin")
        c.execute("update secrets set key = %s, created_at = now() where id = %s", [key, ID2])
        seen()
        result: list[Any] = []

        def second(result: list[Any] = result) -> None:
            try:
                result.append(other.execute("delete from secrets where key = 'k2' returning key").fetchall())
            except psycopg.Error as exc:
                result.append(exc.sqlstate)

        other.execute("begin")
        thread = threading.Thread(target=second)
        thread.start()
        wait_until(lambda: protected.db.waiting(), what="the delete to wait")
        c.execute("commit")
        thread.join(10)
        other.execute("rollback")
        assert result == [[("k2",)] if left == 0 else []]
    # the value of a version that came while it waited: whoever looks for it finds it deleted
    c.execute("update secrets set key = 'k2' where id = %s", [ID2])
    c.execute("begin")
    c.execute("update secrets set value = 'later' where id = %s", [ID2])
    got: list[Any] = []

    def third() -> None:
        try:
            got.append(other.execute("delete from secrets where key = 'k2' returning value").fetchone())
        except psycopg.Error as exc:
            got.append(exc.sqlstate)

    thread = threading.Thread(target=third)
    thread.start()
    wait_until(lambda: protected.db.waiting(), what="the delete to wait")
    c.execute("commit")
    thread.join(10)
    assert got == ["40001"]


def test_merge(protected: App) -> None:
    """From 17 on: by triggers, or by the table alone; not both in one statement. It never writes without an entry."""
    c, seen = protected.conn, protected.entries
    merge = f"merge into secrets s using (values ('{ID2}'::uuid)) v (id) on s.id = v.id when matched"
    both = f"{merge} and s.key = 'x' then delete when matched then update set key = 'm'".encode()
    with pytest.raises((pg.FeatureNotSupported, pg.WrongObjectType)):
        c.execute(both)
    if protected.db.pg.version < 17:
        return
    assert c.execute(f"{merge} then update set key = 'm'".encode()).rowcount == 1
    assert seen() == [("read", ID2), ("update", ID2)]
    assert c.execute(f"{merge} then delete".encode()).rowcount == 1
    assert seen() == [("delete", ID2)]


def test_select_for_update_reveals_the_newest_value(protected: App) -> None:
    other = protected.db.connect(protected.user)
    other.execute("set app.who = 'ann'")
    protected.conn.execute("begin")
    protected.conn.execute("update secrets set value = 'newest' where key = 'k2'")
    got: list[Any] = []
    ask = b"select value from secrets where key = 'k2' for update"
    thread = threading.Thread(target=lambda: got.append(other.execute(ask).fetchone()))
    thread.start()
    wait_until(lambda: protected.db.waiting(), what="the reader to wait")
    protected.conn.execute("commit")
    thread.join(10)
    assert got == [(b"newest",)]


def test_a_listing_has_nothing_to_do_with_the_values(protected: App) -> None:
    """What it would have to lock and to check, each time, is not in its query."""
    locks = (
        "select c.relname from pg_locks l join pg_class c on c.oid = l.relation"
        " where l.pid = %s and c.relkind in ('r', 'v') and c.relnamespace <> 'pg_catalog'::regnamespace order by 1"
    )

    def locked(query: str) -> list[str]:
        with protected.conn.transaction():
            protected.conn.execute(query.encode())
            rows = protected.db.su.execute(locks.encode(), [protected.conn.info.backend_pid])
            return [name for (name,) in rows.fetchall()]

    assert "values_1" not in locked("select id, key from secrets")
    assert "values_1" in locked("select value from secrets")
