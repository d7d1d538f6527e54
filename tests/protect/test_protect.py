"""protect() and unprotect(): same answers as before, an entry for each value, and back without a trace."""

import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from psycopg import errors as pg
from psycopg import sql

from tests import servers
from tests.cli_support import fails, ok, ok_json
from tests.support import Db, wait_until

TABLES = """
create table projects (id int primary key, owner text not null, name text);
create table secrets (
  id uuid primary key default gen_random_uuid(),
  project_id int not null references projects on delete cascade,
  key text not null check (key <> 'bad'),
  value bytea not null,
  n serial,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  unique (project_id, key)
);
comment on table secrets is 'What we keep';
comment on column secrets.value is 'Ciphertext';
create function touch() returns trigger language plpgsql as $$
begin new.updated_at = clock_timestamp(); return new; end $$;
create trigger touch before update on secrets for each row execute function touch();
create function mine() returns setof int language sql stable as $$
  select id from projects where owner = current_setting('app.who', true) $$;
alter table secrets enable row level security;
create policy s on secrets for select using (project_id in (select mine()));
create policy i on secrets for insert with check (project_id in (select mine()));
create policy u on secrets for update using (project_id in (select mine())) with check (project_id in (select mine()));
create policy d on secrets for delete using (project_id in (select mine()));
insert into projects values (1, 'ann', 'one'), (2, 'bob', 'two');
insert into secrets (id, project_id, key, value)
  select ('00000000-0000-0000-0000-00000000000' || i)::uuid, 1 + i % 2, 'k' || i, convert_to('secret' || i, 'UTF8')
  from generate_series(1, 6) i;
"""
ID2 = "00000000-0000-0000-0000-000000000002"  # of ann's project
ID1 = "00000000-0000-0000-0000-000000000001"  # of bob's


@dataclass
class App:
    """A database with the tables, and a login `user` that row security takes for ann."""

    db: Db
    user: str
    owner: psycopg.Connection[Any]
    conn: psycopg.Connection[Any]

    def protect(self, *columns: str, table: str = "secrets", **options: Any) -> None:
        named = {"scope_column": "project_id", **options}
        self.owner.execute(
            "select meshaudit.protect(%s::regclass, %s, %s, %s)",
            [table, list(columns or ("value",)), named["scope_column"], named.get("mode", "ledger")],
        )

    def entries(self) -> list[tuple[str, str]]:
        """operation and secret_id of what was recorded since the last call, in order."""
        rows = self.db.su.execute(
            "select operation, secret_id from meshaudit_private.ledger"
            " where secret_table not like 'meshaudit.%%' and id > coalesce(current_setting('test.seen', true), '0')::bigint"
            " order by id"
        ).fetchall()
        self.db.su.execute(
            "select set_config('test.seen', (select max(id) from meshaudit_private.ledger)::text, false)"
        )
        return rows


def make_app(db: Db) -> App:
    user = db.role("app", "meshaudit_client")
    owner = db.connect()
    if db.flavour != "superuser":
        owner.execute("grant all on schema public to current_user" if db.pg.version < 15 else "select 1")
    owner.execute(TABLES.encode())
    grants = "grant select, insert, update, delete on projects, secrets to {0}; grant usage on sequence secrets_n_seq to {0}"
    owner.execute(sql.SQL(grants).format(sql.Identifier(user)))
    conn = db.connect(user)
    conn.execute("set app.who = 'ann'")
    db.su.execute("set app.who = 'ann'")
    return App(db, user, owner, conn)


@pytest.fixture
def app(db: Db) -> App:
    return make_app(db)


@pytest.fixture
def any_app(any_db: Db) -> App:
    if any_db.flavour != "superuser":
        any_db.su.execute("grant create on schema public to public")
    return make_app(any_db)


@pytest.fixture
def protected(app: App) -> App:
    app.protect()
    app.entries()
    return app


def dump(db: Db) -> str:
    done = subprocess.run(
        [servers.client("pg_dump"), "-d", db.dsn(db.pg.superuser), "-N", "meshaudit*"],
        capture_output=True,
        text=True,
        check=True,
    )
    # a random word, new in each dump
    return "\n".join(
        line for line in done.stdout.splitlines() if not line.startswith(("\\restrict", "\\unrestrict"))
    )


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


SHAPES = {
    "composite key": (
        "create table t (a int, b text, v text, primary key (a, b)); insert into t values (1, 'x', 'S1'), (2, 'y, z', 'S2')",
        ["v"],
        "(1,x)",
    ),
    "two secrets": (
        "create table t (id int primary key, v text, w jsonb, o int); insert into t values (1, 'S1', '{\"a\": \"S2\"}', 3)",
        ["v", "w"],
        "1",
    ),
    "identity always": (
        "create table t (id int generated always as identity primary key, v text); insert into t (v) values ('S1')",
        ["v"],
        "1",
    ),
    "identity by default": (
        "create table t (id int generated by default as identity primary key, v text); insert into t (v) values ('S1')",
        ["v"],
        "1",
    ),
    "generated column": (
        "create table t (id int primary key, a int, b int generated always as (a * 2) stored, v text); insert into t (id, a, v) values (1, 2, 'S1')",
        ["v"],
        "1",
    ),
    "typmods and nulls": (
        "create table t (id int primary key, v varchar(5) collate \"C\", x numeric(6, 2)); insert into t values (1, 'S1', 1.5), (2, null, null)",
        ["v", "x"],
        "1",
    ),
    "quoted": (
        'create table "Tä\'b""le %" ("Schlüssel %" int primary key, "Geh\'eim" text); insert into "Tä\'b""le %" values (1, \'S1\')',
        ["Geh'eim"],
        "1",
    ),
    "date key": (
        "create table t (id timestamptz primary key, v text); insert into t values ('2026-01-01 00:00+00', 'S1')",
        ["v"],
        "2026-01-01 00:00:00+00",
    ),
    "partitioned": (
        "create table t (id int, v text, primary key (id)) partition by range (id); create table t1 partition of t for values from (0) to (10); create table t2 partition of t for values from (10) to (20); insert into t values (1, 'S1'), (11, 'S2')",
        ["v"],
        "1",
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(db: Db, shape: str) -> None:
    ddl, secrets, first = SHAPES[shape]
    c = db.su
    c.execute("set timezone = 'America/New_York'")
    c.execute(ddl.encode())
    name = '"Tä\'b""le %"' if shape == "quoted" else "t"
    table = name.encode()
    before = c.execute(b"select * from " + table + b" order by 1").fetchall()
    dumped = dump(db)
    c.execute("select meshaudit.protect(%s::regclass, %s)", [name, secrets])
    assert c.execute(b"select * from " + table + b" order by 1").fetchall() == before
    ids = [
        i
        for (i,) in c.execute(
            "select secret_id from meshaudit_private.ledger where operation = 'read' order by id"
        )
    ]
    assert len(ids) == len(before)
    assert ids[0] == first
    columns = {d.name for d in c.execute(b"select * from " + table + b" limit 0").description or ()}
    secret = sql.Identifier(secrets[0])
    changed = c.execute(
        sql.SQL("update {} set {} = {} where {} is not null returning {}").format(
            sql.SQL(name), secret, sql.Literal("N"), secret, secret
        )
    ).fetchall()
    assert {v for (v,) in changed} == {"N"}
    if "id" in columns and shape in ("identity always", "identity by default"):
        assert c.execute("insert into t (v) values ('more') returning id, v").fetchone() == (2, "more")
    if shape == "identity always":
        with pytest.raises(pg.GeneratedAlways):
            c.execute("insert into t (id, v) values (9, 'x')")
    if shape == "generated column":
        assert c.execute("update t set a = 5 returning b").fetchone() == (10,)
        assert c.execute("insert into t (id, a, v) values (2, 7, 'x') returning b").fetchone() == (14,)
    if shape == "two secrets":
        assert c.execute("update t set w = '[1]', o = 4 returning v, w, o").fetchone() == ("N", [1], 4)
    if shape == "partitioned":
        c.execute("delete from meshaudit_protected.t1")
        assert c.execute(
            "select count(*) from meshaudit_private.ledger where operation = 'delete' and secret_id = '1'"
        ).fetchone() == (1,)
        outsider = db.connect(db.role("outsider"))
        with pytest.raises(pg.InsufficientPrivilege):
            outsider.execute("select v from meshaudit_protected.t1")
    c.execute(b"select meshaudit.unprotect('" + table.replace(b"'", b"''") + b"')")
    assert dump_schema(dump(db)) == dump_schema(dumped)


def dump_schema(text: str) -> list[str]:
    """A dump's statements without the rows, which the test has changed."""
    lines, copying = [], False
    for line in text.splitlines():
        copying = copying or line.startswith("COPY ")
        if not copying and "pg_catalog.setval" not in line:
            lines.append(line)
        copying = copying and line != "\\."
    return lines


REFUSALS = {
    "no primary key": "create table r (id int, v text)",
    "these would keep reading": "create table r (id int primary key, v text); create view rv as select v from r",
    "a publication streams": "create table r (id int primary key, v text); create publication {tag} for table r",
    "it inherits": "create table rp (id int, v text); create table r (primary key (id)) inherits (rp)",
    "it is not a table": "create view r as select 1 as id, 'x'::text as v",
    "it has no column": "create table r (id int primary key, other text)",
    "it is a partition": "create table rp (id int primary key, v text) partition by list (id); create table r partition of rp default",
    "policies of other tables": "create table r (id int primary key, v text); create table rp (v text);"
    " create policy p on rp using (exists (select from r where r.v = rp.v))",
    "is generated from": "create table r (id int primary key, v text, g text generated always as (v || 'x') stored)",
    "only a part of its other": "create table r (id int primary key, v text, o text); grant select (id) on r to {role}",
    "in the primary key": "create table r (id int, v text, primary key (id, v))",
    "granted by others": "create table r (id int primary key, v text); grant select on r to {role} with grant option; set role {role}; grant select on r to public; reset role",
}


@pytest.mark.parametrize("why", REFUSALS)
def test_refusals(db: Db, why: str) -> None:
    role = db.role("grantee")
    db.su.execute(REFUSALS[why].format(tag=f"p_{role}", role=role).encode())
    with pytest.raises(psycopg.Error) as caught:
        db.su.execute("select meshaudit.protect('r', array['v'])")
    assert caught.value.sqlstate == "MA005"
    assert why in str(caught.value)
    assert caught.value.diag.message_hint
    assert db.su.execute("select count(*) from meshaudit_private.protections").fetchone() == (0,)


def test_who_may_protect(protected: App) -> None:
    for statement in (
        "select meshaudit.unprotect('secrets')",
        "select meshaudit.protect('projects', array['name'])",
    ):
        with pytest.raises(psycopg.Error) as caught:
            protected.conn.execute(statement.encode())
        assert caught.value.sqlstate == "MA001"
    for again in ("secrets", "meshaudit_protected.secrets"):
        with pytest.raises(psycopg.Error, match="protected already"):
            protected.owner.execute("select meshaudit.protect(%s::regclass, array['value'])", [again])
    for system in ("pg_catalog.pg_class", "meshaudit_private.secrets"):
        with pytest.raises(psycopg.Error, match="system"):
            protected.db.su.execute("select meshaudit.protect(%s::regclass, array['value'])", [system])
    # the steps by themselves leave nothing
    protected.db.su.execute("create table half (id int primary key, v text)")
    with pytest.raises(psycopg.Error, match=r"meshaudit\.protect\(\) alone"):
        protected.db.su.execute(
            "select * from meshaudit_private.begin_protect('half', array['v'], null, 'ledger', current_user)"
        )


def test_owner_that_is_no_superuser_and_its_member(db: Db) -> None:
    owner = db.role("table_owner", "meshaudit_client")
    member = db.role("member", owner)
    db.su.execute(sql.SQL("create schema app authorization {}").format(sql.Identifier(owner)))
    with db.connect(owner) as conn:
        conn.execute("create table app.s (id int primary key, v text)")
    with db.connect(member) as conn:
        conn.execute("select meshaudit.protect('app.s', array['v'])")
        conn.execute("insert into app.s values (1, 'x')")
        assert conn.execute("select current_user, v from app.s").fetchone() == (member, "x")
        assert conn.execute(
            "select pg_catalog.has_schema_privilege(%s, 'meshaudit_private', 'usage')", [owner]
        ).fetchone() == (False,)
        conn.execute("select meshaudit.unprotect('app.s')")
    with db.connect(owner) as conn:
        assert conn.execute("select v from app.s").fetchone() == ("x",)


def test_column_privileges(app: App) -> None:
    limited = app.db.role("limited")
    app.owner.execute(
        sql.SQL(
            "grant select (id, key, project_id, n, created_at, updated_at), insert (project_id, key, value), update (key) on secrets to {0};"
            " grant select on projects to {0}; grant usage on sequence secrets_n_seq to {0}"
        ).format(sql.Identifier(limited))
    )
    app.protect()
    c = app.db.connect(limited)
    c.execute("set app.who = 'ann'")
    c.execute("insert into secrets (project_id, key, value) values (1, 'lim', 'v')")
    assert len(c.execute("select key from secrets").fetchall()) == 4
    for bad in (
        "select value from secrets",
        "select value from meshaudit_protected.secrets",
        "update secrets set value = 'x'",
    ):
        with pytest.raises(pg.InsufficientPrivilege):
            c.execute(bad.encode())


def test_status_lists_the_ways_around(protected: App) -> None:
    def check(name: str) -> tuple[bool, str]:
        rows = protected.db.su.execute('select "check", ok, detail from meshaudit.status()').fetchall()
        return next((ok, detail) for c, ok, detail in rows if c == name)

    assert check("ways around public.secrets")[0]
    assert check("guards of public.secrets") == (True, "in place")
    assert check("publications of public.secrets")[0]
    assert protected.db.pg.superuser in check("roles above all privileges")[1]
    su = protected.db.su
    su.execute(
        sql.SQL("grant select on meshaudit_protected.secrets to {}").format(sql.Identifier(protected.user))
    )
    assert protected.user in check("ways around public.secrets")[1]
    su.execute("alter table meshaudit_protected.secrets disable trigger meshaudit_update")
    assert "meshaudit_update" in check("guards of public.secrets")[1]
    tag = f"p_{protected.user}"
    su.execute(
        sql.SQL("create publication {} for table meshaudit_protected.secrets").format(sql.Identifier(tag))
    )
    assert tag in check("publications of public.secrets")[1]
    su.execute(
        "create or replace view secrets with (security_invoker) as select id, project_id, key, null::bytea as value, n, created_at, updated_at from meshaudit_protected.secrets"
    )
    assert "no longer reveals" in check("guards of public.secrets")[1]


def test_unprotect_refuses_while_views_depend(protected: App) -> None:
    protected.owner.execute("create view keys as select key from secrets")
    with pytest.raises(psycopg.Error, match="depend on its view"):
        protected.owner.execute("select meshaudit.unprotect('secrets')")
    with pytest.raises(psycopg.Error, match="is not protected"):
        protected.owner.execute("select meshaudit.unprotect('projects')")


ATTACKS = (
    "select value from meshaudit_protected.secrets",
    "select s from meshaudit_protected.secrets s",
    "copy meshaudit_protected.secrets to stdout",
    "update meshaudit_protected.secrets set key = value::text",
    "update meshaudit_protected.secrets set key = key returning value",
    "delete from meshaudit_protected.secrets returning *",
    "insert into meshaudit_protected.secrets (id, project_id, key, value) values ('{id}', 1, 'q', 'v')"
    " on conflict (id) do update set key = secrets.value::text",
    "select meshaudit_private.reveal_1_4('{other}', '(0,1)', 'x')",
    "create trigger spy before update on meshaudit_protected.secrets for each row execute function touch()",
    "create trigger spy instead of update on secrets for each row execute function touch()",
    "alter table meshaudit_protected.secrets add check (value <> 'x')",
    "set session_replication_role = replica",
    "truncate meshaudit_protected.secrets",
    "create table fk (id uuid references meshaudit_protected.secrets (id))",
    "select most_common_vals, histogram_bounds from pg_stats where tablename = 'secrets' and attname = 'value'",
)


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_on_the_table_itself(protected: App, attack: str) -> None:
    protected.db.su.execute("analyze meshaudit_protected.secrets")
    protected.db.su.execute("grant create on schema public to public")
    text = attack.format(id=ID2, other=ID1)
    c = protected.conn
    if "pg_stats" in text:
        assert c.execute(text.encode()).fetchall() == []
        return
    with pytest.raises(psycopg.Error) as caught:
        c.execute(text.encode())
    assert caught.value.sqlstate in ("42501", "42830", "2BP01")
    assert "secret" not in str(caught.value).replace("secrets", "")
    assert not [e for e in protected.entries() if e[1] == ID1]


WAYS = (
    ("select value from secrets where id = '{id}'", 1),
    ("select key from secrets where value = 'secret2' and id = '{id}'", 1),
    ("select key from secrets where id = '{id}' order by value", 1),
    ("select max(value::text) from secrets where id = '{id}'", 1),
    ("explain analyze select value from secrets where id = '{id}'", 1),
    ("do $$ declare v bytea; begin select value into v from secrets where id = '{id}'; end $$", 1),
    ("update secrets set key = convert_from(value, 'UTF8') where id = '{id}' returning key", 2),
    ("with t as (delete from secrets where id = '{id}' returning *) select value from t", 2),
    ("copy (select value from secrets where id = '{id}') to stdout", 1),
    ("begin; declare c cursor with hold for select value from secrets where id = '{id}'; commit; fetch c", 1),
    ("prepare p as select value from secrets where id = '{id}'; execute p", 1),
    ("create temp view spy as select value from secrets where id = '{id}'; select * from spy", 1),
    ("create temp table spy as select value from secrets where id = '{id}'", 1),
    ("set row_security = on; set enable_indexscan = off; select s::text from secrets s where id = '{id}'", 1),
    (
        "select meshaudit_set from (select set_config('meshaudit.revealed', 'x', false) as meshaudit_set) x, secrets where id = '{id}' and value is not null",
        1,
    ),
)


@pytest.mark.parametrize(("way", "expected"), WAYS)
def test_every_way_to_a_value_leaves_an_entry(protected: App, way: str, expected: int) -> None:
    protected.db.su.execute(
        sql.SQL("grant create, temp on database {} to public").format(sql.Identifier(protected.db.name))
    )
    with protected.conn.cursor() as cursor:
        text = way.format(id=ID2)
        if text.startswith("copy"):
            with cursor.copy(text.encode()) as copy:
                assert b"736563726574" in b"".join(bytes(b) for b in copy)
        else:
            for statement in text.split("; ") if not text.startswith("do") else [text]:
                cursor.execute(statement.encode())
    entries = protected.entries()
    assert len(entries) == expected
    assert {i for _, i in entries} == {ID2}


def test_prepared_before_and_executed_after(app: App) -> None:
    app.conn.execute("prepare p as select value from secrets where id = '%s'" % ID2)  # noqa: UP031
    app.conn.execute("execute p")
    app.protect()
    app.entries()
    assert app.conn.execute("execute p").fetchone() == (b"secret2",)
    assert app.entries() == [("read", ID2)]


def test_errors_do_not_print_the_value(protected: App) -> None:
    protected.owner.execute("alter table meshaudit_protected.secrets disable row level security")
    with pytest.raises(pg.CheckViolation) as caught:
        protected.conn.execute("update secrets set key = 'bad' where id = %s", [ID2])
    assert "736563726574" not in str(caught.value)


def test_commands(app: App) -> None:
    dsn = app.db.dsn()
    given = ("protect", "secrets", "--secret-column", "value", "--scope-column", "project_id")
    planned = ok(*given, "--dry-run", dsn=dsn)
    assert "create view public.secrets" in planned
    assert planned.endswith("nothing was changed (--dry-run)\n")
    assert "is not protected" in fails("unprotect", "secrets", dsn=dsn)
    assert ok_json(*given, dsn=dsn)["done"] == "protected public.secrets (value), mode ledger"
    assert "protected already" in fails(*given, dsn=dsn)
    assert "nothing was changed" in ok("unprotect", "secrets", "--dry-run", dsn=dsn)
    assert ok("unprotect", "secrets", dsn=dsn) == "public.secrets is no longer protected\n"
    assert "hint" in fails("protect", "nowhere", "--secret-column", "v", dsn=dsn)


@pytest.fixture(autouse=True)
def _no_slot_stays(db: Db) -> Iterator[None]:
    yield
    if db.su.execute("select armed from meshaudit_private.journal").fetchone() == (True,):
        db.su.execute("select meshaudit.disarm_journal()")
