"""The reference user: a workflow engine on Supabase, its tables, its policies, and every call that its app makes.

    app = MeshHook(db)
    before = app.calls()
    …
    assert app.calls() == before

All ids and times are given, so that the answers can be compared byte for byte; `updated_at` alone moves, and is looked
at by itself (`advances`). Each run of calls() leaves the tables as it found them.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tests.postgrest import Answer, Caller, Rest
from tests.support import Db

ALICE = "a1111111-1111-4111-8111-111111111111"
BOB = "b2222222-2222-4222-8222-222222222222"
ALICES = "0000000a-0000-4000-8000-000000000001"
BOBS = "0000000b-0000-4000-8000-000000000001"
STRIPE, GITHUB, BOBS_KEY = (f"5ec0000{n}-0000-4000-8000-000000000000" for n in (1, 2, 3))
NEW = "5ec00009-0000-4000-8000-000000000000"
AT = "2026-01-01T00:00:00+00:00"
EMBEDDED = "*, project:projects(name)"

_SORTED: Any = {"secrets.order": "key.asc"}
_BOBS_ONLY: Any = {"projects.name": "like.Bob*"}

_SCHEMA = """
create table public.projects (
  id uuid primary key default gen_random_uuid(),
  owner uuid not null,
  name text not null,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now()
);
create table public.secrets (
  id uuid primary key default gen_random_uuid(),
  project_id uuid not null references public.projects (id) on delete cascade,
  key text not null,
  value_encrypted bytea not null,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  unique (project_id, key)
);
create index secrets_project_id_idx on public.secrets (project_id);

create function public.user_project_ids() returns setof uuid
language sql stable security definer set search_path = ''
as $$ select p.id from public.projects p where p.owner = (select auth.uid()) $$;

create function public.touch_updated_at() returns trigger
language plpgsql set search_path = ''
as $$ begin new.updated_at := pg_catalog.clock_timestamp(); return new; end $$;
create trigger touch_updated_at before update on public.secrets
  for each row execute function public.touch_updated_at();

alter table public.projects enable row level security;
alter table public.secrets enable row level security;
create policy projects_own on public.projects for all to authenticated
  using (owner = (select auth.uid())) with check (owner = (select auth.uid()));
create policy secrets_select on public.secrets for select to authenticated
  using (project_id in (select public.user_project_ids()));
create policy secrets_insert on public.secrets for insert to authenticated
  with check (project_id in (select public.user_project_ids()));
create policy secrets_update on public.secrets for update to authenticated
  using (project_id in (select public.user_project_ids()))
  with check (project_id in (select public.user_project_ids()));
create policy secrets_delete on public.secrets for delete to authenticated
  using (project_id in (select public.user_project_ids()));
"""

# Projects of after 2026-05-30 say it; before, the default privileges did.
_GRANTS = """
grant select, insert, update, delete on public.projects, public.secrets to anon, authenticated, service_role;
grant execute on function public.user_project_ids() to anon, authenticated, service_role;
"""

_ROWS = f"""
insert into public.projects (id, owner, name, created_at, updated_at) values
  ('{ALICES}', '{ALICE}', 'Alice''s hooks', '{AT}', '{AT}'),
  ('{BOBS}', '{BOB}', 'Bob''s hooks', '{AT}', '{AT}');
insert into public.secrets (id, project_id, key, value_encrypted, created_at, updated_at) values
  ('{STRIPE}', '{ALICES}', 'STRIPE_KEY', '\\x736b5f6c6976655f61', '2026-01-02', '2026-01-02'),
  ('{GITHUB}', '{ALICES}', 'GITHUB_TOKEN', '\\x6768705f62', '2026-01-03', '2026-01-03'),
  ('{BOBS_KEY}', '{BOBS}', 'STRIPE_KEY', '\\x736b5f6c6976655f63', '2026-01-04', '2026-01-04');
"""


class MeshHook:
    """The app's tables in a Supabase-like database, made by its installer, and the app's PostgREST before it."""

    def __init__(self, db: Db, *, version: int = 14) -> None:
        self.db = db
        self.version = version
        with db.connect() as conn:
            for script in (_SCHEMA, _GRANTS if db.flavour == "supabase_new" else "", _ROWS):
                conn.execute(script.encode())
        self.rest = Rest(db, version=version)

    def callers(self) -> dict[str, Caller]:
        """The three roles of the app; two users, because one must not see the other's."""
        rest = self.rest
        return {
            "anon": rest.as_anon(),
            "alice": rest.as_user(ALICE),
            "bob": rest.as_user(BOB),
            "service_role": rest.as_service(),
        }

    def calls(self) -> dict[str, Answer]:
        """Every call of the app, as each of the callers; by name of caller and call."""
        self.rest.reload()
        return {
            f"{who}: {name}": _timeless(answer)
            for who, caller in self.callers().items()
            for name, answer in app_calls(caller).items()
        }

    def advances(self, who: str = "alice") -> bool:
        """Whether an update moves updated_at, as its answer shows it."""
        caller = self.callers()[who]
        row = caller.get("secrets", select="updated_at", id=f"eq.{STRIPE}", single=True).json()
        body = {"value_encrypted": "\\x736b5f6c6976655f61"}
        new = caller.update("secrets", body, select="updated_at", id=f"eq.{STRIPE}", single=True).json()
        return bool(new["updated_at"] > row["updated_at"])


def app_calls(me: Caller) -> dict[str, Answer]:
    """The app's calls in the order of a day; what is made is taken away again."""
    new = {
        "id": NEW,
        "project_id": ALICES,
        "key": "NEW_KEY",
        "value_encrypted": "\\x6e6577",
        "created_at": AT,
        "updated_at": AT,
    }
    of_new: Any = {"id": f"eq.{NEW}"}
    steps: list[tuple[str, Callable[[], Answer]]] = [
        ("list", lambda: me.get("secrets", select=EMBEDDED, order="created_at.desc")),
        ("list with count", lambda: me.get("secrets", select=EMBEDDED, order="created_at.desc", count=True)),
        ("page", lambda: me.get("secrets", order="created_at.desc", limit="1", offset="1", count=True)),
        ("without values", lambda: me.get("secrets", select="id,key,created_at", order="key.asc,id.asc")),
        ("count alone", lambda: me.head("secrets", select="id")),
        ("one", lambda: me.get("secrets", select=EMBEDDED, id=f"eq.{STRIPE}", single=True)),
        ("by key", lambda: me.get("secrets", select="value_encrypted", key="eq.STRIPE_KEY", order="id.asc")),
        ("some", lambda: me.get("secrets", select="*", id=f"in.({STRIPE},{BOBS_KEY})", order="id.asc")),
        ("nobody's", lambda: me.get("secrets", id=f"eq.{ALICE}", single=True)),
        ("of projects", lambda: me.get("projects", select="name,secrets(id,key)", order="name.asc", **_SORTED)),
        ("with values", lambda: me.get("projects", select="name,secrets(*)", order="name.asc", **_SORTED)),
        ("inner", lambda: me.get("secrets", select="key,projects!inner(name)", order="id.asc", **_BOBS_ONLY)),
        ("insert", lambda: me.insert("secrets", new, select=EMBEDDED, single=True)),
        ("insert again", lambda: me.insert("secrets", new, select=EMBEDDED, single=True)),
        ("insert a duplicate key", lambda: me.insert("secrets", {**new, "id": ALICE, "key": "STRIPE_KEY"})),
        ("insert into nothing", lambda: me.insert("secrets", {**new, "project_id": BOB, "id": BOB})),
        ("insert null", lambda: me.insert("secrets", {**new, "id": BOB, "key": "k", "value_encrypted": None})),
        ("see it", lambda: me.get("secrets", select=EMBEDDED, **of_new)),
        ("update", lambda: me.update("secrets", {"value_encrypted": "\\x6e657732"}, select=EMBEDDED, single=True, **of_new)),
        ("rename", lambda: me.update("secrets", {"key": "RENAMED"}, select="id,key", **of_new)),
        ("update quietly", lambda: me.update("secrets", {"key": "QUIET"}, **of_new)),
        ("give away", lambda: me.update("secrets", {"project_id": BOBS}, select="id,project_id", **of_new)),
        ("take back", lambda: me.update("secrets", {"project_id": ALICES}, select="id,project_id", **of_new)),
        ("update another's", lambda: me.update("secrets", {"key": "MINE"}, id=f"eq.{ALICE}", select="*", single=True)),
        ("delete with answer", lambda: me.delete("secrets", select="id,key", **of_new)),
        ("delete", lambda: me.delete("secrets", **of_new)),
        ("insert many", lambda: me.insert("secrets", [{**new, "key": "A"}, {**new, "id": ALICE, "key": "B"}], select="id,key")),
        ("delete many", lambda: me.delete("secrets", id=f"in.({NEW},{ALICE})", select="key")),
        ("left over", lambda: me.get("secrets", select="id,key,value_encrypted", order="id.asc")),
    ]  # fmt: skip
    answers, caller = {}, me
    for name, step in steps:
        # entries tell it, so each is known to be of its call
        me = replace(caller, headers={**caller.headers, "x-request-id": name})
        answers[name] = step()
    return answers


def _timeless(answer: Answer) -> Answer:
    """Without the one thing that an update changes by the clock."""
    if b"updated_at" not in answer.body:
        return answer
    text = answer.body.decode()
    rows = json.loads(text)
    for row in rows if isinstance(rows, list) else [rows]:
        for stamp in _stamps(row):
            if not stamp.startswith("2026-01-0"):
                text = text.replace(stamp, "the clock's")
    return Answer(answer.status, text.encode(), answer.headers)


def _stamps(row: Any) -> list[str]:
    if isinstance(row, list):
        return [s for item in row for s in _stamps(item)]
    if not isinstance(row, dict):
        return []
    own = [row["updated_at"]] if isinstance(row.get("updated_at"), str) else []
    return own + [s for value in row.values() for s in _stamps(value)]
