"""The tables that protect() is tried on, and whose they are."""

import subprocess
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from tests import servers
from tests.support import Db

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


def dump_schema(text: str) -> list[str]:
    """A dump's statements without the rows, which the test has changed."""
    lines, copying = [], False
    for line in text.splitlines():
        copying = copying or line.startswith("COPY ")
        if not copying and "pg_catalog.setval" not in line:
            lines.append(line)
        copying = copying and line != "\\."
    return lines
