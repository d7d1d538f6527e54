-- Recording the reads and writes of a protected table.

-- A query may evaluate a view's column several times for one row, and a row may have several secret columns: the last row
-- is remembered for the statement in a setting, as this mark. A MAC, since a session can set any setting: who brings back
-- an old mark gets what that very statement has recorded already. The row's version is in it: a statement can last for
-- hours, and meet a value that others have changed meanwhile. So is who calls: several statements that are sent as one have one time.
create function meshaudit_private.reveal_mark(p_key bytea, p_secret_table text, p_secret_id text, p_xmin xid, p_ctid tid, p_role name)
returns text
language sql stable
return pg_catalog.encode(pg_catalog.sha256(p_key || pg_catalog.timestamptz_send(pg_catalog.transaction_timestamp())
  || pg_catalog.timestamptz_send(pg_catalog.statement_timestamp()) || pg_catalog.int4send(pg_catalog.pg_backend_pid())
  || pg_catalog.xidsend(p_xmin) || pg_catalog.tidsend(p_ctid)
  || pg_catalog.convert_to(pg_catalog.concat_ws(' ', p_secret_table, p_secret_id, p_role,
    pg_catalog.octet_length(pg_catalog.current_setting('request.jwt.claims', true)),
    pg_catalog.octet_length(pg_catalog.current_setting('request.headers', true)), pg_catalog.current_setting('request.jwt.claims', true),
    pg_catalog.current_setting('request.headers', true), pg_catalog.current_setting('meshaudit.actor', true)), 'UTF8')), 'hex');

-- Records the rows that a statement has written.
create function meshaudit_private.record_writes(
  p_operation text, p_secret_ids text[], p_secret_table text, p_scopes text[], p_role text, p_journal boolean
) returns void
language plpgsql volatile set search_path = ''
as $$
begin
  if p_secret_ids is null then
    return;
  elsif p_journal then
    perform meshaudit_private.journal_accesses(p_operation, p_secret_ids, p_secret_table, p_scopes, p_role);
  else
    perform meshaudit_private.record_accesses(p_operation, 'granted', p_secret_ids, p_secret_table, p_scopes, p_role);
  end if;
end
$$;

-- The plpgsql statement that records one access, given as expressions: record_access(), written out, since calling it and
-- record_writes() costs as much as the record. A write is in no READ ONLY transaction. What reveals is STABLE: it may not
-- INSERT itself, and what it would see of the journal may be old.
create function meshaudit_private.recording(
  p meshaudit_private.protections, p_operation text, p_id text, p_scope text, p_role text
) returns text
language sql stable set search_path = ''
as $$
  select pg_catalog.format(
    case when p.mode = 'journal' then
      'if not meshaudit_private.journal_access(%1$L, ''granted'', %2$s, %3$L, %4$s, %5$s) then perform meshaudit_private.refuse_unrecorded(); end if;'
    when p_operation = 'read' then 'perform meshaudit_private.record_access(%1$L, %2$s, %3$L, %4$s, %5$s, false);'
    else
      'insert into meshaudit_private.ledger (secret_id, access_type, operation, outcome, secret_table, scope, db_role) values (%2$s, ''write'', %1$L, ''granted'', %3$L, %4$s, %5$s);'
    end, p_operation, p_id, pg_catalog.format('%I.%I', p.schema_name, p.table_name), p_scope, p_role)
$$;

-- Inside of a trigger's definer function nobody knows who is current_user outside.
create function meshaudit_private.role_outside() returns text
language sql immutable
return 'coalesce(nullif(pg_catalog.current_setting(''role''), ''none''), session_user::pg_catalog.text)';

-- Those that record one written row; in journal mode in one query, where nothing has to be looked at.
create function meshaudit_private.recording_row(p meshaudit_private.protections, p_operation text, p_id text, p_scope text) returns text
language sql stable set search_path = ''
as $$
  select case when p.mode <> 'journal' then meshaudit_private.recording(p, p_operation, p_id, p_scope, r.role)
    else pg_catalog.format('select meshaudit_private.emit(meshaudit_private.message(x.message_head, x.inner_key, x.outer_key, x.payload), false) into v_lsn
      from (
        select j.message_head, j.inner_key, j.outer_key, meshaudit_private.plain_payload(%1$L, ''granted'', %2$s, %3$L, %4$s, %5$s) as payload
        from meshaudit_private.journal j
        where meshaudit_private.journal_healthy(j.healthy_until, j.healthy_since, j.healthy_lsn) and meshaudit_private.is_plain_session() offset 0) x;
    if v_lsn is null then
      %6$s
    end if;', p_operation, p_id, pg_catalog.format('%I.%I', p.schema_name, p.table_name), p_scope, r.role,
      meshaudit_private.recording(p, p_operation, p_id, p_scope, r.role)) end
  from meshaudit_private.role_outside() r (role)
$$;

-- Those that record the rows of v_ids and v_scopes; one row goes the short way, in journal mode with what was seen of the journal
-- beside those.
create function meshaudit_private.recording_all(p meshaudit_private.protections, p_operation text) returns text
language sql stable set search_path = ''
as $$
  select case when p.mode = 'journal' then pg_catalog.format('if v_ready and pg_catalog.cardinality(v_ids) = 1 then
      v_payload := meshaudit_private.plain_payload(%L, ''granted'', v_ids[1], %L, v_scopes[1], %s);
      if meshaudit_private.emit(meshaudit_private.message(v_head, v_inner, v_outer, v_payload), false) is null then
        perform meshaudit_private.refuse_unrecorded();
      end if;
    els', p_operation, t.name, r.role) else '' end
  || pg_catalog.format('if pg_catalog.cardinality(v_ids) = 1 then
      %s
    else
      perform meshaudit_private.record_writes(%L, v_ids, %L, v_scopes, %s, %L);
    end if;',
    meshaudit_private.recording(p, p_operation, 'v_ids[1]', 'v_scopes[1]', r.role), p_operation, t.name, r.role, p.mode = 'journal')
  from meshaudit_private.role_outside() r (role),
    (select pg_catalog.format('%I.%I', p.schema_name, p.table_name)) t (name)
$$;

comment on function meshaudit_private.recording(meshaudit_private.protections, text, text, text, text) is
  'The statement that records one access to a protected table.';
comment on function meshaudit_private.role_outside() is 'The expression for the role that wrote.';
comment on function meshaudit_private.recording_row(meshaudit_private.protections, text, text, text) is
  'Statements that record one row that was written.';
comment on function meshaudit_private.recording_all(meshaudit_private.protections, text) is
  'Statements that record the rows that a statement has written.';
comment on function meshaudit_private.reveal_mark(bytea, text, text, xid, tid, name) is
  'What is remembered of a row that is revealed: a MAC over transaction, statement, backend, caller, row and its version.';
comment on function meshaudit_private.record_writes(text, text[], text, text[], text, boolean) is
  'Records the writes of a statement on a protected table. Raises MA002 if it cannot.';
