"""What the catalogue says about the objects of the schema: definer functions, search paths, owners, comments, guards."""

from typing import Any

import pytest

from tests.support import Db
from tests.test_privileges import SCHEMAS


def empty(db: Db, query: str, **params: Any) -> None:
    """The query finds nothing; what it finds is the message."""
    rows = db.su.execute(query.encode(), {"schemas": SCHEMAS} | params).fetchall()
    assert not rows, rows


def test_security_definer_functions(any_db: Db) -> None:
    count = any_db.su.execute(
        "select count(*) from pg_proc where prosecdef and pronamespace = any (%s::regnamespace[])", [SCHEMAS]
    ).fetchone()
    assert count is not None
    assert count[0] >= 10
    empty(
        any_db,
        """select p.oid::regprocedure, p.proconfig, r.rolname
        from pg_proc p join pg_roles r on r.oid = p.proowner
        where p.pronamespace = any (%(schemas)s::regnamespace[]) and p.prosecdef and not (
          'search_path=""' = any (coalesce(p.proconfig, '{}'))
          and r.rolname = 'meshaudit_owner' and not r.rolcanlogin and not r.rolsuper and not r.rolbypassrls
          and not r.rolcreaterole and not r.rolcreatedb and not r.rolreplication
          and not exists (select from aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
                          where a.grantee = 0))""",
    )


def test_no_function_depends_on_the_callers_search_path(any_db: Db) -> None:
    empty(
        any_db,
        """select p.oid::regprocedure from pg_proc p
        where p.pronamespace = any (%(schemas)s::regnamespace[]) and p.prosqlbody is null
          and not 'search_path=""' = any (coalesce(p.proconfig, '{}'))""",
    )


def test_who_forbids_plans_forbids_compiling(db: Db) -> None:
    """Before 18 a forbidden plan that is taken all the same counts as so costly that it is compiled: 300 ms for a page."""
    forbidding = "exists (select from unnest(p.proconfig) c where c ~ '^enable_.*=off$')"
    found = db.su.execute(f"select count(*) from pg_proc p where {forbidding}".encode()).fetchone()
    assert found is not None
    assert found[0] >= 3
    empty(
        db,
        f"select p.oid::regprocedure from pg_proc p where {forbidding} and not 'jit=off' = any (p.proconfig)",
    )


def test_everything_belongs_to_the_owner(any_db: Db) -> None:
    empty(
        any_db,
        """with owned (what, owner) as (
          select oid::regclass::text, relowner from pg_class
            where relnamespace = any (%(schemas)s::regnamespace[])
          union all select oid::regprocedure::text, proowner from pg_proc
            where pronamespace = any (%(schemas)s::regnamespace[])
          union all select oid::regtype::text, typowner from pg_type
            where typnamespace = any (%(schemas)s::regnamespace[])
          union all select nspname, nspowner from pg_namespace where oid = any (%(schemas)s::regnamespace[]))
        select what, owner::regrole from owned where owner <> 'meshaudit_owner'::regrole""",
    )


def test_everything_is_commented(any_db: Db) -> None:
    """All of schema meshaudit, columns of its views included; of the rest tables, functions and types."""
    empty(
        any_db,
        """with wanted (what, classoid, objoid, objsubid) as (
          select oid::regclass::text, 'pg_class'::regclass, oid, 0 from pg_class
            where relnamespace = any (%(schemas)s::regnamespace[]) and relkind in ('r', 'p', 'v')
              -- leaves are made by the hundred
              and (not relispartition or pg_get_expr(relpartbound, oid) = 'DEFAULT')
          union all select attrelid::regclass || '.' || attname, 'pg_class'::regclass, attrelid, attnum
            from pg_attribute where attnum > 0 and attrelid = 'meshaudit.audit_logs'::regclass
          union all select oid::regprocedure::text, 'pg_proc'::regclass, oid, 0 from pg_proc
            where pronamespace = any (%(schemas)s::regnamespace[])
          union all select oid::regtype::text, 'pg_type'::regclass, oid, 0 from pg_type t
            where typnamespace = any (%(schemas)s::regnamespace[]) and typelem = 0 and (typrelid = 0
              or (select relkind from pg_class where oid = t.typrelid) = 'c')
          union all select nspname, 'pg_namespace'::regclass, oid, 0 from pg_namespace
            where oid = any (%(schemas)s::regnamespace[]))
        select what from wanted w where not exists (select from pg_description d
          where (d.classoid, d.objoid, d.objsubid) = (w.classoid, w.objoid, w.objsubid))""",
    )


def test_nobody_acts_as_the_owner(any_db: Db) -> None:
    # from 16 on CREATEROLE leaves its holder ADMIN on what it made, which is not yet the right to use it
    use = "set" if any_db.pg.version >= 16 else "member"
    empty(
        any_db,
        """select rolname from pg_roles where rolname <> 'meshaudit_owner' and not rolsuper
        and (pg_has_role(oid, 'meshaudit_owner', 'usage') or pg_has_role(oid, 'meshaudit_owner', %(use)s))""",
        use=use,
    )
    empty(any_db, "select rolname from pg_roles where rolname like 'meshaudit\\_%%' and rolcanlogin")


def test_row_security_and_guards_on_every_table(any_db: Db) -> None:
    any_db.su.execute("select meshaudit.set_setting('partitions_ahead', '5')")
    any_db.su.execute("select meshaudit.maintain()")
    empty(
        any_db,
        """select oid::regclass from pg_class where relnamespace = any (%(schemas)s::regnamespace[])
        and relkind in ('r', 'p') and not relrowsecurity""",
    )
    guards = any_db.su.execute(
        """select c.relname, array_agg(format('%s %s', t.tgfoid::regproc, t.tgenabled))
        from pg_class c left join pg_trigger t on t.tgrelid = c.oid
        where c.oid = 'meshaudit_private.ledger'::regclass or c.oid in (
          select inhrelid from pg_inherits where inhparent = 'meshaudit_private.ledger'::regclass)
        group by c.oid, c.relname"""
    ).fetchall()
    assert len(guards) == 8  # the parent, six months, the default
    expected_guards = ["meshaudit_private.chain_entry A", "meshaudit_private.refuse_change A"]
    assert all(sorted(found) == expected_guards for _, found in guards), guards


def test_plpgsql_check_finds_nothing(db: Db) -> None:
    if not db.pg.has_extension("plpgsql_check"):
        pytest.skip("this server has no plpgsql_check (Debian's 15 does, with postgresql-15-plpgsql-check)")
    db.su.execute("create extension plpgsql_check")
    empty(
        db,
        """select p.oid::regprocedure, c.* from pg_proc p
        join pg_language l on l.oid = p.prolang and l.lanname = 'plpgsql',
        lateral plpgsql_check_function(p.oid,
          coalesce((
            select min(t.tgrelid) from pg_trigger t
            where t.tgfoid = p.oid and t.tgparentid = 0), 0)::regclass,
          newtable => (select min(t.tgnewtable) from pg_trigger t where t.tgfoid = p.oid),
          oldtable => (select min(t.tgoldtable) from pg_trigger t where t.tgfoid = p.oid),
          other_warnings => true, extra_warnings => true, performance_warnings => false,
          security_warnings => true, format => 'text') c
        where p.pronamespace = any (%(schemas)s::regnamespace[])
          -- the contract's name for a column, and a word of SQL's
          and not (p.proname ~ 'status$' and c ~ '"check" is reserved|reserved keyword was used')
          -- of pg_cron, where it is installed
          and not (p.proname = 'schedule_sealing' and c ~ 'schema "cron"|cron.schedule|^--')
          -- of Supabase's Vault, where it is
          and not (p.proname ~ '_vault_secret$' and c ~ 'schema "vault"|vault[.]|^--')
          -- statements that format() has made, in a loop: it sees a variable
          and not (p.proname in ('begin_protect', 'go_on_protect', 'finish_unprotect', 'grant_supabase_vault')
            and c ~ 'text type variable is not sanitized|injection vulnerable|Use quote_ident|^Query|^--')""",
    )
