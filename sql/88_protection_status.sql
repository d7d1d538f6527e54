-- The protected tables' part of status(): every way around the audit.

-- Triggers of a table, or of its partitions, that were not made by protect(): a row's trigger is shown its values. whose:
-- its function belongs to somebody else than the table's owner or a superuser.
create function meshaudit_private.triggers_of(p_base oid) returns table (what text, whose boolean)
language sql stable set search_path = ''
as $$
  select pg_catalog.format('trigger %I on %s (function %s of %I)', t.tgname, t.tgrelid::pg_catalog.regclass,
      t.tgfoid::pg_catalog.regprocedure, r.rolname), not (r.rolsuper or r.oid = c.relowner)
  from meshaudit_private.relations_of(p_base) x
  join pg_catalog.pg_trigger t on t.tgrelid = x and not t.tgisinternal and t.tgparentid = 0
    -- row-level, or with a transition table
    and (t.tgtype & 1 = 1 or t.tgoldtable is not null or t.tgnewtable is not null)
  join pg_catalog.pg_class c on c.oid = x
  join pg_catalog.pg_proc f on f.oid = t.tgfoid and f.pronamespace <> 'meshaudit_private'::pg_catalog.regnamespace
  join pg_catalog.pg_roles r on r.oid = f.proowner
  order by t.tgrelid, t.tgname
$$;
comment on function meshaudit_private.triggers_of(oid) is 'A table''s own triggers that are shown its values, and whether their functions are of others than its owner.';

create function meshaudit_private.protection_status() returns table ("check" text, ok boolean, detail text)
language plpgsql volatile set search_path = '' set quote_all_identifiers = off
as $$
declare
  p meshaudit_private.protections;
  v_list pg_catalog.text;
  v_name pg_catalog.text;
  v_secrets pg_catalog.name[];
begin
  "check" := 'protected tables';
  select pg_catalog.string_agg(pg_catalog.format('%I.%I', t.schema_name, t.table_name), ', ' order by t.protection_id) into v_list
    from meshaudit_private.protections t;
  ok := true;
  detail := coalesce(v_list, 'none');
  return next;
  if v_list is null then
    return;
  end if;

  for p in select * from meshaudit_private.protections t order by t.protection_id loop
    v_name := pg_catalog.format('%I.%I', p.schema_name, p.table_name);

    if not exists (select from pg_catalog.pg_class c where c.oid = p.base) then
      "check" := 'guards of ' || v_name;
      ok := false;
      detail := pg_catalog.format('the table has been dropped; select meshaudit.unprotect(''%s'') forgets it', p.base::pg_catalog.oid);
      return next;
      continue;
    end if;
    -- what the secret columns are called now: what values_N asks of the table, less key and scope (a restored table may number
    -- its columns anew)
    v_secrets := array(
      select a.attname from pg_catalog.pg_rewrite w
      join pg_catalog.pg_depend d on d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass and d.objid = w.oid
        and d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.refobjid = p.base
      join pg_catalog.pg_attribute a on a.attrelid = p.base and a.attnum = d.refobjsubid and a.attnum > 0 and not a.attisdropped
      where w.ev_class = pg_catalog.to_regclass('meshaudit_private.values_' || p.protection_id)
        and a.attname <> all (p.key_columns || p.scope_column || meshaudit_private.key_columns(p.base)) is not false);

    -- superusers and pg_read_all_data have a line of their own
    "check" := 'ways around ' || v_name;
    select pg_catalog.string_agg(distinct pg_catalog.format('%I (%s)', r.rolname, case
          when r.oid = c.relowner then 'owner, by a grant to itself' else 'SELECT on a secret column' end), ', ') into v_list
      from meshaudit_private.relations_of(p.base) x
      join pg_catalog.pg_class c on c.oid = x
      cross join pg_catalog.pg_roles r
      where not r.rolsuper and r.rolname <> 'meshaudit_owner'
        and not pg_catalog.pg_has_role(r.oid, 'pg_read_all_data', 'USAGE') and r.rolname <> 'pg_read_all_data'
        and exists (
          select from pg_catalog.pg_attribute a
          where a.attrelid = x and a.attname = any (v_secrets || p.secret_columns) and not a.attisdropped
            and pg_catalog.has_column_privilege(r.oid, x, a.attnum, 'SELECT'));
    ok := v_list is null;
    detail := case when ok then 'none, but see roles above all privileges' else pg_catalog.format(
      'read meshaudit_protected.%I without an entry: %s; revoke select on it from them', p.table_name, v_list) end;
    return next;

    "check" := 'guards of ' || v_name;
    select pg_catalog.string_agg(w.what, '; ') into v_list from (
      select pg_catalog.format('trigger meshaudit_%s on %s is missing or disabled', verb, x::pg_catalog.regclass) as what
        from meshaudit_private.relations_of(p.base) x,
          (values ('insert', 4, meshaudit_private.by_row(p)), ('update', 16, meshaudit_private.by_row(p)), ('delete', 8, false), ('truncate', 32, false)) v (verb, bit, by_row)
        where not exists (select from pg_catalog.pg_trigger t
          where t.tgrelid = x and t.tgname = 'meshaudit_' || verb and t.tgenabled = 'A'
            -- after, and always: no WHEN, no columns
            and t.tgtype = bit + by_row::pg_catalog.int4 and t.tgqual is null and t.tgattr = '' and t.tgconstraint = 0 and t.tgnargs = 0
            and t.tgfoid = pg_catalog.to_regproc(case when by_row then 'meshaudit_private.row_' else 'meshaudit_private.writes_' end || p.protection_id))
      union all
      select pg_catalog.format('trigger meshaudit_%s of the view is missing', verb)
        from unnest(array['insert', 'update']) verb
        where not exists (select from pg_catalog.pg_trigger t where t.tgrelid = p.view and t.tgname = 'meshaudit_' || verb and t.tgenabled <> 'D'
            and t.tgfoid = pg_catalog.to_regproc(pg_catalog.format('meshaudit_private.%s_%s', verb, p.protection_id)))
      union all
      select 'the view is gone' where not exists (select from pg_catalog.pg_class c where c.oid = p.view and c.relkind = 'v')
      union all
      select pg_catalog.format('the view is called %s now', p.view) from pg_catalog.pg_class c
        where c.oid = p.view and (c.relname <> p.table_name or c.relnamespace is distinct from pg_catalog.to_regnamespace(pg_catalog.quote_ident(p.schema_name)))
      union all
      select pg_catalog.format('the view''s column %I has another name', a.attname) from pg_catalog.pg_attribute a
        where a.attrelid = p.view and a.attnum > 0 and not exists (
          select from pg_catalog.pg_attribute b where b.attrelid = p.base and b.attname = a.attname and not b.attisdropped)
      union all
      select 'row security does not act through the view: alter view … set (security_invoker = true)' from pg_catalog.pg_class c
        where c.oid = p.view and not exists (select from unnest(c.reloptions) o where o ~ '^security_invoker=(true|on|yes|1)$')
      union all
      select pg_catalog.format('the view belongs to %I, the table to %I', pg_catalog.pg_get_userbyid(c.relowner), meshaudit_private.owner_of(p.base)) from pg_catalog.pg_class c
        where c.oid = p.view and c.relowner <> (select b.relowner from pg_catalog.pg_class b where b.oid = p.base)
      union all
      select 'the view no longer reveals by meshaudit''s function'
        from unnest(v_secrets) s join pg_catalog.pg_attribute a on a.attrelid = p.base and a.attname = s
        where not exists (
          select from pg_catalog.pg_depend d join pg_catalog.pg_rewrite r on r.oid = d.objid and r.ev_class = p.view
          where d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass and d.refclassid = 'pg_catalog.pg_proc'::pg_catalog.regclass
            and d.refobjid = pg_catalog.to_regproc(pg_catalog.format('meshaudit_private.see_%s_%s', p.protection_id, a.attnum)))
      union all
      select pg_catalog.format('column %I has been renamed or dropped', s) from unnest(p.secret_columns || p.key_columns || p.scope_column) s
        where s is not null and not exists (
          select from pg_catalog.pg_attribute a where a.attrelid = p.base and a.attname = s and not a.attisdropped)
      union all
      select pg_catalog.format('%s has been renamed', p.base) where p.table_name <> (select c.relname from pg_catalog.pg_class c where c.oid = p.base)
      union all
      select pg_catalog.format('policy %I binds meshaudit too: name roles in it', y.polname) from pg_catalog.pg_policy y
        where y.polrelid = p.base and not y.polpermissive and 0::pg_catalog.oid = any (y.polroles) and y.polcmd in ('r', '*')
      union all
      select pg_catalog.format('%s is outside of meshaudit_protected', x::pg_catalog.regclass)
        from meshaudit_private.relations_of(p.base) x join pg_catalog.pg_class c on c.oid = x
        where c.relnamespace <> 'meshaudit_protected'::pg_catalog.regnamespace
      union all
      select pg_catalog.format('row security is on for the table, off for its partition %s', x::pg_catalog.regclass)
        from meshaudit_private.relations_of(p.base) x join pg_catalog.pg_class c on c.oid = x
        where not c.relrowsecurity and (select b.relrowsecurity from pg_catalog.pg_class b where b.oid = p.base)
          and exists (select from pg_catalog.aclexplode(c.relacl) a where a.grantee <> c.relowner and a.privilege_type in ('SELECT', 'UPDATE', 'DELETE'))
      union all
      select pg_catalog.format('%s, which it %s, is read and written past the audit', case i.inhrelid when p.base then i.inhparent else i.inhrelid end::pg_catalog.regclass,
          case i.inhrelid when p.base then 'belongs to' else 'is inherited by' end)
        from pg_catalog.pg_inherits i
        where i.inhrelid = p.base or i.inhparent = p.base and (select c.relkind from pg_catalog.pg_class c where c.oid = p.base) = 'r'
      union all
      -- also where a column or a BEFORE trigger came later, of which they do not know
      select pg_catalog.format('function %s is not what protect() would make: take the table out, and protect it again', m.name)
        from (select s, pg_catalog.substring(s, 'create function meshaudit_private\.([a-z]+_[0-9]+)\(') as name
          from meshaudit_private.write_functions(p) s) m
        where not exists (
          select from pg_catalog.pg_proc f
          where f.pronamespace = 'meshaudit_private'::pg_catalog.regnamespace and f.proname = m.name
            and f.proowner = 'meshaudit_owner'::pg_catalog.regrole and f.prosecdef = (pg_catalog.strpos(m.s, ' security definer ') > 0)
            and pg_catalog.strpos(m.s, pg_catalog.format(' as %L; grant execute', f.prosrc)) > 0)
      union all
      select 'policy meshaudit_reveal is missing' where not exists (
        select from pg_catalog.pg_policy y where y.polrelid = p.base and y.polname = 'meshaudit_reveal')
    ) w;
    ok := v_list is null;
    detail := coalesce(v_list, 'in place');
    return next;

    "check" := 'publications of ' || v_name;
    select pg_catalog.string_agg(distinct t.pubname, ', ') into v_list
      from pg_catalog.pg_publication_tables t
      where t.schemaname = 'meshaudit_protected' and t.tablename in (select u ->> 'name' from pg_catalog.jsonb_array_elements(p.saved) u)
        and t.attnames::pg_catalog.text[] && (v_secrets || p.secret_columns)::pg_catalog.text[];
    ok := v_list is null;
    detail := coalesce('its values are streamed by: ' || v_list, 'none');
    return next;

    "check" := 'triggers of ' || v_name;
    select pg_catalog.string_agg(t.what, ', '), pg_catalog.bool_or(t.whose) is not true into v_list, ok
      from meshaudit_private.triggers_of(p.base) t;
    detail := coalesce('see the values that are written: ' || v_list, 'none');
    return next;
  end loop;

  "check" := 'inner schema';
  select pg_catalog.string_agg(distinct e.grantee::pg_catalog.regrole::pg_catalog.text, ', ') into v_list
    from pg_catalog.pg_namespace n, pg_catalog.aclexplode(n.nspacl) e
    where n.nspname = 'meshaudit_private' and e.grantee <> n.nspowner or n.nspname = 'meshaudit_protected' and e.privilege_type = 'CREATE' and e.grantee <> n.nspowner;
  ok := v_list is null;
  detail := coalesce('can name what only meshaudit should: ' || v_list || '; revoke usage on schema meshaudit_private, create on schema meshaudit_protected', 'closed');
  return next;

  "check" := 'roles above all privileges';
  select pg_catalog.string_agg(pg_catalog.format('%I (%s)', r.rolname, case when r.rolsuper then 'superuser'
      when r.rolreplication then 'replication' when r.rolbypassrls then 'reads all data, past row security' else 'reads all data' end), ', ' order by r.rolname) into v_list
    from pg_catalog.pg_roles r
    where r.rolname !~ '^pg_' and (r.rolsuper or r.rolreplication or pg_catalog.pg_has_role(r.oid, 'pg_read_all_data', 'USAGE'));
  ok := v_list is null;
  detail := coalesce('can read protected tables without an entry: ' || v_list, 'none');
  return next;
end
$$;
comment on function meshaudit_private.protection_status() is 'The protected tables'' checks for meshaudit.status().';
