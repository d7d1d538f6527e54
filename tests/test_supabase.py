"""Beside what Supabase brings: its Vault (a stand-in of the same shape), and what its linter would say."""

from typing import Any

import psycopg
import pytest

from tests.journal_support import seal
from tests.meshhook import ALICE, MeshHook
from tests.postgrest import Rest
from tests.support import Db

# Columns, functions and grants as in supabase_vault; only the cipher is none.
VAULT = """
create schema vault;
create table vault.secrets (id uuid primary key default gen_random_uuid(), name text unique,
  description text not null default '', secret text not null, key_id uuid, nonce bytea,
  created_at timestamptz not null default now(), updated_at timestamptz not null default now());
create view vault.decrypted_secrets as
  select s.*, reverse(s.secret) as decrypted_secret from vault.secrets s;
create function vault.create_secret(new_secret text, new_name text default null, new_description text default '',
  new_key_id uuid default null) returns uuid language sql security definer set search_path = '' as $$
  insert into vault.secrets (secret, name, description) values (reverse(new_secret), new_name, new_description)
  returning id $$;
create function vault.update_secret(secret_id uuid, new_secret text default null, new_name text default null,
  new_description text default null, new_key_id uuid default null) returns void
  language sql security definer set search_path = '' as $$
  update vault.secrets set secret = coalesce(reverse(new_secret), secret), name = coalesce(new_name, name),
    description = coalesce(new_description, description) where id = secret_id $$;
revoke all on all functions in schema vault from public;
grant usage on schema vault to supabase_admin_like with grant option;
grant select, delete on vault.secrets, vault.decrypted_secrets to supabase_admin_like with grant option;
grant execute on all functions in schema vault to supabase_admin_like with grant option;
grant usage on schema vault to service_role;
grant select, delete on vault.secrets, vault.decrypted_secrets to service_role;
grant execute on all functions in schema vault to service_role;
"""
NOBODYS = "00000000-0000-4000-8000-000000000000"


def _row(conn: psycopg.Connection[Any], query: str, *params: Any) -> Any:
    row = conn.execute(query.encode(), params or None).fetchone()
    assert row is not None
    return row


@pytest.fixture
def vault_db(supabase_db):
    supabase_db.su.execute(VAULT.encode())
    return supabase_db


def test_vault_reads_and_writes_leave_entries(vault_db):
    operator = vault_db.connect()
    operator.execute("select meshaudit.open_supabase_vault()")
    operator.execute("select meshaudit.arm_journal()")
    operator.execute("grant meshaudit_client to authenticated")
    alice = Rest(vault_db, "meshaudit").as_user(ALICE)
    made = alice.rpc("create_vault_secret", {"value": "sk", "name": "stripe"}).json()
    assert alice.rpc("read_vault_secret", {"id": made}).json() == "sk"
    assert alice.rpc("update_vault_secret", {"id": made, "value": "sk2"}).status == 204
    assert alice.rpc("read_vault_secret", {"id": made}, get=True).json() == "sk2"
    stored = "select secret, name from vault.secrets"
    assert vault_db.su.execute(stored).fetchall() == [("2ks", "stripe")]
    for call in ("read_vault_secret", "update_vault_secret"):
        missing = alice.rpc(call, {"id": NOBODYS})
        assert (missing.status, missing.json()["code"]) == (404, "MA004")
    seal(operator)
    entries = vault_db.su.execute(
        "select operation, outcome, secret_id, user_identity, db_role from meshaudit.audit_logs"
        " where secret_table = 'vault.secrets' order by \"timestamp\""
    ).fetchall()
    assert entries == [
        ("create", "granted", made, ALICE, "authenticated"),
        ("read", "granted", made, ALICE, "authenticated"),
        ("update", "granted", made, ALICE, "authenticated"),
        ("read", "granted", made, ALICE, "authenticated"),
        ("read", "denied", NOBODYS, ALICE, "authenticated"),
        ("update", "denied", NOBODYS, ALICE, "authenticated"),
    ]
    operator.execute("select meshaudit.close_supabase_vault()")
    closed = alice.rpc("read_vault_secret", {"id": made})
    assert (closed.status, closed.json()["code"]) == (403, "MA001")
    assert vault_db.su.execute("select * from meshaudit.verify()").fetchall() == []


def test_the_vaults_path_is_opened_by_who_may(vault_db):
    other = vault_db.connect(vault_db.role("op", "meshaudit_operator"))
    with pytest.raises(psycopg.Error, match="you may not grant") as refused:
        other.execute("select meshaudit.open_supabase_vault()")
    assert refused.value.sqlstate == "MA001"
    client = vault_db.connect(vault_db.role("client", "meshaudit_client"))
    with pytest.raises(psycopg.Error, match="not open") as refused:
        client.execute("select meshaudit.read_vault_secret(%s)", [NOBODYS])
    assert refused.value.sqlstate == "MA001"


def test_status_names_who_goes_around_the_vault(vault_db):
    (ok, detail) = _row(
        vault_db.connect(), """select ok, detail from meshaudit.status() where "check" like '%%Supabase%%'"""
    )
    assert not ok
    assert "service_role" in detail
    assert "supabase_admin_like" in detail
    assert "meshaudit_owner" not in detail


def test_a_vault_of_somebodys_own_is_none(db):
    """Whoever may create a schema could have a view of his own read as meshaudit_owner."""
    eve = db.role("eve", "meshaudit_client")
    db.su.execute(f"grant create on database {db.name} to {eve}")
    conn = db.connect(eve)
    heard: list[str] = []
    conn.add_notice_handler(lambda d: heard.append(str(d.message_primary)))
    conn.execute(
        "create schema vault; grant usage on schema vault to public;"
        "create function vault.sprung() returns text language plpgsql as"
        " $$ begin raise notice 'ran as %', current_user; return 'x'; end $$;"
        f"create view vault.decrypted_secrets as select '{NOBODYS}'::uuid as id, vault.sprung() as decrypted_secret;"
        "create function vault.create_secret(text, text, text) returns uuid language plpgsql as"
        f" $$ begin perform vault.sprung(); return '{NOBODYS}'::uuid; end $$;"
        "grant select on vault.decrypted_secrets to public"
    )
    for call in (
        f"read_vault_secret('{NOBODYS}')",
        "create_vault_secret('x')",
        f"update_vault_secret('{NOBODYS}', 'x')",
    ):
        with pytest.raises(psycopg.Error, match="no Supabase Vault"):
            conn.execute(f"select meshaudit.{call}".encode())
    # a superuser's view beside functions of somebody else is no better
    db.su.execute(f"alter view vault.decrypted_secrets owner to {db.pg.superuser}")
    with pytest.raises(psycopg.Error, match="no Supabase Vault"):
        conn.execute("select meshaudit.create_vault_secret('x')")
    assert heard == []
    db.su.execute("drop schema vault cascade")


def test_without_a_vault(supabase_db):
    conn = supabase_db.connect()
    for call in ("open_supabase_vault()", f"read_vault_secret('{NOBODYS}')", "create_vault_secret('x')"):
        with pytest.raises(psycopg.Error, match="no Supabase Vault") as refused:
            conn.execute(f"select meshaudit.{call}".encode())
        assert refused.value.sqlstate == "MA005"
    assert conn.execute("""select from meshaudit.status() where "check" like '%Supabase%'""").fetchall() == []


OURS = "('meshaudit', 'meshaudit_private', 'meshaudit_protected')"
LINTS = {
    "security_definer_view": """
      select c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace
      where c.relkind = 'v' and n.nspname in ('public', 'meshaudit', 'meshaudit_private')
        -- the values of a protected table; the schema is not exposed, and nobody can name what is in it
        and not (n.nspname = 'meshaudit_private' and c.relname ~ '^values_[0-9]+$')
        and (has_table_privilege('anon', c.oid, 'SELECT') or has_table_privilege('authenticated', c.oid, 'SELECT'))
        and not coalesce(c.reloptions::text[] && array['security_invoker=true', 'security_invoker=on'], false)""",
    # a body in standard SQL was parsed when it was made; the view's triggers run as the caller on purpose
    "function_search_path_mutable": f"""
      select p.proname from pg_proc p join pg_namespace n on n.oid = p.pronamespace
      where n.nspname in {OURS} and p.prosqlbody is null and p.proname !~ '^(insert|update|delete)_[0-9]+$'
        and not exists (select from unnest(p.proconfig) c where c like 'search_path=%')""",
    "rls_disabled": f"""
      select c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace
      where c.relkind in ('r', 'p') and not c.relrowsecurity and n.nspname in {OURS}""",
    # tables that only their owner reads have none; no schema of theirs is exposed
    "rls_enabled_no_policy": """
      select c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace
      where c.relkind in ('r', 'p') and c.relrowsecurity and n.nspname in ('public', 'meshaudit', 'meshaudit_protected')
        and not exists (select from pg_policy p where p.polrelid = c.oid)""",
    "auth_rls_initplan": f"""
      select p.policyname from pg_policies p, lateral (select concat(p.qual, ' ', p.with_check) as text) e
      where p.schemaname in {OURS} and p.policyname !~ '^secrets_'
        and e.text ~ '(current_setting|auth[.](uid|jwt|role|email))[(]'
        and e.text !~* 'select [^)]*(current_setting|auth[.](uid|jwt|role|email))[(]'""",
    "multiple_permissive_policies": f"""
      select p.polrelid::regclass, r, c from pg_policy p join pg_class t on t.oid = p.polrelid
        join pg_namespace n on n.oid = t.relnamespace,
        unnest(p.polroles) r, unnest(case p.polcmd when '*' then array['r', 'a', 'w', 'd'] else array[p.polcmd::text] end) c
      where p.polpermissive and n.nspname in {OURS} group by 1, 2, 3 having count(*) > 1""",
    "security_definer_function_executable": """
      select p.proname from pg_proc p join pg_namespace n on n.oid = p.pronamespace
      where p.prosecdef and n.nspname in ('public', 'meshaudit') and p.proname <> 'user_project_ids'
        and (has_function_privilege('anon', p.oid, 'EXECUTE') or has_function_privilege('authenticated', p.oid, 'EXECUTE'))""",
    "unindexed_foreign_keys": f"""
      select k.conname from pg_constraint k join pg_namespace n on n.oid = k.connamespace
      where k.contype = 'f' and n.nspname in {OURS} and not exists (
        select from pg_index i where i.indrelid = k.conrelid
          and (i.indkey::int2[])[0:cardinality(k.conkey) - 1] @> k.conkey)""",
    "extension_in_public": """
      select extname from pg_extension where extnamespace = 'public'::regnamespace""",
    "no_primary_key": f"""
      select c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace
      where c.relkind in ('r', 'p') and n.nspname in {OURS}
        and not exists (select from pg_index i where i.indrelid = c.oid and i.indisprimary)""",
}


@pytest.fixture(scope="module", params=["supabase_old", "supabase_new"])
def linted(request, template):
    db: Db = template.clone(request.param)
    try:
        MeshHook(db)
        with db.connect() as conn:
            conn.execute("select meshaudit.protect('public.secrets', '{value_encrypted}', 'project_id')")
        yield db
    finally:
        db.drop()


@pytest.mark.parametrize("lint", LINTS)
def test_the_linter_finds_nothing_that_the_guide_does_not_explain(linted, lint):
    assert linted.su.execute(LINTS[lint].encode()).fetchall() == []
