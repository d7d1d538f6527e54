-- Recording the reads and writes of a protected table.

-- A query may evaluate a view's column several times for one row, and a row may have several secret columns: the last row
-- is remembered for the statement in a setting, as this mark. A MAC, since a session can set any setting: who brings back
-- an old mark gets what that very statement has recorded already. The row's version is in it: a statement can last for
-- hours, and meet a value that others have changed meanwhile.
create function meshaudit_private.reveal_mark(p_key bytea, p_secret_table text, p_secret_id text, p_xmin xid, p_ctid tid)
returns text
language sql stable
return pg_catalog.encode(pg_catalog.sha256(p_key || pg_catalog.timestamptz_send(pg_catalog.transaction_timestamp())
  || pg_catalog.timestamptz_send(pg_catalog.statement_timestamp()) || pg_catalog.int4send(pg_catalog.pg_backend_pid())
  || pg_catalog.xidsend(p_xmin) || pg_catalog.tidsend(p_ctid)
  || pg_catalog.convert_to(p_secret_table || ' ' || p_secret_id, 'UTF8')), 'hex');

-- Records that a value is about to be revealed.
create function meshaudit_private.record_reveal(
  p_secret_table text, p_secret_id text, p_mark text, p_scope text, p_role name, p_journal boolean
) returns void
language plpgsql volatile parallel unsafe set search_path = ''
as $$
begin
  if p_journal or pg_catalog.current_setting('transaction_read_only') = 'on' then
    if not meshaudit_private.journal_access('read', 'granted', p_secret_id, p_secret_table, p_scope, p_role) then
      perform meshaudit_private.refuse_unrecorded();
    end if;
  else
    insert into meshaudit_private.ledger (secret_id, operation, outcome, secret_table, scope, db_role)
      values (p_secret_id, 'read', 'granted', p_secret_table, p_scope, p_role);
  end if;
  perform pg_catalog.set_config('meshaudit.revealed', p_mark, true);
end
$$;

create function meshaudit_private.record_writes(
  p_operation text, p_secret_ids text[], p_secret_table text, p_scopes text[], p_journal boolean
) returns void
language plpgsql volatile set search_path = ''
as $$
declare
  -- inside of a trigger's definer function nobody knows who is current_user outside
  v_role constant pg_catalog.text := coalesce(
    nullif(pg_catalog.current_setting('role'), 'none'), session_user::pg_catalog.text);
begin
  if p_secret_ids is null then
    return;
  elsif p_journal and pg_catalog.cardinality(p_secret_ids) = 1 then
    if not meshaudit_private.journal_access(p_operation, 'granted', p_secret_ids[1], p_secret_table, p_scopes[1], v_role) then
      perform meshaudit_private.refuse_unrecorded();
    end if;
  elsif p_journal then
    perform meshaudit_private.journal_accesses(p_operation, p_secret_ids, p_secret_table, p_scopes, v_role);
  elsif pg_catalog.cardinality(p_secret_ids) = 1 then
    insert into meshaudit_private.ledger (secret_id, access_type, operation, outcome, secret_table, scope, db_role)
      values (p_secret_ids[1], 'write', p_operation, 'granted', p_secret_table, p_scopes[1], v_role);
  else
    perform meshaudit_private.record_accesses(p_operation, 'granted', p_secret_ids, p_secret_table, p_scopes, v_role);
  end if;
end
$$;

comment on function meshaudit_private.reveal_mark(bytea, text, text, xid, tid) is
  'What is remembered of a row that is revealed: a MAC over transaction, statement, backend, row and its version.';
comment on function meshaudit_private.record_reveal(text, text, text, text, name, boolean) is
  'Records a read of a protected row, and remembers its mark. Raises MA002 if it cannot.';
comment on function meshaudit_private.record_writes(text, text[], text, text[], boolean) is
  'Records the writes of a statement on a protected table. Raises MA002 if it cannot.';
