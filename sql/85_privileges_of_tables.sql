-- Privileges of a protected table, as statements: what its view gets, what the table itself keeps, and what unprotect()
-- gives back. Run as the table's owner, who has granted them all (82_protectable.sql).

-- A relation's place and privileges, in the order in which they were granted: a dump shows that order.
create function meshaudit_private.saved_relation(p_relation oid) returns jsonb
language sql stable set search_path = ''
as $$
  select pg_catalog.jsonb_build_object('name', c.relname, 'schema', n.nspname, 'grants', coalesce((
    select pg_catalog.jsonb_agg(g order by g.col nulls first, g.i) from (
      select null::pg_catalog.text as col, e.grantee, e.privilege_type, e.is_grantable, e.i
      from pg_catalog.aclexplode(coalesce(c.relacl, pg_catalog.acldefault('r', c.relowner))) with ordinality e (grantor, grantee, privilege_type, is_grantable, i)
      union all
      select a.attname, e.grantee, e.privilege_type, e.is_grantable, e.i
      from pg_catalog.pg_attribute a, pg_catalog.aclexplode(a.attacl) with ordinality e (grantor, grantee, privilege_type, is_grantable, i)
      where a.attrelid = c.oid and not a.attisdropped) x,
      lateral (select x.col, x.i, x.privilege_type as privilege, x.is_grantable as grantable,
        case x.grantee when 0 then 'public' else pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(x.grantee)) end as grantee,
        x.grantee = c.relowner as owner) g), '[]'))
  from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace where c.oid = p_relation
$$;

create function meshaudit_private.grant_statements(p_grants jsonb, p_name text) returns setof text
language sql stable set search_path = ''
as $$
  select pg_catalog.format('grant %s%s on %s to %s%s', g ->> 'privilege',
    case when g ->> 'col' is not null then pg_catalog.format(' (%I)', g ->> 'col') else '' end, p_name, g ->> 'grantee',
    case when (g ->> 'grantable')::pg_catalog.bool and not (g ->> 'owner')::pg_catalog.bool then ' with grant option' else '' end)
  from pg_catalog.jsonb_array_elements(p_grants) with ordinality u (g, i) order by u.i
$$;

-- The table keeps what it had, less SELECT on the secret columns (its owner included), and less what would see them
-- otherwise: TRIGGER, REFERENCES, and TRUNCATE, which no view has.
create function meshaudit_private.withhold_statements(p_saved jsonb, p_name text, p_columns name[], p_secrets name[]) returns setof text
language sql stable set search_path = ''
as $$
  with g as (
    select e ->> 'grantee' as grantee, e ->> 'privilege' as privilege, e ->> 'col' as col, (e ->> 'owner')::pg_catalog.bool as owner,
      (e ->> 'grantable')::pg_catalog.bool as grantable
    from pg_catalog.jsonb_array_elements(p_saved -> 'grants') e
  ), shown as (
    -- ctid: the view passes it on; xmin: an UPDATE asks whose the row is that it finds changed
    select pg_catalog.string_agg(pg_catalog.quote_ident(c), ', ') || ', ctid, xmin' as columns from unnest(p_columns) c where c <> all (p_secrets)
  )
  select s from (
    select 1 as n, pg_catalog.format('revoke select on %s from %s', p_name, g.grantee) as s from g where g.privilege = 'SELECT' and g.col is null
    union all
    select 2, pg_catalog.format('grant select (%s) on %s to %s%s', s.columns, p_name, g.grantee,
        case when g.grantable and not g.owner then ' with grant option' else '' end)
      from g, shown s where g.privilege = 'SELECT' and g.col is null
    union all
    select distinct 3, pg_catalog.format('grant select (ctid, xmin) on %s to %s', p_name, g.grantee)
      from g where g.privilege = 'SELECT' and g.col is not null
    union all
    select 4, pg_catalog.format('revoke select (%I) on %s from %s', g.col, p_name, g.grantee)
      from g where g.privilege = 'SELECT' and g.col = any (p_secrets)
        and not exists (select from g t where t.grantee = g.grantee and t.privilege = 'SELECT' and t.col is null)
    union all
    select distinct 5, pg_catalog.format('revoke trigger, truncate, references on %s from %s', p_name, g.grantee) from g where not g.owner
  ) x order by n
$$;

create function meshaudit_private.restore_statements(p_saved jsonb, p_relation oid, p_name text) returns setof text
language sql stable set search_path = ''
as $$
  select s from (
  select 0::pg_catalog.int8 as k, pg_catalog.format('revoke all on %s from %s cascade', p_name, x.grantee) as s from (
    select distinct case e.grantee when 0 then 'public' else pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(e.grantee)) end as grantee
    from pg_catalog.pg_class c, lateral (
      select a.grantee from pg_catalog.aclexplode(c.relacl) a
      union select a.grantee from pg_catalog.pg_attribute t, pg_catalog.aclexplode(t.attacl) a where t.attrelid = c.oid) e
    where c.oid = p_relation) x
  union all
  select g.k, g.s from meshaudit_private.grant_statements(p_saved -> 'grants', p_name) with ordinality g (s, k)
  ) y order by k
$$;

comment on function meshaudit_private.saved_relation(oid) is 'A relation''s name, schema and privileges.';
comment on function meshaudit_private.grant_statements(jsonb, text) is 'GRANTs that give saved privileges on p_name.';
comment on function meshaudit_private.withhold_statements(jsonb, text, name[], name[]) is 'Statements that take from a table''s privileges what would show its secret columns.';
comment on function meshaudit_private.restore_statements(jsonb, oid, text) is 'Statements that give a relation the privileges it had.';
