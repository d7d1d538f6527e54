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
  elsif pg_catalog.cardinality(p_secret_ids) = 1 then
    perform meshaudit_private.record_access(p_operation, p_secret_ids[1], p_secret_table, p_scopes[1], v_role, p_journal);
  elsif p_journal then
    perform meshaudit_private.journal_accesses(p_operation, p_secret_ids, p_secret_table, p_scopes, v_role);
  else
    perform meshaudit_private.record_accesses(p_operation, 'granted', p_secret_ids, p_secret_table, p_scopes, v_role);
  end if;
end
$$;

comment on function meshaudit_private.reveal_mark(bytea, text, text, xid, tid) is
  'What is remembered of a row that is revealed: a MAC over transaction, statement, backend, row and its version.';
comment on function meshaudit_private.record_writes(text, text[], text, text[], boolean) is
  'Records the writes of a statement on a protected table. Raises MA002 if it cannot.';
