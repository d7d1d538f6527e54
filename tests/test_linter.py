"""What Supabase's database linter would say of an installed database: nothing, or what docs/supabase.md gives reasons for.

The questions are its, the queries ours.
"""

import pytest

OURS = "n.nspname in ('meshaudit', 'meshaudit_private')"
NOTHING = {
    "a view that anon or authenticated may read, with its owner's rights": f"""
        select c.oid::regclass from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where {OURS} and c.relkind = 'v' and not coalesce('security_invoker=true' = any (c.reloptions), false)
          and (has_table_privilege('anon', c.oid, 'select') or has_table_privilege('authenticated', c.oid, 'select'))""",
    "a table of the exposed schema without row security": """
        select c.oid::regclass from pg_class c where c.relnamespace = 'meshaudit'::regnamespace
          and c.relkind in ('r', 'p') and not c.relrowsecurity""",
    "a table that anon or authenticated may read, without row security": f"""
        select c.oid::regclass from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where {OURS} and c.relkind in ('r', 'p') and not c.relrowsecurity
          and (has_table_privilege('anon', c.oid, 'select') or has_table_privilege('authenticated', c.oid, 'select'))""",
    "a definer's function that anon or authenticated may execute": f"""
        select p.oid::regprocedure from pg_proc p join pg_namespace n on n.oid = p.pronamespace
        where {OURS} and p.prosecdef
          and (has_function_privilege('anon', p.oid, 'execute') or has_function_privilege('authenticated', p.oid, 'execute'))""",
    "more than one permissive policy for a role and a command": f"""
        select p.polrelid::regclass from pg_policy p join pg_class c on c.oid = p.polrelid
        join pg_namespace n on n.oid = c.relnamespace, unnest(p.polroles) r
        where {OURS} and p.polpermissive group by p.polrelid, p.polcmd, r having count(*) > 1""",
    "a foreign key without an index": f"""
        select k.conname from pg_constraint k join pg_namespace n on n.oid = k.connamespace
        where {OURS} and k.contype = 'f' and not exists (
          select from pg_index i where i.indrelid = k.conrelid
            and (i.indkey::int2[])[0:cardinality(k.conkey) - 1] @> k.conkey)""",
    "a function whose search_path its caller decides": f"""
        select p.oid::regprocedure from pg_proc p join pg_namespace n on n.oid = p.pronamespace
        where {OURS} and p.prosqlbody is null
          and not exists (select from unnest(p.proconfig) s where s like 'search_path=%%')""",
}


@pytest.mark.parametrize("finding", NOTHING)
def test_nothing_to_report(supabase_db, finding):
    assert supabase_db.su.execute(NOTHING[finding].replace("%%", "%")).fetchall() == []


def test_all_tables_have_a_primary_key(supabase_db):
    rows = supabase_db.su.execute(
        f"select c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace where {OURS}"
        " and c.relkind in ('r', 'p') and not c.relispartition"
        " and not exists (select from pg_index i where i.indrelid = c.oid and i.indisprimary)"
    ).fetchall()
    assert rows == []
