"""Nobody's code runs as meshaudit's own role: not that of who reads a protected table, nor that of who owns one.

What is planted says in a notice who ran it.
"""

import contextlib
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest
from psycopg import sql

from tests.support import Db

PLANT = """
create schema evil;
grant usage on schema evil to public;
create function evil.sprung() returns bool language plpgsql as
  $$ begin raise notice 'ran as %', current_user; return true; end $$;
create function evil.folded(int) returns bool language plpgsql immutable as
  $$ begin raise notice 'ran as %', current_user; return true; end $$;
"""


@dataclass
class Lab:
    """`owner` owns schema evil and may protect its tables; `reader` reads them. Both are nobody else."""

    db: Db
    owner: str
    reader: str
    heard: list[str] = field(default_factory=list)

    def connect(self, role: str) -> psycopg.Connection[Any]:
        conn = self.db.connect(role)
        conn.add_notice_handler(lambda d: self.heard.append(str(d.message_primary)))
        return conn

    def protect(self, table: str, *secrets: str, scope: str | None = None) -> None:
        conn = self.connect(self.owner)
        conn.execute("select meshaudit.protect(%s::regclass, %s, %s)", [table, list(secrets), scope])
        conn.execute(f"grant select, insert, update, delete on {table} to {self.reader}".encode())
        base = f"meshaudit_protected.{table.split('.')[1]}"
        columns = conn.execute(
            "select string_agg(quote_ident(attname), ', ') from pg_attribute where attrelid = %s::regclass"
            " and attnum > 0 and attname <> all (%s)",
            [base, list(secrets)],
        ).fetchone()
        assert columns is not None
        conn.execute(
            f"grant select ({columns[0]}, ctid, xmin), insert, update, delete on {base} to {self.reader}".encode()
        )
        self.heard.clear()

    def as_meshaudit(self) -> list[str]:
        return [h for h in self.heard if h == "ran as meshaudit_owner"]


@pytest.fixture
def lab(db: Db):
    owner = db.role("owner", "meshaudit_client")
    reader = db.role("reader")
    give = "grant create, temporary on database {} to {}, {}"
    db.su.execute(sql.SQL(give).format(*map(sql.Identifier, (db.name, owner, reader))))
    made = Lab(db, owner, reader)
    made.connect(owner).execute(PLANT)
    yield made
    with contextlib.suppress(psycopg.Error):
        db.su.execute("reset role")
    db.su.execute("drop schema evil cascade")


TYPES = ("bytea", "text", "uuid", "jsonb", "int8", "name", "varchar", "inet", "json", "timestamptz", "_text")


def test_types_of_the_readers_own(lab: Lab) -> None:
    """pg_temp is searched first for types, even with an empty search_path."""
    columns = ", ".join(f"c{i} {t}" for i, t in enumerate(TYPES))
    lab.connect(lab.owner).execute(
        f"create table evil.t (id uuid primary key, {columns});"
        f"insert into evil.t (id, c0, c1) values ('{'0' * 32}', 'x', 'y')".encode()
    )
    lab.protect("evil.t", *(f"c{i}" for i in range(len(TYPES))))
    conn = lab.connect(lab.reader)
    for name in (*TYPES, "tid", "int4", "bool", "record"):
        base = "text" if name in ("record", "_text") else name
        conn.execute(f"create domain pg_temp.{name} as pg_catalog.{base} check (evil.sprung())".encode())
    conn.execute("set search_path = pg_temp, evil, pg_catalog")
    assert conn.execute("select c0, c1 from evil.t").fetchall() == [(b"x", "y")]
    conn.execute("select * from evil.t for update")
    conn.execute("update evil.t set c1 = 'z'")
    conn.execute("delete from evil.t")
    assert lab.as_meshaudit() == []


SHAPES = {
    "domain": (
        "create domain evil.d as text check (evil.sprung());"
        "create table evil.t (id int primary key, s text, v evil.d); insert into evil.t values (1, 's', 'x')"
    ),
    "domain that is not null": (
        "create domain evil.d as text not null;"
        "create table evil.t (id int primary key, s text, v evil.d); insert into evil.t values (1, 's', 'x')"
    ),
    "cast of the key": (
        "create type evil.e as enum ('a', 'b');"
        "create function evil.to_text(evil.e) returns text language plpgsql as"
        " $$ begin perform evil.sprung(); return 'k'; end $$;"
        "create cast (evil.e as text) with function evil.to_text(evil.e);"
        "create table evil.t (id evil.e primary key, s text, v text); insert into evil.t values ('a', 's', 'x')"
    ),
    "cast of the scope": (
        "create type evil.e as enum ('a', 'b');"
        "create function evil.to_text(evil.e) returns text language plpgsql as"
        " $$ begin perform evil.sprung(); return 'k'; end $$;"
        "create cast (evil.e as text) with function evil.to_text(evil.e);"
        "create table evil.t (id int primary key, s evil.e, v text); insert into evil.t values (1, 'a', 'x')"
    ),
    "composite key": (
        "create type evil.c as (a int);"
        "create function evil.to_text(evil.c) returns text language plpgsql as"
        " $$ begin perform evil.sprung(); return 'k'; end $$;"
        "create cast (evil.c as text) with function evil.to_text(evil.c);"
        "create table evil.t (id evil.c primary key, s text, v text); insert into evil.t values (row(1), 's', 'x')"
    ),
    "policy": (
        "create table evil.t (id int primary key, s text, v text); insert into evil.t values (1, 's', 'x');"
        "alter table evil.t enable row level security;"
        "create policy aaa on evil.t using (evil.folded(1)); create policy zzz on evil.t using (evil.folded(2))"
    ),
    "constraint": (
        "create table evil.t (id int primary key, s text, v text, check (evil.folded(1) and s > ''));"
        "insert into evil.t values (1, 's', 'x')"
    ),
    "partition's constraint": (
        "create table evil.t (id int primary key, s text, v text) partition by range (id);"
        "create table evil.t1 partition of evil.t (check (evil.folded(1) and s > '')) for values from (0) to (5);"
        "insert into evil.t values (1, 's', 'x')"
    ),
    "index": (
        "create table evil.t (id int primary key, s text, v text); insert into evil.t values (1, 's', 'x');"
        "create index on evil.t ((evil.folded(1) or s > ''))"
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_code_of_the_tables_owner(lab: Lab, shape: str) -> None:
    lab.connect(lab.owner).execute(SHAPES[shape].encode())
    lab.protect("evil.t", "v", scope="s")
    for _ in range(2):
        conn = lab.connect(lab.reader)
        conn.execute("set constraint_exclusion = on")
        assert conn.execute("select v from evil.t").fetchall() == [("x",)]
        conn.execute("select * from evil.t for update")
        assert conn.execute("update evil.t set v = 'y' returning v").fetchall() == [("y",)]
        conn.execute("update evil.t set v = 'x'")
    conn.execute("delete from evil.t")
    assert lab.as_meshaudit() == []
