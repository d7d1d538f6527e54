"""A client that may create anything it likes: no name it shadows is found, no setting bends an entry.

What it plants calls evil.sprung(), which notes who ran it; the accesses made meanwhile must still be right.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import sql

from tests.support import Db

# Everything a client may call, in an order in which each can work, and what must come of it.
VALUE = "'value'::pg_catalog.bytea"
CALLS: tuple[tuple[str, Any], ...] = (
    (f"select meshaudit.read_secret('{{id}}') = {VALUE}", True),
    (f"select meshaudit.read_secret_by_key('key') = {VALUE}", True),
    (f"select value = {VALUE} from meshaudit.read_secrets(array['{{id}}']::pg_catalog.uuid[])", True),
    ("select meshaudit.write_secret('key', 'value') = '{id}'::pg_catalog.uuid", True),
    ("select meshaudit.delete_secret('{id}')", True),
)
OURS = "'{meshaudit, meshaudit_private}'::regnamespace[]"


@dataclass
class Hostile:
    """A database, a hostile client of it, and the secret it is after."""

    db: Db
    role: str
    id: UUID

    def connect(self) -> psycopg.Connection[Any]:
        return self.db.connect(self.role)

    def entries(self) -> int:
        row = self.db.su.execute("select count(*) from meshaudit.audit_logs").fetchone()
        assert row is not None
        return int(row[0])

    def sprung(self) -> list[Any]:
        return self.db.su.execute("select * from evil.loot").fetchall()

    def intact(self) -> None:
        """verify() finds nothing, and each lane's head is its last entry."""
        assert self.db.su.execute("select * from meshaudit.verify()").fetchall() == []
        differ = self.db.su.execute(
            """select h.lane, h.seq, l.seq from meshaudit_private.lane_heads h
            full join (select lane, max(seq) as seq, count(*) as n from meshaudit_private.ledger group by 1) l
              on l.lane = h.lane
            where h.seq > 0 and (h.seq, h.seq) is distinct from (l.seq, l.n)"""
        )
        assert differ.fetchall() == []

    def last(self, columns: str) -> Any:
        query = f"select {columns} from meshaudit.audit_logs order by id desc limit 1"
        return self.db.su.execute(query.encode()).fetchone()


@pytest.fixture
def hostile(db: Db) -> Iterator[Hostile]:
    role = db.role("hostile", "meshaudit_client")
    db.su.execute(
        sql.SQL("grant create, temporary on database {} to {}").format(
            sql.Identifier(db.name), sql.Identifier(role)
        )
    )
    conn = db.connect(role)
    conn.execute(
        "create schema evil; grant usage on schema evil to public;"
        "create table evil.loot (who text, at text); grant all on evil.loot to public;"
        "create function evil.sprung() returns bool language plpgsql volatile as $$"
        " declare v pg_catalog.text; begin get diagnostics v = pg_context;"
        " insert into evil.loot values (current_user, v); return true; end $$"
    )
    row = conn.execute("select meshaudit.write_secret('key', 'value')").fetchone()
    assert row is not None
    yield Hostile(db, role, row[0])
    # what it owns must go before it can
    db.su.execute("drop schema evil cascade")


def test_functions_and_operators_in_front_of_postgres_own(hostile: Hostile) -> None:
    """Each builtin that meshaudit's code names gets a twin, of the very argument types, found first."""
    conn = hostile.connect()
    twins = conn.execute(
        f"""select p.proname, pg_get_function_identity_arguments(p.oid), pg_get_function_result(p.oid)
        from pg_proc p where p.pronamespace = 'pg_catalog'::regnamespace and p.prokind = 'f'
          and p.proname in (select w from pg_proc o, regexp_split_to_table(o.prosrc || coalesce(
              pg_get_function_sqlbody(o.oid), ''), '\\W+') w where o.pronamespace = any ({OURS}))
          and not exists (select from unnest(p.proargtypes::oid[] || p.prorettype) a
                          join pg_type t on t.oid = a where t.typtype = 'p')
          and not p.proretset and p.provariadic = 0""".encode()
    ).fetchall()
    assert {"sha256", "set_config", "octet_length", "clock_timestamp", "pg_backend_pid"} <= {
        t[0] for t in twins
    }
    for name, args, result in twins:
        conn.execute(
            f'create function evil."{name}"({args}) returns {result} language plpgsql as'
            " $$ begin perform evil.sprung(); return null; end $$".encode()
        )
    operators = conn.execute(
        """select oprname, oprleft::regtype, oprright::regtype, oprresult::regtype from pg_operator
        where oprname in ('||', '=', '<>', '<', '>', '<=', '>=', '~', '!~', '+', '-', '*', '%%', '->>', '<<=')
          and oprleft = any (%(t)s::regtype[]) and oprright = any (%(t)s::regtype[])""",
        {
            "t": [
                "text",
                "bytea",
                "uuid",
                "int",
                "bigint",
                "timestamptz",
                "interval",
                "inet",
                "jsonb",
                "tid",
                "name",
            ]
        },
    ).fetchall()
    assert len(operators) > 60
    for number, (name, left, right, result) in enumerate(operators):
        conn.execute(
            f"create function evil.op{number}({left}, {right}) returns {result} language plpgsql as"
            " $$ begin perform evil.sprung(); return null; end $$;"
            f"create operator evil.{name}"
            f" (function = evil.op{number}, leftarg = {left}, rightarg = {right})".encode()
        )
    conn.execute("set search_path = evil, pg_temp, public, pg_catalog")
    assert conn.execute("select sha256('x') is null").fetchone() == (True,)  # the trap is armed
    conn.execute("delete from evil.loot")
    before = hostile.entries()
    for call, result in CALLS:
        query = call.format(id=hostile.id).replace(" = ", " operator(pg_catalog.=) ")
        assert conn.execute(query.encode()).fetchone() == (result,), call
    assert hostile.sprung() == []
    assert hostile.entries() == before + len(CALLS)
    hostile.intact()


SAME = {"text", "bytea", "uuid", "int4", "int8", "bool", "jsonb", "inet"}
OTHER = {"timestamptz", "json", "tid", "xid", "name", "regclass", "interval", "oid", "void", "record"}
TYPES = SAME | OTHER | {"caller", "link", "suspect", "settings", "ledger", "secrets"}


def shadow_types(conn: psycopg.Connection[Any]) -> None:
    """Domains in pg_temp, each with a check that springs."""
    for name in TYPES:
        base = name if name in SAME else "text"
        conn.execute(f"create domain pg_temp.{name} as pg_catalog.{base} check (evil.sprung())".encode())


@pytest.mark.parametrize("number", range(len(CALLS)))
def test_temporary_types_and_tables_come_first(hostile: Hostile, number: int) -> None:
    """pg_temp is searched first for types and tables, even with an empty search_path. A fresh session each,
    so that no plan is there yet."""
    conn = hostile.connect()
    shadow_types(conn)
    shadows = hostile.db.su.execute(
        "select distinct relname from pg_class where relkind in ('r', 'p', 'v', 'S')"
        f" and relnamespace = any ({OURS}) or relname in ('pg_roles', 'pg_class', 'pg_inherits')".encode()
    )
    for (name,) in shadows.fetchall():
        if name not in TYPES:
            conn.execute(f"create temporary table {name} (id pg_catalog.int4)".encode())
    conn.execute("set search_path = pg_temp, evil, pg_catalog")
    assert conn.execute("select 'x'::text").fetchone() == ("x",)
    assert len(hostile.sprung()) == 1  # the trap is armed
    conn.execute("delete from evil.loot")
    before = hostile.entries()
    call, result = CALLS[number]
    assert conn.execute(call.format(id=hostile.id).encode()).fetchone() == (result,)
    assert hostile.sprung() == []
    assert hostile.entries() == before + 1
    hostile.intact()


def test_temporary_types_in_an_auditors_session(hostile: Hostile) -> None:
    """The same for whoever reads the log: nothing runs as the owner, and verify() cannot be fooled."""
    hostile.db.su.execute("select meshaudit.grant_auditor(%s)", [hostile.role])
    for call in (
        "select pg_catalog.count(*) from meshaudit.search_audit_logs(secret_id => '{id}')",
        "select pg_catalog.count(*) from meshaudit.audit_logs",
        "select pg_catalog.count(*) from meshaudit.verify()",
        "select pg_catalog.count(*) from meshaudit.status()",
        "select meshaudit.checkpoint()",
        "select meshaudit.get_setting('gateway_roles')",
        "select meshaudit.log_cursor('2000-01-01', 1)",
    ):
        conn = hostile.connect()
        shadow_types(conn)
        conn.execute("set search_path = pg_temp, evil, pg_catalog")
        conn.execute(call.format(id=hostile.id).encode())
    assert hostile.sprung() == []


def test_casts_and_aggregates_run_as_the_caller(hostile: Hostile) -> None:
    conn = hostile.connect()
    conn.execute(
        "create type evil.handle as (id uuid);"
        "create function evil.to_uuid(evil.handle) returns uuid language plpgsql as"
        " $$ begin perform evil.sprung(); return $1.id; end $$;"
        "create cast (evil.handle as uuid) with function evil.to_uuid as implicit;"
        "create function evil.add(uuid[], uuid) returns uuid[] language plpgsql as"
        " $$ begin perform evil.sprung(); return $1 || $2; end $$;"
        "create aggregate evil.ids(uuid) (sfunc = evil.add, stype = uuid[], initcond = '{}')"
    )
    conn.execute("select meshaudit.read_secret(row(%s)::evil.handle)", [hostile.id])
    conn.execute("select * from meshaudit.read_secrets((select evil.ids(%s::uuid)))", [hostile.id])
    assert [who for who, _ in hostile.sprung()] == [hostile.role] * 2
    hostile.intact()


def settings_to_try(conn: psycopg.Connection[Any]) -> list[tuple[str, str]]:
    """Every setting that any user may change, at its ends and at odd values."""
    odd = {
        "DateStyle": ["SQL, DMY", "German", "Postgres, MDY"],
        "TimeZone": ["Asia/Kathmandu", "<x>-13", "America/St_Johns"],
        "search_path": ["", "nowhere", "evil, pg_temp"],
        "client_encoding": ["LATIN1", "SQL_ASCII", "EUC_JP"],
        "application_name": ["é\t\\x00" * 20],
        "default_tablespace": ["pg_global"],
        "lc_numeric": ["C"],
        "lc_time": ["C"],
        "plpgsql.extra_errors": ["all"],
        "plpgsql.extra_warnings": ["all"],
        "restrict_nonsystem_relation_kind": ["view, foreign-table"],
    }
    found = []
    rows = conn.execute(
        "select name, vartype, setting, enumvals, min_val, max_val from pg_settings"
        " where context = 'user' and name not like 'log\\_%%' order by name"
    ).fetchall()
    for name, kind, setting, values, low, high in rows:
        if kind == "bool":
            found.append((name, "off" if setting == "on" else "on"))
        elif kind == "enum":
            found += [(name, value) for value in values if value != setting]
        elif kind in ("integer", "real"):
            found += [(name, low), (name, high)]
        found += [(name, value) for value in odd.get(name, [])]
    return found


def test_no_setting_gives_a_value_without_an_entry(hostile: Hostile) -> None:
    """An access under it is recorded and verifies, or it fails."""
    conn = hostile.connect()
    tried = settings_to_try(conn)
    assert len(tried) > 150
    worked, failed = set(), set()
    expected = hostile.entries()
    for name, value in tried:
        if conn.closed:
            conn = hostile.connect()
        try:
            conn.execute("begin")
            conn.execute("select set_config(%s, %s, true)", [name, value])
        except psycopg.Error:
            conn.close()  # no such value
            continue
        try:
            read = conn.execute(
                "select meshaudit.read_secret(%s), (select count(*) from meshaudit.read_secrets(array[%s]))",
                [hostile.id, hostile.id],
            ).fetchone()
            conn.execute("commit")
        except psycopg.Error:
            conn.close()
            failed.add(name)
        else:
            assert read in [(b"value", 1), (rb"\x76616c7565", 1)], (name, value)
            expected += 2
            worked.add(name)
        assert hostile.entries() == expected, (name, value)
    assert len(worked) > 100
    # those that stop everything: read only, and time that has run out
    allowed = {"transaction_read_only", "statement_timeout", "transaction_timeout", "lock_timeout"}
    assert failed - worked <= allowed | {"idle_in_transaction_session_timeout"}, failed
    hostile.intact()


@pytest.mark.parametrize(
    "setting",
    [
        "DateStyle = 'SQL, DMY'",
        "TimeZone = 'Asia/Kathmandu'",
        "bytea_output = escape",
        "row_security = off",
        "standard_conforming_strings = off",
        "IntervalStyle = iso_8601",
    ],
)
def test_verification_does_not_depend_on_settings(hostile: Hostile, setting: str) -> None:
    auditor = hostile.db.connect(hostile.db.role("auditor"))
    hostile.db.su.execute("select meshaudit.grant_auditor(%s)", [auditor.info.user])
    auditor.execute(f"set {setting}".encode())
    assert auditor.execute("select * from meshaudit.verify()").fetchall() == []
    health = auditor.execute("select ok from meshaudit.status() where \"check\" = 'partitions ahead'")
    assert health.fetchone() == (True,)
    conn = hostile.connect()
    conn.execute(f"set {setting}".encode())
    conn.execute("select meshaudit.read_secret(%s)", [hostile.id])
    hostile.intact()


def test_forged_internal_settings(hostile: Hostile) -> None:
    """meshaudit.* are placeholders that anybody may set, between accesses and around savepoints."""
    other = hostile.db.connect(hostile.db.role("other", "meshaudit_client"))
    for _ in range(3):
        other.execute("select meshaudit.read_secret(%s)", [hostile.id])
    heads = hostile.db.su.execute(
        "select ctid::text, lane, seq, encode(hash, 'hex') from meshaudit_private.lane_heads"
        " order by seq desc, lane"
    ).fetchall()
    places = ["", "(0,0)", "(0,1)", "(999999999,9999)", "(4294967295,65535)", "x", "(0,1) ", "(1,1)\n(2,2)"]
    places += [ctid for ctid, *_ in heads[:8]] + [
        f"({block},{line})" for block in (0, 1, 9) for line in (1, 9)
    ]
    # well-formed: lanes and places of others, of nobody, beyond what the types hold
    places += [f"{lane} {place}" for place, lane, *_ in heads[:4]] + [f"{heads[0][1]} {heads[1][0]}"]
    places += ["0 (0,0)", "513 (0,1)", "999999999 (999999999,9999)", "4294967296 (0,1)", "1 (4294967296,1)"]
    places += ["1 (0,65536)", "1 (1,1)\n(2,2)", "1 (,)", "1 (1,)", "-1 (1,1)", "\u0663 (1,2)"]
    batches = ["", f"{heads[0][1]} {heads[0][2]} {heads[0][3]}"]
    reads = (
        "select meshaudit.read_secret(%(id)s)",
        "select value from meshaudit.read_secrets(array[%(id)s]::uuid[])",
    )
    conn = hostile.connect()
    expected = hostile.entries()
    for number, (place, batch) in enumerate(itertools.product(places, batches)):
        isolation = ("read committed", "repeatable read", "serializable")[number % 3]
        conn.execute(f"begin isolation level {isolation}".encode())
        for local in (True, False):
            forged = {"lane_at": place, "batch": batch, "actor": place, "installer": "postgres", "l": local}
            conn.execute(
                "select set_config('meshaudit.lane_at', %(lane_at)s, %(l)s),"
                " set_config('meshaudit.batch', %(batch)s, %(l)s),"
                " set_config('meshaudit.actor', %(actor)s, %(l)s),"
                " set_config('meshaudit.installer', %(installer)s, %(l)s)",
                forged,
            )
            for read in reads:
                assert conn.execute(read.encode(), {"id": hostile.id}).fetchone() == (b"value",)
            conn.execute("savepoint s")
            conn.execute(reads[number % 2].encode(), {"id": hostile.id})
            conn.execute("rollback to s" if number % 4 else "release s")
            expected += 2 if number % 4 else 3
        conn.execute("commit")
    assert hostile.entries() == expected
    hostile.intact()
    assert hostile.last("user_identity, db_user, db_role") == (hostile.role,) * 3


def test_set_role_shows_and_does_not_hide(hostile: Hostile) -> None:
    group = hostile.db.role("group", "meshaudit_client", login=False)
    hostile.db.pg.run(f"grant {group} to {hostile.role}")
    conn = hostile.connect()
    conn.execute(sql.SQL("set role {}").format(sql.Identifier(group)))
    conn.execute("select meshaudit.read_secret(%s)", [hostile.id])
    assert hostile.last("user_identity, db_user, db_role") == (hostile.role, hostile.role, group)
    for game in ("set role meshaudit_owner", "set session authorization meshaudit_owner"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            conn.execute(game.encode())
    conn.execute(
        "reset role; create function evil.f() returns name language sql security definer as"
        " $$ select current_user $$; set role none"
    )
    conn.execute("select meshaudit.read_secret(%s), evil.f()", [hostile.id])
    assert hostile.last("user_identity, db_user, db_role") == (hostile.role,) * 3


@pytest.mark.parametrize("trap", ["view", "index"])
def test_a_trap_names_who_laid_it(hostile: Hostile, trap: str) -> None:
    """A client makes somebody else's session run its function. The value is the client's then, and so is the
    entry: its db_role says who acted."""
    conn = hostile.connect()
    conn.execute(
        "create function evil.steal() returns int language plpgsql security definer as $$ begin"
        f" insert into evil.loot values (current_user, meshaudit.read_secret('{hostile.id}'));"
        " return 1; end $$;"
        "create function evil.indexed(int) returns int language plpgsql immutable as"
        " $$ begin perform evil.steal(); return $1; end $$;"
        "create view evil.trap as select evil.steal(); grant select on evil.trap to public;"
        "create table evil.t (x int); create index on evil.t (evil.indexed(x)); insert into evil.t values (1)"
    )
    hostile.db.su.execute("select * from evil.trap" if trap == "view" else "analyze evil.t")
    assert hostile.sprung()[-1][0] == hostile.role
    assert hostile.last("db_role") == (hostile.role,)
