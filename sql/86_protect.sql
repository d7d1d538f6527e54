-- meshaudit.protect(): a table goes under audit, in one transaction.
--
-- Steps of ours (begin, go on, finish) check, make functions and say what the owner has to do; run_statements() does that,
-- as the table's owner: first it moves the table away, then it makes the view. In between the owner has USAGE on our schema, to name
-- the functions; nobody else can see that, since it is not committed.
--
-- quote_all_identifiers is fixed wherever a name is made that stays: entries are searched and held by it.

create function meshaudit_private.run_statements(p_statements text[], p_owner name) returns void
language plpgsql volatile security invoker set search_path = ''
as $$
declare
  v_statement pg_catalog.text;
  v_role constant pg_catalog.text := pg_catalog.current_setting('role');
  v_change constant pg_catalog.bool := current_user <> p_owner
    and not (select r.rolsuper from pg_catalog.pg_roles r where r.rolname = current_user);
begin
  if v_change then
    perform pg_catalog.set_config('role', p_owner, true);
  end if;
  foreach v_statement in array p_statements loop
    execute v_statement;
  end loop;
  if v_change then
    perform pg_catalog.set_config('role', v_role, true);
  end if;
end
$$;
revoke all on function meshaudit_private.run_statements(text[], name) from public;
grant execute on function meshaudit_private.run_statements(text[], name) to meshaudit_client, meshaudit_operator;

create function meshaudit_private.view_statements(p meshaudit_private.protections, p_owner name) returns setof text
language sql stable set search_path = ''
as $$
  with v as (
    select pg_catalog.format('%I.%I', p.schema_name, p.table_name) as name, pg_catalog.format('meshaudit_protected.%I', p.table_name) as base
  ), c as (
    select c.*, a.attcollation, a.atttypmod, pg_catalog.col_description(p.base, c.num::pg_catalog.int4) as remark
    from meshaudit_private.columns_of(p.base) c
    join pg_catalog.pg_attribute a on a.attrelid = p.base and a.attname = c.name
  )
  select s from (
    select 1 as n, 0::pg_catalog.int8 as k, pg_catalog.format('create view %s with (security_invoker = true) as select %s from %s b', v.name,
      (select pg_catalog.string_agg(case when c.name <> all (p.secret_columns) then pg_catalog.format('b.%I', c.name)
          else pg_catalog.format('%s%s%s as %I', meshaudit_private.revealed(p, c.num),
            case when c.atttypmod <> -1 then '::' || c.type else '' end,
            -- always: the function's arguments have collations too
            case when c.attcollation <> 0 then ' collate ' || c.attcollation::pg_catalog.regcollation else '' end, c.name) end,
        ', ' order by c.num) from c), v.base) as s from v
    union all select 2, 0, pg_catalog.format('alter view %s owner to %I', v.name, p_owner) from v
    -- as they are once the table, and the sequences it owns, have moved
    union all select 3, 0, pg_catalog.format('do %L', pg_catalog.format($do$
      declare c pg_catalog.record;
      begin
        for c in
          select a.attname, pg_catalog.pg_get_expr(d.adbin, d.adrelid) as fallback
          from pg_catalog.pg_attrdef d join pg_catalog.pg_attribute a on a.attrelid = d.adrelid and a.attnum = d.adnum
          where d.adrelid = %L::pg_catalog.regclass and a.attgenerated = ''
        loop
          execute pg_catalog.format('alter view %%s alter column %%I set default %%s', %L::pg_catalog.text, c.attname, c.fallback);
        end loop;
      end $do$, v.base, v.name)) from v
    union all select 4, 0, pg_catalog.format('comment on view %s is %L', v.name, pg_catalog.obj_description(p.base, 'pg_class')) from v
      where pg_catalog.obj_description(p.base, 'pg_class') is not null
    union all select 5, 0, pg_catalog.format('comment on column %s.%I is %L', v.name, c.name, c.remark) from v, c where c.remark is not null
    -- default privileges may have given away what the table's never did
    union all select 6, 0, pg_catalog.format('do %L', pg_catalog.format($do$
      declare g pg_catalog.text;
      begin
        for g in select distinct case e.grantee when 0 then 'public' else pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(e.grantee)) end
          from pg_catalog.pg_class c, pg_catalog.aclexplode(c.relacl) e where c.oid = %L::pg_catalog.regclass and e.grantee <> c.relowner
        loop
          execute pg_catalog.format('revoke all on %%s from %%s', %L::pg_catalog.text, g);
        end loop;
      end $do$, v.name, v.name)) from v
    union all select 7, g.k, g.s from v, meshaudit_private.grant_statements((
      select pg_catalog.jsonb_agg(e) from pg_catalog.jsonb_array_elements(p.saved -> 0 -> 'grants') e
      where e ->> 'privilege' in ('SELECT', 'INSERT', 'UPDATE', 'DELETE') and not (e ->> 'owner')::pg_catalog.bool), v.name) with ordinality g (s, k)
    union all select 8, 0, pg_catalog.format('create trigger meshaudit_%1$s instead of %1$s on %2$s for each row execute function meshaudit_private.%3$I()',
      verb, v.name, verb || '_' || p.protection_id) from v, unnest(array['insert', 'update']) verb
  ) x order by n, k
$$;

create function meshaudit_private.base_statements(p meshaudit_private.protections) returns setof text
language sql stable set search_path = ''
as $$
  with r as (
    select u.s, u.i, pg_catalog.format('%I.%I', u.s ->> 'schema', u.s ->> 'name') as old_name,
      pg_catalog.format('meshaudit_protected.%I', u.s ->> 'name') as name
    from pg_catalog.jsonb_array_elements(p.saved) with ordinality u (s, i)
  ), t as (
    select verb, case when by_row then ' for each row' else refs || ' for each statement' end as each,
      case when by_row then 'row_' else 'writes_' end || p.protection_id as function
    from (values ('insert', ' referencing new table as new_rows', meshaudit_private.by_row(p)),
      ('update', ' referencing old table as old_rows new table as new_rows', meshaudit_private.by_row(p)),
      ('delete', ' referencing old table as old_rows', false), ('truncate', '', false)) v (verb, refs, by_row)
  )
  select s from (
    select r.i, 1 as n, 0::pg_catalog.int8 as k, pg_catalog.format('alter table %s set schema meshaudit_protected', r.old_name) as s from r
    union all select r.i, 2, w.k, w.s from r, meshaudit_private.withhold_statements(r.s, r.name,
      (select pg_catalog.array_agg(c.name) from meshaudit_private.columns_of(p.base) c), p.secret_columns) with ordinality w (s, k)
    union all select r.i, 3, 0, pg_catalog.format('create trigger meshaudit_%1$s after %1$s on %2$s%3$s execute function meshaudit_private.%4$I()',
      t.verb, r.name, t.each, t.function) from r, t
    union all select r.i, 4, 0, pg_catalog.format('alter table %s enable always trigger meshaudit_%s', r.name, t.verb) from r, t
    union all select r.i, 5, 0, pg_catalog.format('grant select on %s to meshaudit_owner', r.name) from r where r.i = 1
    union all select r.i, 6, 0, pg_catalog.format('create policy meshaudit_reveal on %s for select to meshaudit_owner using (true)', r.name) from r where r.i = 1
  ) x order by i, n, k
$$;

-- Checks, and says what protection it would be. protection_id 0: nothing is noted yet.
create function meshaudit_private.planned(p_target oid, p_secrets text[], p_scope text, p_mode text, p_role name)
returns meshaudit_private.protections
language plpgsql volatile set search_path = ''
as $$
declare
  v_name constant pg_catalog.text := coalesce(p_target::pg_catalog.regclass::pg_catalog.text, 'NULL');
  p meshaudit_private.protections;
begin
  if p_mode is null or p_mode not in ('ledger', 'journal') then
    raise exception 'mode must be ledger or journal' using errcode = 'MA005', hint = 'ledger is the default; see docs/journal.md.';
  elsif not exists (select from pg_catalog.pg_class c where c.oid = p_target) then
    raise exception 'no such table' using errcode = 'MA005', hint = 'Name an existing table.';
  end if;
  perform meshaudit_private.check_kind(p_target, v_name);
  perform meshaudit_private.require_owner(p_target, p_role);
  perform meshaudit_private.check_columns(p_target, v_name, p_secrets, p_scope);
  perform meshaudit_private.check_dependents(p_target, v_name, p_secrets);
  p.protection_id := 0;
  p.base := p_target;
  select c.relname, n.nspname into p.table_name, p.schema_name
    from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace where c.oid = p_target;
  p.key_columns := meshaudit_private.key_columns(p_target);
  p.secret_columns := array(select distinct n from unnest(p_secrets) n)::pg_catalog.name[];
  p.scope_column := p_scope;
  p.mode := p_mode;
  p.saved := (select pg_catalog.jsonb_agg(meshaudit_private.saved_relation(r) order by r <> p_target, r)
    from meshaudit_private.relations_of(p_target) r);
  return p;
end
$$;

create function meshaudit_private.owner_of(p_relation oid) returns name
language sql stable set search_path = ''
as $$
  select pg_catalog.pg_get_userbyid(c.relowner) from pg_catalog.pg_class c where c.oid = p_relation
$$;

create function meshaudit_private.protection_plan(p_target regclass, p_secrets text[], p_scope text, p_mode text, p_role name)
returns setof text
language plpgsql volatile security definer set search_path = '' set quote_all_identifiers = off
as $$
declare
  p constant meshaudit_private.protections := meshaudit_private.planned(p_target, p_secrets, p_scope, p_mode, p_role);
begin
  return query select * from meshaudit_private.base_statements(p);
  return query select * from meshaudit_private.view_statements(p, meshaudit_private.owner_of(p_target));
  return query select '-- sees the values that are written: ' || t.what from meshaudit_private.triggers_of(p_target) t;
end
$$;
revoke all on function meshaudit_private.protection_plan(regclass, text[], text, text, name) from public;
grant execute on function meshaudit_private.protection_plan(regclass, text[], text, text, name) to meshaudit_client, meshaudit_operator;

-- Who protects a table of his own and does not commit keeps nobody waiting for long.
create function meshaudit_private.begin_protect(p_target regclass, p_secrets text[], p_scope text, p_mode text, p_role name)
returns table (statements text[], owner name)
language plpgsql volatile security definer set search_path = '' set quote_all_identifiers = off set lock_timeout = '10s'
as $$
declare
  p meshaudit_private.protections;
  v_statement pg_catalog.text;
begin
  lock table meshaudit_private.protections in share row exclusive mode;
  p := meshaudit_private.planned(p_target, p_secrets, p_scope, p_mode, p_role);
  owner := meshaudit_private.owner_of(p_target);
  insert into meshaudit_private.protections (base, schema_name, table_name, key_columns, secret_columns, scope_column, mode, saved)
    values (p.base, p.schema_name, p.table_name, p.key_columns, p.secret_columns, p.scope_column, p.mode, p.saved)
    returning * into p;
  for v_statement in
    select meshaudit_private.reveal_functions(p) union all select meshaudit_private.look_function(p)
    union all select meshaudit_private.write_functions(p)
  loop
    execute v_statement;
  end loop;
  execute pg_catalog.format('grant usage on schema meshaudit_private to %I', owner);
  execute pg_catalog.format('grant create on schema meshaudit_protected to %I', owner);
  statements := array(select * from meshaudit_private.base_statements(p));
  return next;
end
$$;
revoke all on function meshaudit_private.begin_protect(regclass, text[], text, text, name) from public;
grant execute on function meshaudit_private.begin_protect(regclass, text[], text, text, name) to meshaudit_client, meshaudit_operator;

-- Once the table has moved.
create function meshaudit_private.go_on_protect(p_target regclass) returns table (statements text[], owner name)
language plpgsql volatile security definer set search_path = '' set quote_all_identifiers = off
as $$
declare
  p meshaudit_private.protections;
  v_statement pg_catalog.text;
begin
  select * into p from meshaudit_private.protections t where t.base = p_target and t.view is null;
  owner := meshaudit_private.owner_of(p_target);
  for v_statement in
    select meshaudit_private.values_view(p) union all select meshaudit_private.look_functions(p)
  loop
    execute v_statement;
  end loop;
  statements := array(select * from meshaudit_private.view_statements(p, owner));
  return next;
end
$$;
revoke all on function meshaudit_private.go_on_protect(regclass) from public;
grant execute on function meshaudit_private.go_on_protect(regclass) to meshaudit_client, meshaudit_operator;

create function meshaudit_private.take_back_usage(p_owner name) returns void
language plpgsql volatile set search_path = ''
as $$
begin
  if p_owner <> 'meshaudit_owner' then
    execute pg_catalog.format('revoke usage on schema meshaudit_private from %I', p_owner);
    execute pg_catalog.format('revoke create on schema meshaudit_protected from %I', p_owner);
  end if;
end
$$;

create function meshaudit_private.finish_protect(p_target regclass, p_role name) returns text
language plpgsql volatile security definer set search_path = '' set quote_all_identifiers = off
as $$
declare
  p meshaudit_private.protections;
begin
  update meshaudit_private.protections t
    set view = (  -- not by to_regclass(): the schema may be closed to us
      select c.oid from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
      where n.nspname = t.schema_name and c.relname = t.table_name and c.relkind = 'v')
    where t.base = p_target and t.view is null returning * into p;
  perform meshaudit_private.take_back_usage(meshaudit_private.owner_of(p_target));
  insert into meshaudit_private.ledger (secret_id, access_type, operation, outcome, secret_table, scope, db_role)
    values (pg_catalog."left"(pg_catalog.format('%I.%I', p.schema_name, p.table_name), 512), 'write', 'create', 'granted', 'meshaudit.protections', '*', p_role);
  return pg_catalog.format('protected %I.%I (%s), mode %s', p.schema_name, p.table_name, pg_catalog.array_to_string(p.secret_columns, ', '), p.mode);
end
$$;
revoke all on function meshaudit_private.finish_protect(regclass, name) from public;
grant execute on function meshaudit_private.finish_protect(regclass, name) to meshaudit_client, meshaudit_operator;

-- Should somebody call the steps by themselves. A deferred trigger: before 18 it runs as whoever commits.
create function meshaudit_private.refuse_half_protected() returns trigger
language plpgsql volatile security definer set search_path = ''
as $$
begin
  if exists (select from meshaudit_private.protections p where p.protection_id = new.protection_id and p.view is null) then
    raise exception 'a table is protected by meshaudit.protect() alone' using errcode = 'MA005', hint = 'Call meshaudit.protect().';
  end if;
  return null;
end
$$;
revoke all on function meshaudit_private.refuse_half_protected() from public;
create constraint trigger refuse_half_protected after insert on meshaudit_private.protections deferrable initially deferred
  for each row execute function meshaudit_private.refuse_half_protected();

create function meshaudit.protect(
  target regclass, secret_columns text[], scope_column text default null, mode text default 'ledger'
) returns text
language sql volatile security invoker
begin atomic
  select meshaudit_private.run_statements(b.statements, b.owner)
    from meshaudit_private.begin_protect(target, secret_columns, scope_column, mode, current_user) b;
  select meshaudit_private.run_statements(g.statements, g.owner) from meshaudit_private.go_on_protect(target) g;
  select meshaudit_private.finish_protect(target, current_user);
end;
revoke all on function meshaudit.protect(regclass, text[], text, text) from public;
grant execute on function meshaudit.protect(regclass, text[], text, text) to meshaudit_client, meshaudit_operator;

create function meshaudit.protection_plan(
  target regclass, secret_columns text[], scope_column text default null, mode text default 'ledger'
) returns setof text
language sql volatile security invoker
begin atomic
  select p from meshaudit_private.protection_plan(target, secret_columns, scope_column, mode, current_user) p;
end;
revoke all on function meshaudit.protection_plan(regclass, text[], text, text) from public;
grant execute on function meshaudit.protection_plan(regclass, text[], text, text) to meshaudit_client, meshaudit_operator;

comment on function meshaudit_private.run_statements(text[], name) is 'Executes statements as the table''s owner.';
comment on function meshaudit_private.view_statements(meshaudit_private.protections, name) is 'Statements that make the view in the table''s place.';
comment on function meshaudit_private.base_statements(meshaudit_private.protections) is 'Statements that move the table away and guard it.';
comment on function meshaudit_private.planned(oid, text[], text, text, name) is 'The protection that is asked for. Raises MA001 or MA005 if it cannot be.';
comment on function meshaudit_private.owner_of(oid) is 'A relation''s owner.';
comment on function meshaudit_private.protection_plan(regclass, text[], text, text, name) is 'meshaudit.protection_plan(), for a role.';
comment on function meshaudit_private.begin_protect(regclass, text[], text, text, name) is 'Checks, makes the functions, and says what the table''s owner has to do.';
comment on function meshaudit_private.go_on_protect(regclass) is 'Makes what reads the moved table, and says what its owner has to do next.';
comment on function meshaudit_private.take_back_usage(name) is 'Takes back what protect() and unprotect() lend the table''s owner.';
comment on function meshaudit_private.finish_protect(regclass, name) is 'Notes that a table is protected; says so in one line.';
comment on function meshaudit_private.refuse_half_protected() is 'Raises MA005 unless protect() has run to its end.';
comment on function meshaudit.protect(regclass, text[], text, text) is
  'Puts a table under audit, in place: a view takes its name, and each read of secret_columns and each write of a row leaves an entry. scope_column tells the tenant or project; mode is ledger, or journal (faster; needs an armed journal). For the table''s owner. Recorded. Raises MA001 if it is not yours, MA005 if it cannot be protected.';
comment on function meshaudit.protection_plan(regclass, text[], text, text) is
  'What protect() would have the table''s owner execute, one statement a row; changes nothing. Raises MA001 and MA005 as protect() does.';
