-- The INSTEAD OF triggers of a protected table's view, as text. They run as the caller, so that privileges, row security
-- and WITH CHECK of the table act as before; and without a search_path of their own, because the table's own triggers
-- and policies run under the caller's, as before. All that they name is qualified.
--
-- DELETE has none: Postgres passes it on to the table by itself, as it does for simple views.

-- The columns that a caller can write; keys of kind: 'plain', 'identity', 'generated'.
create function meshaudit_private.columns_of(p_base oid)
returns table (name name, num int, kind text, type text)
language sql stable set search_path = ''
as $$
  select a.attname, a.attnum, case when a.attgenerated <> '' then 'generated' when a.attidentity <> '' then 'identity' else 'plain' end,
    pg_catalog.format_type(a.atttypid, a.atttypmod)
  from pg_catalog.pg_attribute a
  where a.attrelid = p_base and a.attnum > 0 and not a.attisdropped
  order by a.attnum
$$;

-- Whether a trigger can make the row as stored differ from what was given: then RETURNING asks the table for all of it.
create function meshaudit_private.is_rewritten(p_base oid, p_event int) returns boolean
language sql stable set search_path = ''
as $$
  select exists (  -- row-level (1), before (2), insert (4) or update (16)
    select from pg_catalog.pg_trigger t
    where t.tgrelid in (select r from meshaudit_private.relations_of(p_base) r) and not t.tgisinternal
      and t.tgtype & 3 = 3 and t.tgtype & p_event <> 0)
$$;

-- A statement that stores NEW, asking for columns of some kinds. A subtransaction, at ten times the cost, only for who may insert but
-- perhaps not see what was stored.
create function meshaudit_private.asking(p meshaudit_private.protections, p_store text, p_asked text[]) returns text
language sql stable set search_path = ''
as $$
  select case when v.names is null then pg_catalog.format(p_store, '', '') || ';' else pg_catalog.format(
      'if not pg_catalog.row_security_active(%1$L::pg_catalog.regclass) and %2$s then %3$s; else begin %3$s; exception when insufficient_privilege then %4$s; end; end if;',
      v.base, v.visible, pg_catalog.format(p_store, ' returning ' || v.names, ' into ' || v.variables), pg_catalog.format(p_store, '', '')) end
  from (
    select b.base,
      pg_catalog.string_agg(pg_catalog.quote_ident(c.name), ', ' order by c.num) as names,
      pg_catalog.string_agg('new.' || pg_catalog.quote_ident(c.name), ', ' order by c.num) as variables,
      pg_catalog.string_agg(pg_catalog.format('pg_catalog.has_column_privilege(%L::pg_catalog.regclass, %L, ''SELECT'')', b.base, c.name), ' and ') as visible
    from (select pg_catalog.format('meshaudit_protected.%I', p.table_name) as base) b
    left join meshaudit_private.columns_of(p.base) c on c.kind = any (p_asked) and c.name <> all (p.secret_columns)
    group by b.base) v
$$;

-- That INSERT of the columns of some kinds; for format(): what is asked, and where to.
create function meshaudit_private.storing(p meshaudit_private.protections, p_kinds text[]) returns text
language sql stable set search_path = ''
as $$
  select pg_catalog.replace(pg_catalog.format('insert into meshaudit_protected.%I %s', p.table_name, coalesce(pg_catalog.format('(%s) values (%s)',
      nullif(pg_catalog.string_agg(pg_catalog.quote_ident(c.name), ', ' order by c.num), ''), pg_catalog.string_agg(pg_catalog.format('new.%I', c.name), ', ' order by c.num)),
      'default values')), '%', '%%') || '%1$s%2$s'
  from meshaudit_private.columns_of(p.base) c where c.kind = any (p_kinds)
$$;

create function meshaudit_private.insert_body(p meshaudit_private.protections) returns text
language plpgsql stable set search_path = ''
as $$
declare
  v pg_catalog.record;
  v_rewritten constant pg_catalog.text[] := case when meshaudit_private.is_rewritten(p.base, 4)
    then array['plain', 'identity', 'generated'] else array['generated'] end;
  v_given constant pg_catalog.text := meshaudit_private.asking(p, meshaudit_private.storing(p, array['plain', 'identity']), v_rewritten);
  v_base constant pg_catalog.text := pg_catalog.format('meshaudit_protected.%I', p.table_name);
begin
  select
    pg_catalog.string_agg(pg_catalog.format('new.%I is null', c.name), ' and ') filter (where c.kind = 'identity') as no_identity,
    pg_catalog.string_agg(pg_catalog.format('case when %s pg_catalog.has_column_privilege(%L, %L, ''INSERT'') then %L end',
      case c.kind when 'identity' then pg_catalog.format('new.%I is not null and', c.name) else '' end, v_base, c.name, c.name), ', ')
      filter (where c.kind <> 'generated') as allowed,
    pg_catalog.string_agg(pg_catalog.format('if new.%1$I is not null then raise exception ''cannot insert a non-DEFAULT value into column "%%"'', %1$L using errcode = ''428C9'', detail = pg_catalog.format(''Column "%%s" is a generated column.'', %1$L); end if;', c.name), ' ')
      filter (where c.kind = 'generated') as generated
    into v
    from meshaudit_private.columns_of(p.base) c;
  return pg_catalog.format($body$
declare
  v_columns pg_catalog.text[];
  v_store pg_catalog.text;
  v_count pg_catalog.int8;
begin
  %4$s
  if not pg_catalog.has_table_privilege(%1$L::pg_catalog.regclass, 'INSERT') then
    -- who may insert some of the columns
    v_columns := pg_catalog.array_remove(array[%2$s]::pg_catalog.text[], null);
    v_store := 'insert into ' operator(pg_catalog.||) %1$L operator(pg_catalog.||) ' ('
      operator(pg_catalog.||) (select pg_catalog.string_agg(pg_catalog.quote_ident(c), ', ') from pg_catalog.unnest(v_columns) c)
      operator(pg_catalog.||) ') values ('
      operator(pg_catalog.||) (select pg_catalog.string_agg('$1.' operator(pg_catalog.||) pg_catalog.quote_ident(c), ', ') from pg_catalog.unnest(v_columns) c)
      operator(pg_catalog.||) ')';
    %5$s
  else
    %3$s
  end if;
  get diagnostics v_count = row_count;
  if v_count operator(pg_catalog.=) 0 then
    return null;  -- a trigger of the table would not have it
  end if;
  return new;
end
$body$, v_base, v.allowed,
    case when v.no_identity is null then v_given else pg_catalog.format('if %s then %s else %s end if;', v.no_identity,
      meshaudit_private.asking(p, meshaudit_private.storing(p, array['plain']), v_rewritten || array['identity']), v_given) end,
    v.generated, meshaudit_private.asking(p, 'execute v_store operator(pg_catalog.||) %1$L%2$s using new', v_rewritten || array['identity']));
end
$$;

-- The row must still be as the statement saw it, since nobody can evaluate its WHERE again: else a job that two workers
-- claim would be claimed twice.
create function meshaudit_private.unchanged(p meshaudit_private.protections, p_row text) returns text
language sql stable set search_path = ''
as $$
  select pg_catalog.format('%s and row(%s)::pg_catalog.record operator(pg_catalog.*=) row(%s)::pg_catalog.record',
    meshaudit_private.key_condition(p.base, 'b.%I', p_row || '.%1$I'),
    pg_catalog.string_agg(pg_catalog.format('b.%I', c.name), ', ' order by c.num),
    pg_catalog.string_agg(pg_catalog.format('%s.%I', p_row, c.name), ', ' order by c.num))
  from meshaudit_private.columns_of(p.base) c where c.name <> all (p.secret_columns)
$$;

-- An UPDATE that meets a row twice has changed it itself: as on a table, the first counts, and the second is skipped. What
-- tells is that the version is of a transaction in progress, which then is ours. It could be an AFTER trigger's work too, which on a table runs
-- when the statement is through, and would undo what is skipped here: so where there is one, nothing is. (What a BEFORE
-- trigger or a function in the query has changed, a table refuses with 27000.)
create function meshaudit_private.not_found_body(p meshaudit_private.protections) returns text
language sql stable set search_path = ''
as $$
  select pg_catalog.format($body$if v_count operator(pg_catalog.=) 0 then
    -- out of row security's reach, deleted, or changed by somebody else
    perform from meshaudit_protected.%1$I b where %2$s;
    if not found then
      select case when pg_catalog.age(b.xmin) operator(pg_catalog.<=) 0 then
          pg_catalog.pg_xact_status((pg_catalog.pg_current_xact_id()::pg_catalog.text::pg_catalog.int8
            operator(pg_catalog.-) pg_catalog.age(b.xmin))::pg_catalog.text::pg_catalog.xid8) operator(pg_catalog.=) 'in progress'
        else false end into v_ours
        from meshaudit_protected.%1$I b where %3$s;
      if found and v_ours is not true then
        raise exception 'could not serialize access due to concurrent update' using errcode = '40001',
          hint = 'Another transaction has changed the row since this statement saw it: try again.';
      elsif v_ours and exists (
          select from pg_catalog.pg_trigger t
          where t.tgrelid operator(pg_catalog.=) any (array(select r.relid::pg_catalog.oid from pg_catalog.pg_partition_tree(%4$L) r union all select %4$L::pg_catalog.regclass))
            and t.tgtype operator(pg_catalog.&) 2::pg_catalog.int2 operator(pg_catalog.=) 0 and t.tgtype operator(pg_catalog.&) 16::pg_catalog.int2 operator(pg_catalog.<>) 0
            and t.tgname operator(pg_catalog.<>) 'meshaudit_update'
            -- a key of the table to itself may cascade
            and (not t.tgisinternal or t.tgconstrrelid operator(pg_catalog.=) t.tgrelid)) then
        raise exception 'the row was already changed by this statement, or by a trigger in it' using errcode = '27000',
          hint = 'On a protected table that has AFTER triggers an UPDATE must meet each row once, and one that no trigger has changed.';
      end if;
    end if;
    return null;
  end if;$body$, p.table_name, meshaudit_private.unchanged(p, 'old'), meshaudit_private.key_condition(p.base, 'b.%I', 'old.%1$I'),
    pg_catalog.format('meshaudit_protected.%I', p.table_name))
$$;

create function meshaudit_private.update_body(p meshaudit_private.protections) returns text
language plpgsql stable set search_path = ''
as $$
declare
  v pg_catalog.record;
  v_base constant pg_catalog.text := pg_catalog.format('meshaudit_protected.%I', p.table_name);
  v_shown pg_catalog.text := '';
  v_into pg_catalog.text := '';
begin
  select
    pg_catalog.string_agg(pg_catalog.format('%1$I = new.%1$I', c.name), ', ' order by c.num) filter (where c.kind = 'plain' and not c.secret) as plain,
    pg_catalog.string_agg(pg_catalog.format('%1$I = new.%1$I', c.name), ', ' order by c.num) filter (where c.kind = 'plain') as everything,
    pg_catalog.string_agg(pg_catalog.format('row(new.%1$I)::pg_catalog.record operator(pg_catalog.*=) row(old.%1$I)::pg_catalog.record', c.name), ' and ') filter (where c.secret) as same_secrets,
    -- what one static statement cannot say: identity and generated columns, one of several secrets
    pg_catalog.string_agg(pg_catalog.format(' and row(new.%1$I)::pg_catalog.record operator(pg_catalog.*=) row(old.%1$I)::pg_catalog.record', c.name), '')
      filter (where c.kind <> 'plain' or c.secret and c.secrets > 1) as same_special,
    pg_catalog.string_agg(pg_catalog.format('case when row(new.%1$I)::pg_catalog.record operator(pg_catalog.*<>) row(old.%1$I)::pg_catalog.record then %2$L end',
      c.name, pg_catalog.format('%1$I = $1.%1$I', c.name)), ', ') as changed,
    pg_catalog.string_agg(pg_catalog.format('when pg_catalog.has_column_privilege(%L, %L, ''UPDATE'') then %L', v_base, c.name,
      pg_catalog.format('%1$I = $1.%1$I', c.name)), ' ' order by c.secret, c.num) filter (where c.kind = 'plain') as touch
    into v
    from (select n.*, n.name = any (p.secret_columns) as secret, pg_catalog.cardinality(p.secret_columns) as secrets
      from meshaudit_private.columns_of(p.base) n) c;
  if meshaudit_private.is_rewritten(p.base, 16) or exists (select from meshaudit_private.columns_of(p.base) n where n.kind = 'generated') then
    select ' returning ' || pg_catalog.string_agg(pg_catalog.format('b.%I', n.name), ', ' order by n.num),
        ' into ' || pg_catalog.string_agg(pg_catalog.format('new.%I', n.name), ', ' order by n.num)
      into v_shown, v_into
      from meshaudit_private.columns_of(p.base) n where n.name <> all (p.secret_columns);
  end if;
  return pg_catalog.format($body$
declare
  v_set pg_catalog.text;
  v_count pg_catalog.int8;
  v_ours pg_catalog.bool;
begin
  if %1$s and pg_catalog.has_table_privilege(%2$L::pg_catalog.regclass, 'UPDATE')%3$s then
    if %4$s then
      update %2$s b set %5$s where %6$s%7$s;
    else
      update %2$s b set %8$s where %6$s%7$s;
    end if;
  else
    -- no more than what has changed: the caller may update only some columns, or triggers watch some
    v_set := pg_catalog.array_to_string(array[%9$s], ', ');
    if v_set operator(pg_catalog.=) '' then
      v_set := case %10$s end;
    end if;
    execute %11$L operator(pg_catalog.||) v_set operator(pg_catalog.||) %12$L%13$s using new, old;
  end if;
  get diagnostics v_count = row_count;
  %14$s
  return new;
end
$body$,
    case when exists (select from pg_catalog.pg_trigger t where t.tgrelid = p.base and pg_catalog.array_length(t.tgattr::pg_catalog.int2[], 1) > 0)
      then 'false' else 'true' end,
    v_base, coalesce(v.same_special, ''), v.same_secrets, coalesce(v.plain, v.everything), meshaudit_private.unchanged(p, 'old'), v_shown || v_into,
    v.everything, v.changed, v.touch, pg_catalog.format('update %s b set ', v_base),
    ' where ' || meshaudit_private.unchanged(p, '$2') || v_shown, v_into, meshaudit_private.not_found_body(p));
end
$$;

create function meshaudit_private.view_functions(p meshaudit_private.protections) returns setof text
language sql stable set search_path = ''
as $$
  select pg_catalog.format(
    'create function meshaudit_private.%1$I() returns trigger language plpgsql volatile as %2$L; grant execute on function meshaudit_private.%1$I() to public; comment on function meshaudit_private.%1$I() is %3$L',
    v.verb || '_' || p.protection_id, v.body, pg_catalog.format('Passes an %s of the view on to the protected table, as the caller.', pg_catalog.upper(v.verb)))
  from (values ('insert', meshaudit_private.insert_body(p)), ('update', meshaudit_private.update_body(p))) v (verb, body)
$$;

-- What is called where something is written.
create function meshaudit_private.write_functions(p meshaudit_private.protections) returns setof text
language sql stable set search_path = ''
as $$
  select meshaudit_private.writes_function(p)
  union all select meshaudit_private.row_function(p) where meshaudit_private.by_row(p)
  union all select meshaudit_private.view_functions(p)
$$;

comment on function meshaudit_private.columns_of(oid) is 'A table''s columns: plain, identity or generated, and their type.';
comment on function meshaudit_private.is_rewritten(oid, int) is 'Whether a trigger can make a row as stored differ from what was given; p_event 4 insert, 16 update.';
comment on function meshaudit_private.asking(meshaudit_private.protections, text, text[]) is 'Statements that store NEW and ask for columns of p_asked as stored.';
comment on function meshaudit_private.storing(meshaudit_private.protections, text[]) is 'The INSERT of NEW''s columns of p_kinds.';
comment on function meshaudit_private.insert_body(meshaudit_private.protections) is 'Body of the INSTEAD OF INSERT trigger.';
comment on function meshaudit_private.unchanged(meshaudit_private.protections, text) is 'The condition that a row is still as the statement saw it.';
comment on function meshaudit_private.not_found_body(meshaudit_private.protections) is 'What follows where no row was met.';
comment on function meshaudit_private.update_body(meshaudit_private.protections) is 'Body of the INSTEAD OF UPDATE trigger.';
comment on function meshaudit_private.view_functions(meshaudit_private.protections) is 'Statements that make the functions of the view''s triggers.';
comment on function meshaudit_private.write_functions(meshaudit_private.protections) is 'Statements that make all functions that triggers of a protected table call.';
