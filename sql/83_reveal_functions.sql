-- The functions by which a protected table reveals, as text: for each secret column one that records and hands out, and those that
-- look for the value. They belong to meshaudit_owner.

-- Types whose text depends on no setting; others get their settings fixed.
create function meshaudit_private.text_settings(p_base oid, p_columns name[]) returns text
language sql stable set search_path = ''
as $$
  select case when pg_catalog.bool_and(a.atttypid = any (array['pg_catalog.uuid', 'pg_catalog.int2', 'pg_catalog.int4', 'pg_catalog.int8', 'pg_catalog.text', 'pg_catalog.varchar', 'pg_catalog.bpchar', 'pg_catalog.bool']::pg_catalog.regtype[]))
    then '' else $s$ set datestyle = 'ISO, YMD' set timezone = 'UTC' set intervalstyle = 'postgres' set extra_float_digits = 1 set bytea_output = 'hex' set quote_all_identifiers = off$s$ end
  from pg_catalog.pg_attribute a where a.attrelid = p_base and a.attname = any (p_columns)
$$;

-- A column's value as text. Not by a cast where the type is somebody's own: casts are functions, theirs, and would run as
-- meshaudit_owner. The output function that format() calls is in C.
create function meshaudit_private.as_text(p_base oid, p_column name, p_operand text) returns text
language sql stable set search_path = ''
as $$
  select pg_catalog.format(case when t.typnamespace = 'pg_catalog'::pg_catalog.regnamespace then '%s::pg_catalog.text'
    else 'pg_catalog.format(''%%s'', %s)' end, p_operand)
  from pg_catalog.pg_attribute a join pg_catalog.pg_type t on t.oid = a.atttypid
  where a.attrelid = p_base and a.attname = p_column
$$;

-- Whether a column's text is short whatever is in it, and so needs no bound.
create function meshaudit_private.is_short(p_base oid, p_column name) returns boolean
language sql stable set search_path = ''
as $$
  select a.atttypid = any (array['pg_catalog.uuid', 'pg_catalog.int2', 'pg_catalog.int4', 'pg_catalog.int8', 'pg_catalog.bool']::pg_catalog.regtype[])
  from pg_catalog.pg_attribute a where a.attrelid = p_base and a.attname = p_column
$$;

-- What names a row in the log: its key, or the keys as a row. Of the format, %1$I is the column, %2$s its number and %3$s
-- that of its parameter in reveal_functions().
create function meshaudit_private.id_expression(p_base oid, p_keys name[], p_operand text) returns text
language sql stable set search_path = ''
as $$
  select case pg_catalog.cardinality(p_keys)
    when 1 then pg_catalog.format(case when meshaudit_private.is_short(p_base, p_keys[1]) then '%s' else 'meshaudit_private.bounded(%s)' end,
      meshaudit_private.as_text(p_base, p_keys[1], pg_catalog.format(p_operand, p_keys[1], 1, 2)))
    else pg_catalog.format('meshaudit_private.bounded(row(%s)::pg_catalog.text)',
      (select pg_catalog.string_agg(pg_catalog.format(p_operand, k, n, n + 1), ', ' order by n) from unnest(p_keys) with ordinality u (k, n))) end
$$;

create function meshaudit_private.scope_expression(p_base oid, p_scope name, p_operand text) returns text
language sql stable set search_path = ''
as $$
  select case when p_scope is null then '''''::pg_catalog.text'
    else pg_catalog.format(case when meshaudit_private.is_short(p_base, p_scope) then 'coalesce(%s, '''')' else 'coalesce(pg_catalog."left"(%s, 255), '''')' end,
      meshaudit_private.as_text(p_base, p_scope, pg_catalog.format(p_operand, p_scope))) end
$$;

-- Nobody's temporary type has that name, nor one of another schema.
create function meshaudit_private.type_name(p_base oid, p_column name) returns text
language sql stable set search_path = ''
as $$
  select pg_catalog.format('%I.%I', n.nspname, t.typname)
  from pg_catalog.pg_attribute a join pg_catalog.pg_type t on t.oid = a.atttypid
  join pg_catalog.pg_namespace n on n.oid = t.typnamespace
  where a.attrelid = p_base and a.attname = p_column
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

-- Records, then hands out the value that it was given. It reads nothing: a query of somebody's table runs code of its
-- owner (policies, constraints, domains), and what runs in here runs as meshaudit_owner.
create function meshaudit_private.reveal_functions(p meshaudit_private.protections) returns setof text
language sql stable set search_path = ''
as $$
  select pg_catalog.format(
    'create function meshaudit_private.%1$I(%2$s) returns %3$s language plpgsql stable parallel unsafe security definer cost 100000 set search_path = ''''%4$s as %5$L; grant execute on function meshaudit_private.%1$I(%2$s) to public; comment on function meshaudit_private.%1$I(%2$s) is %6$L',
    'reveal_' || p.protection_id || '_' || a.attnum,
    -- value, key, scope, xmin, ctid, role
    pg_catalog.format('%s, %s, %s, pg_catalog.xid, pg_catalog.tid, pg_catalog.name', t.name, k.types,
      coalesce(meshaudit_private.type_name(p.base, p.scope_column), 'pg_catalog.text')),
    t.name, meshaudit_private.text_settings(p.base, p.key_columns || p.scope_column),
    pg_catalog.format($body$
declare
  v_id constant pg_catalog.text := %3$s;
  v_key pg_catalog.bytea;
  v_mark pg_catalog.text;
begin
  if $%1$s is null then
    raise exception 'a protected row is gone' using errcode = '40001', hint = 'Try again.';
  end if;
  -- not all in one: with parameters in it, that would be planned anew each time
  select k.key into v_key from meshaudit_private.reveal_key k;
  if v_key is null then
    raise exception 'this snapshot is older than the protection of the table' using errcode = '40001', hint = 'Try again in a new transaction.';
  end if;
  v_mark := meshaudit_private.reveal_mark(v_key, %2$L, v_id, $%5$s, $%1$s, $%6$s);
  if pg_catalog.current_setting('meshaudit.revealed', true) is distinct from v_mark then
    %4$s
    perform pg_catalog.set_config('meshaudit.revealed', v_mark, true);
  end if;
  return $1;
end
$body$, k.count + 4, pg_catalog.format('%I.%I', p.schema_name, p.table_name),
      meshaudit_private.id_expression(p.base, p.key_columns, '$%3$s'), meshaudit_private.recording(p, 'read', 'v_id',
        meshaudit_private.scope_expression(p.base, p.scope_column, '$' || k.count + 2), '$' || k.count + 5), k.count + 3, k.count + 5),
    'Reveals a secret column of a protected row, and records it.')
  from pg_catalog.pg_attribute a,
    lateral (select meshaudit_private.type_name(p.base, a.attname) as name) t,
    lateral (
      select pg_catalog.string_agg(meshaudit_private.type_name(p.base, n.name), ', ' order by n.i) as types, pg_catalog.count(*) as count
      from unnest(p.key_columns) with ordinality n (name, i)) k
  where a.attrelid = p.base and a.attname = any (p.secret_columns)
  order by a.attnum
$$;

-- The table's values, with meshaudit_owner's right to read them and nobody's code as meshaudit_owner: a view lends its
-- owner's privileges alone. k1, k2, … are the keys, c4 is the secret column of that number. Who can name it, and is not
-- above row security, gets nothing: pg_read_all_data has USAGE everywhere. (All others are asked no more than that: this is once a row.)
create function meshaudit_private.values_view(p meshaudit_private.protections) returns text
language sql stable set search_path = ''
as $$
  select pg_catalog.format(
    'create view meshaudit_private.%1$I as select b.ctid as at, b.xmin as since, %2$s as scope, %3$s, %4$s from meshaudit_protected.%5$I b where case when pg_catalog.pg_has_role(session_user, ''pg_read_all_data'', ''MEMBER'') or pg_catalog.pg_has_role(current_user, ''pg_read_all_data'', ''MEMBER'') then (select meshaudit_private.%6$I(current_user)) else true end; grant select on meshaudit_private.%1$I to public; comment on view meshaudit_private.%1$I is %7$L',
    'values_' || p.protection_id,
    case when p.scope_column is null then 'null::pg_catalog.text' else pg_catalog.format('b.%I', p.scope_column) end,
    (select pg_catalog.string_agg(pg_catalog.format('b.%I as k%s', k, i), ', ' order by i) from unnest(p.key_columns) with ordinality u (k, i)),
    (select pg_catalog.string_agg(pg_catalog.format('b.%I as c%s', a.attname, a.attnum), ', ' order by a.attnum)
      from pg_catalog.pg_attribute a where a.attrelid = p.base and a.attname = any (p.secret_columns)),
    p.table_name, 'look_' || p.protection_id, 'Where a protected table''s view finds the secret values; nobody can name it.')
$$;

-- Row security acts on who reads values_N as on its owner: so who could name it must be above row security.
create function meshaudit_private.look_function(p meshaudit_private.protections) returns text
language sql stable set search_path = ''
as $$
  select pg_catalog.format(
    'create function meshaudit_private.%1$I(pg_catalog.name) returns boolean language plpgsql stable parallel unsafe security definer set search_path = '''' as %2$L; grant execute on function meshaudit_private.%1$I(pg_catalog.name) to public; comment on function meshaudit_private.%1$I(pg_catalog.name) is %3$L',
    'look_' || p.protection_id, pg_catalog.format($body$
begin
  -- the login, and who owns the SECURITY DEFINER function that it is in
  if exists (
      select from pg_catalog.pg_roles r where r.rolname in (session_user, $1) and not (r.rolsuper or r.rolbypassrls)
        and pg_catalog.pg_has_role(r.oid, 'pg_read_all_data', 'MEMBER'))
    and (select c.relrowsecurity from meshaudit_private.protections p join pg_catalog.pg_class c on c.oid = p.base
      where p.protection_id = %s) then
    perform meshaudit_private.refuse('MA001', 'a member of pg_read_all_data without BYPASSRLS gets no values of a protected table with row security',
      'Revoke pg_read_all_data from the login, or alter role … bypassrls.');
  end if;
  return true;
end
$body$, p.protection_id), 'Raises MA001 for who could name the values of a table past its row security.')
$$;

-- In the view of a protected table, a secret column: one call, so that a query of other columns has nothing to lock or to
-- check but the view and the table.
create function meshaudit_private.revealed(p meshaudit_private.protections, p_attnum int) returns text
language sql stable set search_path = ''
as $$
  select pg_catalog.format('meshaudit_private.%I(%s, b.ctid, current_user)', 'see_' || p.protection_id || '_' || p_attnum,
    (select pg_catalog.string_agg(pg_catalog.format('b.%I', k), ', ' order by i) from unnest(p.key_columns) with ordinality u (k, i)))
$$;

-- Functions of key, ctid and role that look for a value. In standard SQL: the caller, as whom they run, can name nothing here.
-- see_ finds the value of the row that the query sees, being STABLE. After FOR UPDATE has waited, that is a newer one: latest_
-- looks with a snapshot of its own (by newest_, which is VOLATILE; else the view would not be flat) for the version that the
-- query has met, since one that came after it has passed no policy in the caller's name.
create function meshaudit_private.look_functions(p meshaudit_private.protections) returns setof text
language sql stable set search_path = ''
as $$
  select pg_catalog.format(
    'create function meshaudit_private.%1$I(%2$s, pg_catalog.tid, pg_catalog.name) returns %3$s language sql %4$s parallel unsafe cost 100000 return %5$s; grant execute on function meshaudit_private.%1$I(%2$s, pg_catalog.tid, pg_catalog.name) to public; comment on function meshaudit_private.%1$I(%2$s, pg_catalog.tid, pg_catalog.name) is %6$L',
    f.prefix || x.suffix, k.types, meshaudit_private.type_name(p.base, a.attname), f.volatility,
    pg_catalog.format(f.body, x.suffix, x.arguments, x.reveal, x.source), f.what)
  from pg_catalog.pg_attribute a,
    (values
      (1, 'newest_', 'volatile', '(select %3$s from %4$s)', 'Reveals a secret column of the newest version of a protected row, and records it.'),
      (2, 'latest_', 'stable', 'meshaudit_private.newest_%1$s(%2$s)', 'newest_, to be called in a query.'),
      (3, 'see_', 'stable', '(select case when v.at is null then meshaudit_private.latest_%1$s(%2$s) else %3$s end from %4$s)',
        'A secret column of a protected table''s view: reveals the value of a row, and records it.')
    ) f (n, prefix, volatility, body, what),
    lateral (
      select pg_catalog.string_agg(meshaudit_private.type_name(p.base, n.name), ', ' order by n.i) as types,
        pg_catalog.string_agg('$' || n.i, ', ' order by n.i) as arguments, pg_catalog.count(*) as count
      from unnest(p.key_columns) with ordinality n (name, i)) k,
    lateral (select
      pg_catalog.concat(p.protection_id, '_', a.attnum) as suffix,
      pg_catalog.format('%s, $%s, $%s', k.arguments, k.count + 1, k.count + 2) as arguments,
      pg_catalog.format('meshaudit_private.reveal_%1$s_%2$s(v.c%2$s, %3$s, v.scope, v.since, v.at, $%4$s)',
        p.protection_id, a.attnum, k.arguments, k.count + 2) as reveal,
      pg_catalog.format('(select) one left join meshaudit_private.values_%s v on v.at operator(pg_catalog.=) $%s and %s',
        p.protection_id, k.count + 1, meshaudit_private.key_condition(p.base, 'v.k%2$s', '$%2$s')) as source) x
  where a.attrelid = p.base and a.attname = any (p.secret_columns)
  order by f.n, a.attnum
$$;

comment on function meshaudit_private.text_settings(oid, name[]) is 'SET clauses that make the text of those columns the same in every session; none where it is.';
comment on function meshaudit_private.as_text(oid, name, text) is 'The expression for a column''s value as text.';
comment on function meshaudit_private.type_name(oid, name) is 'A column''s type, with its schema.';
comment on function meshaudit_private.values_view(meshaudit_private.protections) is 'The statement that makes the view of the values.';
comment on function meshaudit_private.revealed(meshaudit_private.protections, int) is 'The expression for a secret column.';
comment on function meshaudit_private.look_functions(meshaudit_private.protections) is 'Statements that make the functions which look for values.';
comment on function meshaudit_private.look_function(meshaudit_private.protections) is 'The statement that makes the function which keeps readers of all data from the values.';
comment on function meshaudit_private.id_expression(oid, name[], text) is 'The expression that names a row in the log.';
comment on function meshaudit_private.key_condition(oid, text, text) is 'The condition that finds a row by its key.';
comment on function meshaudit_private.is_short(oid, name) is 'Whether a column''s text is always short.';
comment on function meshaudit_private.scope_expression(oid, name, text) is 'The expression for a row''s scope.';
comment on function meshaudit_private.reveal_functions(meshaudit_private.protections) is 'Statements that make the functions which reveal.';
