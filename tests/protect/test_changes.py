"""What a table's owner, and who reads all data, do to a protected table afterwards: status says it, and values stay in."""

import subprocess
import threading
from typing import Any

import psycopg
import pytest
from psycopg import errors as pg

from tests import servers
from tests.support import Db, wait_until

TABLE = """
create table public.t (id int primary key, o text, v text);
insert into public.t values (1, 'a', 'S1'), (2, 'b', 'S2');
"""


def checks(db: Db) -> dict[str, tuple[bool, str]]:
    rows = db.su.execute('select "check", ok, detail from meshaudit.status()').fetchall()
    return {name: (ok, detail) for name, ok, detail in rows}


@pytest.fixture
def owner(db: Db) -> psycopg.Connection[Any]:
    """The connection of who owns table t, protected; not a superuser."""
    role = db.role("owner", "meshaudit_client")
    db.su.execute(f"grant create on schema public to {role}")
    conn = db.connect(role)
    conn.execute(TABLE)
    conn.execute("select meshaudit.protect('public.t', '{v}')")
    return conn


CHANGES = {
    "alter table meshaudit_protected.t rename column v to w": ("guards", "column v has been renamed"),
    "alter table meshaudit_protected.t rename column id to key": ("guards", "column id has been renamed"),
    "alter table meshaudit_protected.t drop column v cascade": (
        "guards",
        "column v has been renamed or dropped",
    ),
    "drop view public.t": ("guards", "the view is gone"),
    "drop table meshaudit_protected.t cascade": ("guards", "the table has been dropped"),
    "alter view public.t rename to u": ("guards", "the view is called public.u now"),
    "alter view public.t rename column o to p": ("guards", "the view's column p has another name"),
    "alter view public.t set (security_invoker = false)": (
        "guards",
        "row security does not act through the view",
    ),
    "drop policy meshaudit_reveal on meshaudit_protected.t": ("guards", "policy meshaudit_reveal is missing"),
    "create policy p on meshaudit_protected.t as restrictive using (false)": ("guards", "policy p binds"),
    "alter table meshaudit_protected.t rename column v to w; grant select (w) on meshaudit_protected.t to public": (
        "ways around",
        "SELECT on a secret column",
    ),
    "create function public.spy() returns trigger language plpgsql as 'begin return new; end';"
    "create trigger spy before update on meshaudit_protected.t for each row execute function public.spy()": (
        "triggers",
        "trigger spy on meshaudit_protected.t (function public.spy() of",
    ),
    "create function public.nothing() returns trigger language plpgsql as 'begin return null; end';"
    "create or replace trigger meshaudit_insert instead of insert on public.t for each row"
    " execute function public.nothing()": ("guards", "trigger meshaudit_insert of the view is missing"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_status_says_what_an_owner_does(db: Db, owner: psycopg.Connection[Any], change: str) -> None:
    owner.execute(change.encode())
    which, what = CHANGES[change]
    assert what in checks(db)[f"{which} of public.t" if which != "ways around" else "ways around public.t"][1]
    # no value without an entry, whatever has become of the table
    for query in ("select v from public.t", "select * from public.t", "select v from public.u"):
        try:
            read = owner.execute(query.encode()).fetchall()
        except psycopg.Error as e:
            assert "S1" not in str(e)  # noqa: PT017
        else:
            count = "select count(distinct secret_id) from meshaudit.audit_logs where operation = 'read'"
            assert db.su.execute(count).fetchone() == (len(read),)
    assert db.su.execute("select * from meshaudit.verify()").fetchall() == []


def test_a_secret_column_keeps_its_type(owner: psycopg.Connection[Any]) -> None:
    with pytest.raises(pg.FeatureNotSupported, match="used by a view"):
        owner.execute("alter table meshaudit_protected.t alter column v type int using 1")
    with pytest.raises(pg.DependentObjectsStillExist):
        owner.execute("alter table meshaudit_protected.t drop column v")


def test_a_column_that_comes_later_is_not_shown(db: Db, owner: psycopg.Connection[Any]) -> None:
    owner.execute("alter table meshaudit_protected.t add column w text default 'new'")
    owner.execute("grant select on public.t to public")
    for query in ("select w from public.t", "select w from meshaudit_protected.t"):
        with pytest.raises(psycopg.Error):
            owner.execute(query.encode())
    owner.execute("insert into public.t values (3, 'c', 'S3')")
    owner.execute("select meshaudit.unprotect('public.t')")
    assert owner.execute("select w, v from public.t where id = 3").fetchone() == ("new", "S3")


def test_a_later_grant(db: Db, owner: psycopg.Connection[Any]) -> None:
    """On the name alone it gives nothing. In one transaction with unprotect and protect it does."""
    reader = db.connect(db.role("reader"))
    grant = f"grant select on public.t to {reader.info.user}"
    owner.execute(grant.encode())
    with pytest.raises(pg.InsufficientPrivilege):
        reader.execute("select v from public.t")
    with owner.transaction():
        owner.execute("select meshaudit.unprotect('public.t')")
        owner.execute(grant.encode())
        owner.execute("select meshaudit.protect('public.t', '{v}')")
    assert reader.execute("select v from public.t where id = 1").fetchone() == ("S1",)
    read = "select count(*) from meshaudit.audit_logs where db_user = %s and operation = 'read'"
    assert db.su.execute(read, [reader.info.user]).fetchone() == (1,)
    owner.execute(f"revoke select on public.t from {reader.info.user}".encode())
    with pytest.raises(pg.InsufficientPrivilege):
        reader.execute("select v from public.t")


def test_a_dropped_table_is_forgotten(db: Db, owner: psycopg.Connection[Any]) -> None:
    oid = db.su.execute("select base::oid from meshaudit_private.protections").fetchone()
    owner.execute("drop table meshaudit_protected.t cascade")
    owner.execute(TABLE)
    assert oid is not None
    owner.execute(f"select meshaudit.unprotect('{oid[0]}')".encode())
    assert "guards of public.t" not in checks(db)
    owner.execute("select meshaudit.protect('public.t', '{v}')")
    assert checks(db)["guards of public.t"] == (True, "in place")


def test_a_table_whose_view_was_dropped_comes_back(db: Db, owner: psycopg.Connection[Any]) -> None:
    owner.execute("drop view public.t")
    owner.execute("select meshaudit.unprotect('meshaudit_protected.t')")
    assert owner.execute("select v from public.t order by id").fetchall() == [("S1",), ("S2",)]
    left = (
        "select proname from pg_proc where pronamespace = 'meshaudit_private'::regnamespace and proname ~ '_[0-9]+$'"
        " union all select relname from pg_class where relname ~ '^values_[0-9]+$'"
    )
    assert db.su.execute(left.encode()).fetchall() == []


def test_a_table_whose_view_has_another_name_comes_back(db: Db, owner: psycopg.Connection[Any]) -> None:
    owner.execute("alter view public.t rename to u")
    owner.execute("create table public.t ()")
    with pytest.raises(pg.DuplicateTable):
        owner.execute("select meshaudit.unprotect('u')")
    owner.execute("drop table public.t")
    owner.execute("select meshaudit.unprotect('u')")
    assert owner.execute("select v from public.t order by id").fetchall() == [("S1",), ("S2",)]


def test_who_reads_all_data_forges_no_write_of_a_table(db: Db, owner: psycopg.Connection[Any]) -> None:
    reader = db.connect(db.role("reader", "pg_read_all_data"))
    reader.execute("create temp table t (id int, o text, v text)")
    reader.execute(
        "create trigger t after insert on t referencing new table as new_rows"
        " for each statement execute function meshaudit_private.writes_1()"
    )
    with pytest.raises(psycopg.Error) as refused:
        reader.execute("insert into t values (1, 'a', 'x')")
    assert refused.value.sqlstate == "MA003"


@pytest.mark.parametrize("above", [False, True])
def test_who_reads_all_data_and_row_security(db: Db, owner: psycopg.Connection[Any], above: bool) -> None:
    """The values' view can be named with USAGE on every schema, and reads as its owner: only for who is above row security."""
    role = db.role("reader", "pg_read_all_data", bypassrls=above)
    owner.execute("alter table meshaudit_protected.t enable row level security")
    owner.execute(f"create policy p on meshaudit_protected.t for select to {role} using (id = 1)".encode())
    reader = db.connect(role)
    for query in (
        "select c3 from meshaudit_private.values_1",
        "select v from public.t",
        "select meshaudit_private.latest_1_3(2, '(0,2)', 'x')",
        "select meshaudit_private.see_1_3(2, '(0,2)', 'x')",
        "select meshaudit_private.newest_1_3(2, '(0,2)', 'x')",
    ):
        if above:
            assert ("S2",) in reader.execute(query.encode()).fetchall()
        else:
            with pytest.raises(psycopg.Error, match="pg_read_all_data") as refused:
                reader.execute(query.encode())
            assert refused.value.sqlstate == "MA001"
    assert reader.execute("select id from public.t").fetchall() == [(1,), (2,)][: 2 if above else 1]
    # in a function of his that another login calls
    db.su.execute(f"grant create on schema public to {role}")
    reader.execute(
        "create function public.f() returns setof text language plpgsql security definer as"
        " $$ begin return query select c3 from meshaudit_private.values_1; end $$"
    )
    other = db.connect(db.role("other"))
    if above:
        assert len(other.execute("select public.f()").fetchall()) == 2
    else:
        with pytest.raises(psycopg.Error, match="pg_read_all_data"):
            other.execute("select public.f()")


def test_order_and_comparison_are_as_before(db: Db) -> None:
    """The reveal's collation is the column's, whatever else it is called with."""
    db.su.execute(
        'create table public.t (id text collate "C" primary key, v text, w text collate "C", x varchar(9));'
    )
    collations = (
        "select array_agg(attcollation::regcollation::text order by attnum) from pg_attribute"
        " where attrelid = 'public.t'::regclass and attnum > 0"
    )
    before = db.su.execute(collations).fetchone()
    db.su.execute("select meshaudit.protect('public.t', '{v,w,x}')")
    assert db.su.execute(collations).fetchone() == before


def test_what_a_dry_run_says_of_triggers(db: Db, owner: psycopg.Connection[Any]) -> None:
    owner.execute("select meshaudit.unprotect('public.t')")
    assert "sees the values" not in str(
        owner.execute("select meshaudit.protection_plan('public.t', '{v}')").fetchall()
    )
    other = db.role("other")
    db.su.execute(
        "create function public.touch() returns trigger language plpgsql as 'begin return new; end';"
        f"alter function public.touch() owner to {other};"
        "create trigger touch before insert on public.t for each row execute function public.touch()"
    )
    plan = str(owner.execute("select meshaudit.protection_plan('public.t', '{v}')").fetchall())
    said = f"trigger touch on public.t (function public.touch() of {other})"
    assert f"-- sees the values that are written: {said}" in plan
    owner.execute("select meshaudit.protect('public.t', '{v}')")
    ok, detail = checks(db)["triggers of public.t"]
    assert not ok
    assert "trigger touch on meshaudit_protected.t" in detail
    db.su.execute(f"alter function public.touch() owner to {owner.info.user}")
    assert checks(db)["triggers of public.t"][0]


def test_an_open_protect_keeps_others_waiting_for_seconds_only(
    db: Db, owner: psycopg.Connection[Any]
) -> None:
    limits = db.su.execute(
        "select proname, proconfig from pg_proc where proname in ('begin_protect', 'begin_unprotect')"
    ).fetchall()
    assert all("lock_timeout=10s" in config for _, config in limits)
    assert len(limits) == 2


def test_the_inner_schema_is_watched(db: Db, owner: psycopg.Connection[Any]) -> None:
    assert checks(db)["inner schema"] == (True, "closed")
    db.su.execute(f"grant usage on schema meshaudit_private to {owner.info.user}")
    assert owner.info.user in checks(db)["inner schema"][1]


def test_a_restored_dump_is_protected_too(db: Db, owner: psycopg.Connection[Any], template: Any) -> None:
    """With other oids, in another database of the server; by a superuser."""
    other = template.clone_empty("superuser")
    try:
        dump = subprocess.run(
            [servers.client("pg_dump"), "-d", db.dsn(db.pg.superuser)], capture_output=True, check=True
        )
        psql = [
            str(servers.client("psql")),
            "-X",
            "-q",
            "-v",
            "ON_ERROR_STOP=1",
            "-d",
            other.dsn(db.pg.superuser),
        ]
        # pg_dump is of 18
        script = dump.stdout.replace(b"SET transaction_timeout = 0;", b"")
        done = subprocess.run(psql, input=script, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        conn = other.connect(owner.info.user)
        assert conn.execute("select v from public.t order by id").fetchall() == [("S1",), ("S2",)]
        conn.execute("update public.t set v = 'S3' where id = 1")
        rows = other.su.execute(
            "select operation, secret_id from meshaudit.audit_logs where secret_table = 'public.t' order by id"
        )
        assert rows.fetchall() == [("read", "1"), ("read", "2"), ("read", "1"), ("update", "1")]
        assert checks(other)["guards of public.t"] == (True, "in place")
        conn.execute("select meshaudit.unprotect('public.t')")
        assert conn.execute("select v from public.t order by id").fetchall() == [("S3",), ("S2",)]
    finally:
        other.drop()


def test_a_dump_by_the_owner_needs_more_than_owning(db: Db, owner: psycopg.Connection[Any]) -> None:
    dump = [str(servers.client("pg_dump")), "-n", "meshaudit_protected", "-d", db.dsn(owner.info.user)]
    done = subprocess.run(dump, capture_output=True, text=True, check=False)
    assert "permission denied for table t" in done.stderr
    assert "S1" not in done.stdout


def test_protecting_and_taking_out_under_load(db: Db, owner: psycopg.Connection[Any]) -> None:
    """Readers and writers meet the table or its view, never neither; two who protect at once do it once."""
    stop, troubles, reads = threading.Event(), [], [0, 0]
    user = db.role("app")
    owner.execute(f"select meshaudit.unprotect('t'); grant select, update on t to {user}".encode())

    def work(n: int) -> None:
        conn = db.connect(user)
        while not stop.is_set():
            try:
                if n:
                    conn.execute("update public.t set o = o where id = %s", [n])
                else:
                    assert len(conn.execute("select v from public.t").fetchall()) == 2
                reads[n % 2] += 1
            except (pg.SerializationFailure, pg.DeadlockDetected):
                pass
            except Exception as e:
                troubles.append(repr(e))
                return

    threads = [threading.Thread(target=work, args=(n,)) for n in (0, 0, 1, 2)]
    for thread in threads:
        thread.start()
    second = db.connect(owner.info.user)
    done: list[str] = []
    for _ in range(4):

        def protect(conn: psycopg.Connection[Any]) -> None:
            try:
                conn.execute("select meshaudit.protect('public.t', '{v}')")
                done.append("done")
            except psycopg.Error as e:
                done.append(str(e.sqlstate))

        both = [threading.Thread(target=protect, args=(c,)) for c in (owner, second)]
        for thread in both:
            thread.start()
        for thread in both:
            thread.join()
        owner.execute("select meshaudit.unprotect('public.t')")
    stop.set()
    for thread in threads:
        thread.join()
    assert troubles == []
    assert sorted(done) == ["MA005"] * 4 + ["done"] * 4
    assert min(reads) > 0
    assert db.su.execute("select * from meshaudit.verify()").fetchall() == []


def test_a_cursor_that_is_held_over_its_commit(db: Db, owner: psycopg.Connection[Any]) -> None:
    owner.execute("begin")
    owner.execute("declare c scroll cursor with hold for select v from public.t")
    owner.execute("commit")
    assert owner.execute("fetch backward all from c").fetchall() == []
    assert len(owner.execute("fetch all from c").fetchall()) == 2
    rows = db.su.execute(
        "select secret_id from meshaudit.audit_logs where secret_table = 'public.t' order by id"
    )
    assert rows.fetchall() == [("1",), ("2",)]


def test_status_tells_of_lanes_that_an_old_transaction_burdens(db: Db) -> None:
    assert checks(db)["lanes"][0]
    old = db.connect(db.pg.superuser, autocommit=False)
    old.execute("set transaction isolation level repeatable read")
    old.execute("select from pg_class limit 1")
    db.su.execute(
        "do $$ begin for i in 1 .. 200 loop update meshaudit_private.lane_heads set prev_hash = prev_hash; end loop; end $$;"
        "select pg_stat_force_next_flush()"
    )
    db.su.execute("select 1")
    ok, detail = wait_until(lambda: (c := checks(db)["lanes"]) and not c[0] and c, what="the statistics")
    assert not ok
    assert "stays open" in detail
    old.rollback()
