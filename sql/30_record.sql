-- Recording: the step between authorizing an access and revealing a value. It raises, or the entry is there.

create function meshaudit_private.record_access(
  p_operation text, p_outcome text, p_secret_id text, p_secret_table text, p_scope text
) returns void
language plpgsql volatile set search_path = ''
as $$
declare
  v_caller constant meshaudit_private.caller := meshaudit_private.current_caller();
begin
  insert into meshaudit_private.ledger (
    secret_id, access_type, "timestamp", user_identity, ip_address, operation, outcome, secret_table, scope,
    identity_source, claimed_identity, db_user, db_role, application_name, user_agent, request_id, access_id,
    lane, seq, prev_hash, hash)
  values (
    p_secret_id, (case p_operation when 'read' then 'read' else 'write' end), pg_catalog.clock_timestamp(),
    v_caller.user_identity, v_caller.ip_address, p_operation, p_outcome, p_secret_table, p_scope,
    v_caller.identity_source, v_caller.claimed_identity, v_caller.db_user, v_caller.db_role,
    v_caller.application_name, v_caller.user_agent, v_caller.request_id, pg_catalog.gen_random_uuid(),
    0, 0, '', '');
end
$$;

-- A batch: one INSERT for all, so that the cost of an entry does not grow with their number.
-- p_secret_ids and p_scopes run in parallel.
create function meshaudit_private.record_accesses(
  p_operation text, p_outcome text, p_secret_ids text[], p_secret_table text, p_scopes text[]
) returns void
language plpgsql volatile set search_path = ''
as $$
declare
  v_caller constant meshaudit_private.caller := meshaudit_private.current_caller();
  v_batch pg_catalog.text;
begin
  perform pg_catalog.set_config('meshaudit.batch', 'first', true);
  insert into meshaudit_private.ledger (
    secret_id, access_type, "timestamp", user_identity, ip_address, operation, outcome, secret_table, scope,
    identity_source, claimed_identity, db_user, db_role, application_name, user_agent, request_id, access_id,
    lane, seq, prev_hash, hash)
  select
    s.secret_id, (case p_operation when 'read' then 'read' else 'write' end), pg_catalog.clock_timestamp(),
    v_caller.user_identity, v_caller.ip_address, p_operation, p_outcome, p_secret_table, s.scope,
    v_caller.identity_source, v_caller.claimed_identity, v_caller.db_user, v_caller.db_role,
    v_caller.application_name, v_caller.user_agent, v_caller.request_id, pg_catalog.gen_random_uuid(),
    -1, 0, '', ''
  from unnest(p_secret_ids, p_scopes) s (secret_id, scope);

  v_batch := pg_catalog.current_setting('meshaudit.batch', true);
  if v_batch <> 'first' then
    -- the lane's row is locked since the batch's first entry
    update meshaudit_private.lane_heads
      set seq = pg_catalog.split_part(v_batch, ' ', 2)::pg_catalog.int8,
          hash = pg_catalog.decode(pg_catalog.split_part(v_batch, ' ', 3), 'hex')
      where lane = pg_catalog.split_part(v_batch, ' ', 1)::pg_catalog.int4;
  end if;
  perform pg_catalog.set_config('meshaudit.batch', '', true);
end
$$;

comment on function meshaudit_private.record_access(text, text, text, text, text) is
  'Writes one entry in the caller''s transaction; raises if it cannot.';
comment on function meshaudit_private.record_accesses(text, text, text[], text, text[]) is
  'Writes an entry for each secret, in one statement; raises if it cannot.';
