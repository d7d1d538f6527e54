-- What can be protected, and why not. Every refusal is MA005 (MA001: not yours) and says what to do.

create function meshaudit_private.refuse_protection(p_target text, p_why text, p_hint text) returns void
language plpgsql volatile set search_path = ''
as $$
begin
  raise exception '% cannot be protected: %', p_target, p_why using errcode = 'MA005', hint = p_hint;
end
$$;

create function meshaudit_private.require_owner(p_relation oid, p_role name) returns void
language plpgsql volatile set search_path = ''
as $$
begin
  if not exists (
    select from pg_catalog.pg_class c where c.oid = p_relation and pg_catalog.pg_has_role(p_role, c.relowner, 'USAGE')
  ) then
    raise exception 'you do not own %', p_relation::pg_catalog.regclass using errcode = 'MA001',
      hint = 'Protecting a table, and taking it back out, is for its owner.';
  end if;
end
$$;

-- The table and, if it is partitioned, all its partitions.
create function meshaudit_private.relations_of(p_base oid) returns setof oid
language sql stable set search_path = ''
as $$
  select p_base union select t.relid from pg_catalog.pg_partition_tree(p_base::pg_catalog.regclass) t
$$;

create function meshaudit_private.check_kind(p_target oid, p_name text) returns void
language plpgsql volatile set search_path = ''
as $$
declare
  c pg_catalog.pg_class;
  v_schema pg_catalog.text;
begin
  select * into c from pg_catalog.pg_class r where r.oid = p_target;
  select n.nspname into v_schema from pg_catalog.pg_namespace n where n.oid = c.relnamespace;
  if exists (select from meshaudit_private.protections p where p.view = p_target or p_target = any (
      select r from meshaudit_private.relations_of(p.base) r)) then
    perform meshaudit_private.refuse_protection(p_name, 'it is protected already', 'meshaudit.unprotect() takes it out again.');
  elsif v_schema in ('pg_catalog', 'information_schema', 'meshaudit', 'meshaudit_private', 'meshaudit_protected') or v_schema ~ '^pg_' then
    perform meshaudit_private.refuse_protection(p_name, 'it is a system, temporary or meshaudit table', 'Protect tables of your own.');
  elsif c.relkind not in ('r', 'p') then
    perform meshaudit_private.refuse_protection(p_name, 'it is not a table', 'Foreign tables, views and sequences hold no rows of their own.');
  elsif c.relispartition then
    perform meshaudit_private.refuse_protection(p_name, 'it is a partition', pg_catalog.format('Protect the partitioned table: %s.',
      (select i.inhparent::pg_catalog.regclass from pg_catalog.pg_inherits i where i.inhrelid = p_target)));
  elsif c.relkind = 'r' and exists (select from pg_catalog.pg_inherits i where p_target in (i.inhrelid, i.inhparent)) then
    perform meshaudit_private.refuse_protection(p_name, 'it inherits, or is inherited from', 'A query of the parent would read the child past the audit.');
  elsif exists (select from pg_catalog.pg_depend d where d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
      and d.objid = p_target and d.deptype = 'e') then
    perform meshaudit_private.refuse_protection(p_name, 'it belongs to an extension', 'Wrap it: see docs/supabase.md for Supabase''s Vault.');
  end if;
end
$$;

create function meshaudit_private.check_columns(p_target oid, p_name text, p_secrets text[], p_scope text) returns void
language plpgsql volatile set search_path = ''
as $$
declare
  v_keys constant pg_catalog.name[] := meshaudit_private.key_columns(p_target);
  v_bad pg_catalog.text;
begin
  if coalesce(pg_catalog.cardinality(p_secrets), 0) = 0 or pg_catalog.array_position(p_secrets, null) is not null then
    perform meshaudit_private.refuse_protection(p_name, 'no secret column is named', 'Name one or more columns.');
  end if;
  select n into v_bad from unnest(p_secrets || p_scope) n where n is not null and not exists (
    select from pg_catalog.pg_attribute a where a.attrelid = p_target and a.attname = n and a.attnum > 0 and not a.attisdropped);
  if v_bad is not null then
    perform meshaudit_private.refuse_protection(p_name, pg_catalog.format('it has no column "%s"', v_bad),
      pg_catalog.format('Its columns: %s.', (select pg_catalog.string_agg(a.attname, ', ' order by a.attnum)
        from pg_catalog.pg_attribute a where a.attrelid = p_target and a.attnum > 0 and not a.attisdropped)));
  elsif v_keys is null then
    perform meshaudit_private.refuse_protection(p_name, 'it has no primary key', 'Entries name a row by its primary key: add one.');
  elsif p_secrets && v_keys::pg_catalog.text[] or p_scope = any (p_secrets) then
    perform meshaudit_private.refuse_protection(p_name, 'a secret column is in the primary key, or is the scope',
      'Entries name both in plain text.');
  elsif exists (select from pg_catalog.pg_attribute a where a.attrelid = p_target and a.attname = p_scope and a.attgenerated = 'v') then
    perform meshaudit_private.refuse_protection(p_name, 'the scope is a virtual column', 'Triggers are not shown its value: make it STORED.');
  end if;
  select n.nspname into v_bad
    from pg_catalog.pg_attribute a join pg_catalog.pg_type t on t.oid = a.atttypid join pg_catalog.pg_namespace n on n.oid = t.typnamespace
    where a.attrelid = p_target and a.attname = any (p_secrets || v_keys::pg_catalog.text[])
      and not pg_catalog.has_schema_privilege('meshaudit_owner', n.oid, 'USAGE') limit 1;
  if v_bad is not null then
    perform meshaudit_private.refuse_protection(p_name, pg_catalog.format('meshaudit cannot use the types of schema "%s"', v_bad),
      pg_catalog.format('Run: grant usage on schema %I to meshaudit_owner', v_bad));
  end if;
  -- a column generated from a secret tells the secret
  select a.attname into v_bad
    from pg_catalog.pg_attrdef f
    join pg_catalog.pg_attribute a on a.attrelid = f.adrelid and a.attnum = f.adnum and a.attgenerated <> ''
    join pg_catalog.pg_depend d on d.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass and d.objid = f.oid
      and d.refobjid = p_target
    join pg_catalog.pg_attribute s on s.attrelid = p_target and s.attnum = d.refobjsubid
    where f.adrelid = p_target and s.attname = any (p_secrets) and a.attname <> all (p_secrets) limit 1;
  if v_bad is not null then
    perform meshaudit_private.refuse_protection(p_name, pg_catalog.format('column "%s" is generated from a secret column', v_bad),
      'Name it as a secret column too.');
  end if;
end
$$;

create function meshaudit_private.key_columns(p_target oid) returns name[]
language sql stable set search_path = ''
as $$
  select pg_catalog.array_agg(a.attname order by k.n)
  from pg_catalog.pg_index i, unnest(i.indkey::pg_catalog.int2[]) with ordinality k (attnum, n)
  join pg_catalog.pg_attribute a on a.attnum = k.attnum
  where i.indrelid = p_target and i.indisprimary and a.attrelid = p_target
$$;

-- Whatever would go on reading the table by its oid, past the view, or streams its values.
create function meshaudit_private.check_dependents(p_target oid, p_name text, p_secrets text[]) returns void
language plpgsql volatile set search_path = ''
as $$
declare
  v_what pg_catalog.text;
begin
  select pg_catalog.string_agg(distinct case d.classid
      when 'pg_catalog.pg_rewrite'::pg_catalog.regclass then (
        select r.ev_class::pg_catalog.regclass::pg_catalog.text from pg_catalog.pg_rewrite r where r.oid = d.objid)
      else pg_catalog.pg_describe_object(d.classid, d.objid, 0) end, ', ') into v_what
    from pg_catalog.pg_depend d
    where d.classid in ('pg_catalog.pg_rewrite'::pg_catalog.regclass, 'pg_catalog.pg_proc'::pg_catalog.regclass)
      and (d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.refobjid in (select r from meshaudit_private.relations_of(p_target) r)
        or d.refclassid = 'pg_catalog.pg_type'::pg_catalog.regclass and d.refobjid in (
          select t from pg_catalog.pg_class c join pg_catalog.pg_type y on y.oid = c.reltype, unnest(array[y.oid, y.typarray]) t where c.oid = p_target));
  if v_what is not null then
    perform meshaudit_private.refuse_protection(p_name, pg_catalog.format('these would keep reading the table itself: %s', v_what),
      'Views, rules, SQL-standard functions and functions that take its row type are bound to the table: drop them, protect, and make them again on the protected name.');
  end if;
  select pg_catalog.string_agg(distinct t.pubname, ', ') into v_what
    from pg_catalog.pg_publication_tables t
    join pg_catalog.pg_namespace n on n.nspname = t.schemaname
    join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = t.tablename
    where c.oid in (select r from meshaudit_private.relations_of(p_target) r) and t.attnames::pg_catalog.text[] && p_secrets;
  if v_what is not null then
    perform meshaudit_private.refuse_protection(p_name, pg_catalog.format('a publication streams its values: %s', v_what),
      'Take the table, or at least its secret columns, out of the publication.');
  end if;
  -- a policy reads as who queries its table, who may no longer read the values
  select pg_catalog.string_agg(distinct pg_catalog.format('%s on %s', o.polname, o.polrelid::pg_catalog.regclass), ', ') into v_what
    from pg_catalog.pg_depend d
    join pg_catalog.pg_policy o on o.oid = d.objid and o.polrelid <> p_target
    join pg_catalog.pg_attribute a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid
    where d.classid = 'pg_catalog.pg_policy'::pg_catalog.regclass and d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
      and d.refobjid in (select r from meshaudit_private.relations_of(p_target) r) and a.attname = any (p_secrets);
  if v_what is not null then
    perform meshaudit_private.refuse_protection(p_name, pg_catalog.format('policies of other tables read its secret columns: %s', v_what),
      'Have them call a function that is not in standard SQL, or drop them, protect, and make them again on the protected name.');
  end if;
  select pg_catalog.string_agg(p.polname, ', ') into v_what from pg_catalog.pg_policy p
    where p.polrelid = p_target and not p.polpermissive and 0::pg_catalog.oid = any (p.polroles) and p.polcmd in ('r', '*');
  if v_what is not null then
    perform meshaudit_private.refuse_protection(p_name, pg_catalog.format('a restrictive policy applies to every role, meshaudit''s own included: %s', v_what),
      'Name roles in it: alter policy … to authenticated, anon.');
  end if;
  select pg_catalog.string_agg(distinct pg_catalog.pg_get_userbyid(x.grantor), ', ') into v_what
    from meshaudit_private.relations_of(p_target) r join pg_catalog.pg_class c on c.oid = r,
      lateral (
        select e.grantor from pg_catalog.aclexplode(c.relacl) e
        union all
        select e.grantor from pg_catalog.pg_attribute a, pg_catalog.aclexplode(a.attacl) e where a.attrelid = c.oid) x
    where x.grantor <> c.relowner or c.relowner <> (select t.relowner from pg_catalog.pg_class t where t.oid = p_target);
  if v_what is not null then
    perform meshaudit_private.refuse_protection(p_name, pg_catalog.format('privileges were granted by others than its owner: %s', v_what),
      'They could not be restored: grant them as the owner (partitions must have the same owner).');
  end if;
  -- a view asks for all columns that it has, however few are selected
  select pg_catalog.string_agg(distinct pg_catalog.pg_get_userbyid(e.grantee), ', ') into v_what
    from pg_catalog.pg_attribute a, pg_catalog.aclexplode(a.attacl) e
    where a.attrelid = p_target and e.privilege_type = 'SELECT' and exists (
      select from pg_catalog.pg_attribute o
      where o.attrelid = p_target and o.attnum > 0 and not o.attisdropped and o.attname <> all (p_secrets)
        and not case e.grantee when 0 then exists (select from pg_catalog.aclexplode(o.attacl) x where x.grantee = 0 and x.privilege_type = 'SELECT')
          else pg_catalog.has_column_privilege(e.grantee, p_target, o.attnum, 'SELECT') end);
  if v_what is not null then
    perform meshaudit_private.refuse_protection(p_name, pg_catalog.format('some roles may read only a part of its other columns: %s', v_what),
      'A view asks for SELECT on all of its columns but the secret ones: grant that, or revoke it.');
  end if;
  select pg_catalog.string_agg(c.relname, ', ') into v_what
    from pg_catalog.pg_class c
    where c.relnamespace = 'meshaudit_protected'::pg_catalog.regnamespace and c.relname in (
      select m.relname from pg_catalog.pg_class m where m.oid in (select r from meshaudit_private.relations_of(p_target) r)
      union select m.relname from pg_catalog.pg_index i join pg_catalog.pg_class m on m.oid = i.indexrelid
        where i.indrelid in (select r from meshaudit_private.relations_of(p_target) r));
  if v_what is not null then
    perform meshaudit_private.refuse_protection(p_name, pg_catalog.format('a protected table of another schema has these names: %s', v_what),
      'Rename the table, its indexes and sequences.');
  end if;
end
$$;

comment on function meshaudit_private.refuse_protection(text, text, text) is 'Raises MA005: why a table cannot be protected, and what to do.';
comment on function meshaudit_private.require_owner(oid, name) is 'Raises MA001 unless a role owns the relation.';
comment on function meshaudit_private.relations_of(oid) is 'A table and all its partitions.';
comment on function meshaudit_private.check_kind(oid, text) is 'Raises MA005 if it is not a table that can be protected.';
comment on function meshaudit_private.check_columns(oid, text, text[], text) is 'Raises MA005 unless the columns are there and fit.';
comment on function meshaudit_private.key_columns(oid) is 'The columns of a table''s primary key; null if it has none.';
comment on function meshaudit_private.check_dependents(oid, text, text[]) is 'Raises MA005 if something would get around the view, or could not be restored.';
