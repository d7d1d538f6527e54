-- meshaudit.unprotect(): a table leaves the audit as it came; a dump shows no difference.

create function meshaudit_private.begin_unprotect(p_target regclass, p_role name)
returns table (statements text[], owner name, base oid)
language plpgsql volatile security definer set search_path = '' set quote_all_identifiers = off set lock_timeout = '10s'
as $$
declare
  p meshaudit_private.protections;
  v_what pg_catalog.text;
begin
  lock table meshaudit_private.protections in share row exclusive mode;
  select * into p from meshaudit_private.protections t where p_target in (t.view, t.base);
  if p.protection_id is null then
    raise exception '% is not protected', p_target using errcode = 'MA005',
      hint = pg_catalog.format('Protected: %s.', coalesce((select pg_catalog.string_agg(t.view::pg_catalog.text, ', ') from meshaudit_private.protections t), 'nothing'));
  end if;
  base := p.base;
  if not exists (select from pg_catalog.pg_class c where c.oid = p.base) then
    statements := '{}';  -- dropped: what is left of it is ours
    return next;
    return;
  end if;
  perform meshaudit_private.require_owner(p.base, p_role);
  select pg_catalog.string_agg(distinct pg_catalog.pg_describe_object(d.classid, d.objid, 0), ', ') into v_what
    from pg_catalog.pg_depend d
    where d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.refobjid = p.view and d.deptype = 'n'
      and not (d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass and exists (
        select from pg_catalog.pg_rewrite r where r.oid = d.objid and r.ev_class = p.view));
  if v_what is not null then
    raise exception '% cannot be taken out: these depend on its view: %', p.view, v_what using errcode = 'MA005',
      hint = 'Drop them, unprotect, and make them again on the table.';
  end if;
  owner := meshaudit_private.owner_of(p.base);
  execute pg_catalog.format('grant usage on schema meshaudit_private to %I', owner);
  execute pg_catalog.format('grant create on schema meshaudit_protected to %I', owner);
  statements := array(
    select s from (
      select 0::pg_catalog.int8 as i, 1 as n, 0::pg_catalog.int8 as k, pg_catalog.format('drop view %s', p.view) as s
        where exists (select from pg_catalog.pg_class c where c.oid = p.view and c.relkind = 'v')  -- whatever it is called now
      union all select 0, 2, 0, pg_catalog.format('drop policy if exists meshaudit_reveal on meshaudit_protected.%I', p.table_name)
      union all select u.i, 3, 0, pg_catalog.format('drop trigger if exists meshaudit_%s on meshaudit_protected.%I', verb, u.s ->> 'name')
        from pg_catalog.jsonb_array_elements(p.saved) with ordinality u (s, i), unnest(array['insert', 'update', 'delete', 'truncate']) verb
      union all select u.i, 4, r.k, r.s
        from pg_catalog.jsonb_array_elements(p.saved) with ordinality u (s, i),
          meshaudit_private.restore_statements(u.s, pg_catalog.to_regclass(pg_catalog.format('meshaudit_protected.%I', u.s ->> 'name')),
            pg_catalog.format('meshaudit_protected.%I', u.s ->> 'name')) with ordinality r (s, k)
      union all select u.i, 5, 0, pg_catalog.format('alter table meshaudit_protected.%I set schema %I', u.s ->> 'name', u.s ->> 'schema')
        from pg_catalog.jsonb_array_elements(p.saved) with ordinality u (s, i)
    ) x order by i, n, k);
  return next;
end
$$;
revoke all on function meshaudit_private.begin_unprotect(regclass, name) from public;
grant execute on function meshaudit_private.begin_unprotect(regclass, name) to meshaudit_client, meshaudit_operator;

create function meshaudit_private.finish_unprotect(p_base oid, p_role name) returns text
language plpgsql volatile security definer set search_path = '' set quote_all_identifiers = off
as $$
declare
  p meshaudit_private.protections;
  v_dropped pg_catalog.text;
begin
  select * into p from meshaudit_private.protections t where t.base = p_base;
  if exists (select from pg_catalog.pg_class c where c.oid = p_base and c.relnamespace = 'meshaudit_protected'::pg_catalog.regnamespace) then
    raise exception 'a table is taken out by meshaudit.unprotect() alone' using errcode = 'MA005', hint = 'Call meshaudit.unprotect().';
  end if;
  for v_dropped in
    select pg_catalog.format('function %s', f.oid::pg_catalog.regprocedure)
      from pg_catalog.pg_proc f
      where f.pronamespace = 'meshaudit_private'::pg_catalog.regnamespace and f.proname ~ pg_catalog.format('^(see|latest|newest)_%s_[0-9]+$', p.protection_id)
      order by f.proname !~ '^see_', f.proname
  loop
    execute 'drop ' || v_dropped;
  end loop;
  execute pg_catalog.format('drop view if exists meshaudit_private.%I', 'values_' || p.protection_id);
  for v_dropped in
    select pg_catalog.format('function %s', f.oid::pg_catalog.regprocedure)
      from pg_catalog.pg_proc f
      where f.pronamespace = 'meshaudit_private'::pg_catalog.regnamespace
        and f.proname ~ pg_catalog.format('^reveal_%1$s_[0-9]+$|^(look|writes|row|insert|update|delete)_%1$s$', p.protection_id)
  loop
    execute 'drop ' || v_dropped;
  end loop;
  delete from meshaudit_private.protections t where t.base = p_base;
  perform meshaudit_private.take_back_usage(meshaudit_private.owner_of(p_base));
  insert into meshaudit_private.ledger (secret_id, access_type, operation, outcome, secret_table, scope, db_role)
    values (pg_catalog."left"(pg_catalog.format('%I.%I', p.schema_name, p.table_name), 512), 'write', 'delete', 'granted', 'meshaudit.protections', '*', p_role);
  return pg_catalog.format('%I.%I is no longer protected', p.schema_name, p.table_name);
end
$$;
revoke all on function meshaudit_private.finish_unprotect(oid, name) from public;
grant execute on function meshaudit_private.finish_unprotect(oid, name) to meshaudit_client, meshaudit_operator;

create function meshaudit.unprotect(target regclass) returns text
language sql volatile security invoker
begin atomic
  -- the middle step returns nothing that the last one takes: its place in the list is what orders them
  with begun as materialized (
    select b.statements, b.owner, b.base from meshaudit_private.begin_unprotect(target, current_user) b
  ), done as materialized (
    select b.base, meshaudit_private.run_statements(b.statements, b.owner) from begun b
  )
  select meshaudit_private.finish_unprotect(d.base, current_user) from done d;
end;
revoke all on function meshaudit.unprotect(regclass) from public;
grant execute on function meshaudit.unprotect(regclass) to meshaudit_client, meshaudit_operator;

comment on function meshaudit_private.begin_unprotect(regclass, name) is 'Checks, and says what the table''s owner has to do.';
comment on function meshaudit_private.finish_unprotect(oid, name) is 'Drops the functions of a protection that has ended; says so in one line.';
comment on function meshaudit.unprotect(regclass) is
  'Takes a protected table back out: the table gets its name, schema and privileges back. For its owner. Recorded. Raises MA001 if it is not yours, MA005 if it is not protected or something depends on its view.';
