-- The functions that a protected table gets, as text: one that reveals, for each secret column, and one that records
-- writes. They belong to meshaudit_owner.

-- Types whose text depends on no setting; others get their settings fixed.
create function meshaudit_private.text_settings(p_base oid, p_columns name[]) returns text
language sql stable set search_path = ''
as $$
  select case when pg_catalog.bool_and(a.atttypid = any (array['uuid', 'int2', 'int4', 'int8', 'text', 'varchar', 'bpchar', 'bool']::pg_catalog.regtype[]))
    then '' else $s$ set datestyle = 'ISO, YMD' set timezone = 'UTC' set intervalstyle = 'postgres' set extra_float_digits = 1 set bytea_output = 'hex'$s$ end
  from pg_catalog.pg_attribute a where a.attrelid = p_base and a.attname = any (p_columns)
$$;

-- What names a row in the log: its key, or the keys as a row.
create function meshaudit_private.id_expression(p_keys name[], p_alias text) returns text
language sql immutable set search_path = ''
as $$
  select case pg_catalog.cardinality(p_keys)
    when 1 then pg_catalog.format('pg_catalog."left"(%s.%I::pg_catalog.text, 512)', p_alias, p_keys[1])
    else pg_catalog.format('pg_catalog."left"(row(%s)::pg_catalog.text, 512)',
      (select pg_catalog.string_agg(pg_catalog.format('%s.%I', p_alias, k), ', ' order by n) from unnest(p_keys) with ordinality u (k, n))) end
$$;

create function meshaudit_private.scope_expression(p_scope name, p_alias text) returns text
language sql immutable set search_path = ''
as $$
  select case when p_scope is null then '''''::pg_catalog.text'
    else pg_catalog.format('coalesce(pg_catalog."left"(%s.%I::pg_catalog.text, 255), '''')', p_alias, p_scope) end
$$;

-- "left = right" for each column of the key, by the equality of the primary key's own index; of the formats, %1$I is the
-- column and %2$s its number.
create function meshaudit_private.key_condition(p_base oid, p_left text, p_right text) returns text
language sql stable set search_path = ''
as $$
  select pg_catalog.string_agg(pg_catalog.format(p_left, a.attname, k.n)
    || pg_catalog.format(' operator(%I.%s) ', s.nspname, o.oprname) || pg_catalog.format(p_right, a.attname, k.n), ' and ' order by k.n)
  from pg_catalog.pg_index i,
    unnest(i.indkey::pg_catalog.int2[], i.indclass::pg_catalog.oid[]) with ordinality k (attnum, opclass, n)
  join pg_catalog.pg_attribute a on a.attnum = k.attnum
  join pg_catalog.pg_opclass c on c.oid = k.opclass
  join pg_catalog.pg_amop m on m.amopfamily = c.opcfamily and m.amopstrategy = 3
    and m.amoplefttype = c.opcintype and m.amoprighttype = c.opcintype
  join pg_catalog.pg_operator o on o.oid = m.amopopr
  join pg_catalog.pg_namespace s on s.oid = o.oprnamespace
  where i.indrelid = p_base and i.indisprimary and a.attrelid = p_base
$$;

-- Takes the key, the row's ctid, and who asks. The value is of the row that the query sees (STABLE: the query's
-- snapshot); after FOR UPDATE has waited, that is a newer one, found by a look of its own.
create function meshaudit_private.reveal_functions(p meshaudit_private.protections) returns setof text
language sql stable set search_path = ''
as $$
  select pg_catalog.format(
    'create function meshaudit_private.%1$I(%2$s, tid, name) returns %3$s language plpgsql %4$s parallel unsafe security definer cost 100000 set search_path = ''''%5$s as %6$L; grant execute on function meshaudit_private.%1$I(%2$s, tid, name) to public; comment on function meshaudit_private.%1$I(%2$s, tid, name) is %7$L',
    f.prefix || p.protection_id || '_' || a.attnum, k.types, pg_catalog.format_type(a.atttypid, null), f.volatility,
    meshaudit_private.text_settings(p.base, p.key_columns || p.scope_column),
    pg_catalog.format($body$
declare
  v_value %1$s;
  v_id pg_catalog.text;
  v_scope pg_catalog.text;
  v_mark pg_catalog.text;
begin
  select b.%2$I, %3$s, %4$s, meshaudit_private.reveal_mark(k.key, %9$L, %3$s, b.xmin, b.ctid)
    into v_value, v_id, v_scope, v_mark
    from meshaudit_protected.%5$I b, meshaudit_private.reveal_key k where %6$s%7$s;
  if not found then
    %8$s
  end if;
  if pg_catalog.current_setting('meshaudit.revealed', true) is distinct from v_mark then
    perform meshaudit_private.record_reveal(%9$L, v_id, v_mark, v_scope, $%10$s, %11$L);
  end if;
  return v_value;
end
$body$, pg_catalog.format_type(a.atttypid, null), a.attname, meshaudit_private.id_expression(p.key_columns, 'b'),
      meshaudit_private.scope_expression(p.scope_column, 'b'), p.table_name, k.found_by,
      case when f.prefix = 'reveal_' then pg_catalog.format(' and b.ctid = $%s', k.count + 1) else '' end,
      case when f.prefix = 'reveal_' then pg_catalog.format('return meshaudit_private.%I(%s);', 'latest_' || p.protection_id || '_' || a.attnum, k.arguments)
        else 'raise exception ''a protected row is gone'' using errcode = ''40001'', hint = ''Try again.'';' end,
      pg_catalog.format('%I.%I', p.schema_name, p.table_name), k.count + 2, p.mode = 'journal'),
    'Reveals a secret column of a protected row, and records it.')
  from pg_catalog.pg_attribute a,
    (values ('latest_', 'volatile'), ('reveal_', 'stable')) f (prefix, volatility),
    lateral (
      select pg_catalog.string_agg(pg_catalog.format_type(t.atttypid, null), ', ' order by n.i) as types,
        meshaudit_private.key_condition(p.base, 'b.%I', '$%2$s') as found_by,
        (select pg_catalog.string_agg('$' || i, ', ' order by i) from pg_catalog.generate_series(1, pg_catalog.cardinality(p.key_columns) + 2) i) as arguments,
        pg_catalog.count(*) as count
      from unnest(p.key_columns) with ordinality n (name, i)
      join pg_catalog.pg_attribute t on t.attrelid = p.base and t.attname = n.name) k
  where a.attrelid = p.base and a.attname = any (p.secret_columns)
  order by a.attnum, f.prefix
$$;

create function meshaudit_private.writes_function(p meshaudit_private.protections) returns text
language sql stable set search_path = ''
as $$
  select pg_catalog.format(
    'create function meshaudit_private.%1$I() returns trigger language plpgsql volatile security definer set search_path = ''''%2$s as %3$L; grant execute on function meshaudit_private.%1$I() to public; comment on function meshaudit_private.%1$I() is ''Records the writes of a statement.''',
    'writes_' || p.protection_id, meshaudit_private.text_settings(p.base, p.key_columns || p.scope_column),
    pg_catalog.format($body$
declare
  v_ids pg_catalog.text[];
  v_scopes pg_catalog.text[];
  v_old_ids pg_catalog.text[];
  v_old_scopes pg_catalog.text[];
begin
  if tg_op = 'INSERT' then
    select pg_catalog.array_agg(%1$s), pg_catalog.array_agg(%2$s) into v_ids, v_scopes from new_rows;
    perform meshaudit_private.record_writes('create', v_ids, %5$L, v_scopes, %6$L);
  elsif tg_op = 'UPDATE' then
    select pg_catalog.array_agg(%1$s), pg_catalog.array_agg(%2$s) into v_ids, v_scopes from new_rows;
    select pg_catalog.array_agg(%3$s), pg_catalog.array_agg(%4$s) into v_old_ids, v_old_scopes from old_rows;
    if v_ids is distinct from v_old_ids or v_scopes is distinct from v_old_scopes then
      -- both, where the key or the scope has changed
      select pg_catalog.array_agg(u.id), pg_catalog.array_agg(u.scope) into v_ids, v_scopes from (
        select * from unnest(v_old_ids, v_old_scopes) union select * from unnest(v_ids, v_scopes)) u (id, scope);
    end if;
    perform meshaudit_private.record_writes('update', v_ids, %5$L, v_scopes, %6$L);
  elsif tg_op = 'DELETE' then
    select pg_catalog.array_agg(%3$s), pg_catalog.array_agg(%4$s) into v_ids, v_scopes from old_rows;
    perform meshaudit_private.record_writes('delete', v_ids, %5$L, v_scopes, %6$L);
  else
    perform meshaudit_private.record_writes('delete', array['all rows (TRUNCATE)'], %5$L, array['*'], %6$L);
  end if;
  return null;
end
$body$, meshaudit_private.id_expression(p.key_columns, 'new_rows'), meshaudit_private.scope_expression(p.scope_column, 'new_rows'),
      meshaudit_private.id_expression(p.key_columns, 'old_rows'), meshaudit_private.scope_expression(p.scope_column, 'old_rows'),
      pg_catalog.format('%I.%I', p.schema_name, p.table_name), p.mode = 'journal'))
$$;

comment on function meshaudit_private.text_settings(oid, name[]) is 'SET clauses that make the text of those columns the same in every session; none where it is.';
comment on function meshaudit_private.id_expression(name[], text) is 'The expression that names a row in the log.';
comment on function meshaudit_private.key_condition(oid, text, text) is 'The condition that finds a row by its key.';
comment on function meshaudit_private.scope_expression(name, text) is 'The expression for a row''s scope.';
comment on function meshaudit_private.reveal_functions(meshaudit_private.protections) is 'Statements that make the functions which reveal.';
comment on function meshaudit_private.writes_function(meshaudit_private.protections) is 'The statement that makes the function which records writes.';
