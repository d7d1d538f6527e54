-- The functions that record the writes of a protected table, as text. They belong to meshaudit_owner, and are called by triggers
-- on the table itself, ENABLE ALWAYS: whoever writes, by whatever way.

-- Whether each row that is inserted or updated is recorded by itself, since the view's triggers write one at a time. Not where it is
-- partitioned: there a row's triggers take a row that moves for one that is deleted and one that is inserted.
create function meshaudit_private.by_row(p meshaudit_private.protections) returns boolean
language sql stable set search_path = ''
as $$
  select c.relkind = 'r' from pg_catalog.pg_class c where c.oid = p.base
$$;

-- A trigger's function that records; who can name it cannot have it record tables of his own.
create function meshaudit_private.recording_function(p meshaudit_private.protections, p_prefix text, p_variables text, p_body text, p_what text)
returns text
language sql stable set search_path = ''
as $$
  select pg_catalog.format(
    'create function meshaudit_private.%1$I() returns trigger language plpgsql volatile security definer set search_path = ''''%2$s as %3$L; grant execute on function meshaudit_private.%1$I() to public; comment on function meshaudit_private.%1$I() is %4$L',
    p_prefix || p.protection_id, meshaudit_private.text_settings(p.base, p.key_columns || p.scope_column), pg_catalog.format($body$
declare
  %1$s
begin
  if tg_table_schema <> 'meshaudit_protected' or tg_table_name <> all (%2$L::pg_catalog.name[]) then
    raise exception 'the audit log takes entries only from meshaudit''s own functions' using errcode = 'MA003',
      hint = 'This function is for the protected table alone, by the name that it had then.';
  end if;
  %3$s
  return null;
end
$body$, p_variables, array(select u ->> 'name' from pg_catalog.jsonb_array_elements(p.saved) u), p_body), p_what)
$$;

create function meshaudit_private.row_function(p meshaudit_private.protections) returns text
language sql stable set search_path = ''
as $$
  select meshaudit_private.recording_function(p, 'row_', 'v_lsn pg_catalog.pg_lsn;', pg_catalog.format($body$if tg_op = 'INSERT' then
    %5$s
  else
    -- by their bytes: the columns' own collations could say that abc is ABC
    if row(%1$s, %2$s)::pg_catalog.record operator(pg_catalog.*<>) row(%3$s, %4$s)::pg_catalog.record then
      -- both, where the key or the scope has changed
      %6$s
    end if;
    %7$s
  end if;$body$, n.id, n.scope, o.id, o.scope, meshaudit_private.recording_row(p, 'create', n.id, n.scope),
      meshaudit_private.recording_row(p, 'update', o.id, o.scope), meshaudit_private.recording_row(p, 'update', n.id, n.scope)),
    'Records that a row was written.')
  from (select meshaudit_private.id_expression(p.base, p.key_columns, 'new.%1$I'), meshaudit_private.scope_expression(p.base, p.scope_column, 'new.%1$I')) n (id, scope),
    (select meshaudit_private.id_expression(p.base, p.key_columns, 'old.%1$I'), meshaudit_private.scope_expression(p.base, p.scope_column, 'old.%1$I')) o (id, scope)
$$;

-- One query tells what was written and, in journal mode, how to sign it.
create function meshaudit_private.writes_function(p meshaudit_private.protections) returns text
language sql stable set search_path = ''
as $$
  select meshaudit_private.recording_function(p, 'writes_',
    'v_ids pg_catalog.text[];
  v_scopes pg_catalog.text[];
  v_old_ids pg_catalog.text[];
  v_old_scopes pg_catalog.text[];
  v_ready pg_catalog.bool;
  v_head pg_catalog.bytea;
  v_inner pg_catalog.bytea;
  v_outer pg_catalog.bytea;
  v_payload pg_catalog.bytea;',
    pg_catalog.format($body$if tg_op = 'DELETE' then
    select o.ids, o.scopes%5$s into v_ids, v_scopes%6$s
      from (select pg_catalog.array_agg(%3$s) as ids, pg_catalog.array_agg(%4$s) as scopes from old_rows) o%7$s;
    %10$s
  elsif tg_op = 'TRUNCATE' then
    v_ids := array['all rows (TRUNCATE)'];
    v_scopes := array['*'];
    %10$s
  elsif tg_op = 'INSERT' then
    select n.ids, n.scopes%5$s into v_ids, v_scopes%6$s
      from (select pg_catalog.array_agg(%1$s) as ids, pg_catalog.array_agg(%2$s) as scopes from new_rows) n%7$s;
    %8$s
  else
    select n.ids, n.scopes, o.ids, o.scopes%5$s into v_ids, v_scopes, v_old_ids, v_old_scopes%6$s
      from (select pg_catalog.array_agg(%1$s) as ids, pg_catalog.array_agg(%2$s) as scopes from new_rows) n,
        (select pg_catalog.array_agg(%3$s) as ids, pg_catalog.array_agg(%4$s) as scopes from old_rows) o%7$s;
    if v_ids is distinct from v_old_ids or v_scopes is distinct from v_old_scopes then
      -- both, where the key or the scope has changed
      select pg_catalog.array_agg(u.id), pg_catalog.array_agg(u.scope) into v_ids, v_scopes from (
        select * from unnest(v_old_ids, v_old_scopes) union select * from unnest(v_ids, v_scopes)) u (id, scope);
    end if;
    %9$s
  end if;$body$,
      meshaudit_private.id_expression(p.base, p.key_columns, 'new_rows.%1$I'), meshaudit_private.scope_expression(p.base, p.scope_column, 'new_rows.%1$I'),
      meshaudit_private.id_expression(p.base, p.key_columns, 'old_rows.%1$I'), meshaudit_private.scope_expression(p.base, p.scope_column, 'old_rows.%1$I'),
      j.looks, j.variables, j.source,
      meshaudit_private.recording_all(p, 'create'), meshaudit_private.recording_all(p, 'update'), meshaudit_private.recording_all(p, 'delete')),
    'Records the writes of a statement.')
  from (values (true, ', meshaudit_private.journal_healthy(j.healthy_until, j.healthy_since, j.healthy_lsn) and meshaudit_private.is_plain_session(), j.message_head, j.inner_key, j.outer_key',
      ', v_ready, v_head, v_inner, v_outer', ' left join meshaudit_private.journal j on true'), (false, '', '', '')) j (journal, looks, variables, source)
  where j.journal = (p.mode = 'journal')
$$;

comment on function meshaudit_private.writes_function(meshaudit_private.protections) is 'The statement that makes the function which records writes.';
comment on function meshaudit_private.by_row(meshaudit_private.protections) is 'Whether inserts and updates of that table are recorded row by row.';
comment on function meshaudit_private.recording_function(meshaudit_private.protections, text, text, text, text) is 'The statement that makes a trigger''s function which records.';
comment on function meshaudit_private.row_function(meshaudit_private.protections) is 'The statement that makes the function which records one written row.';
