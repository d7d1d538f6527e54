-- Recording many accesses at once. (One access is one INSERT into the ledger: 11_ledger.sql.)

-- One INSERT for all, and one move of the lane, so that the cost of an entry does not grow with their number.
-- p_secret_ids and p_scopes run in parallel. Raises, or the entries are there.
create function meshaudit_private.record_accesses(
  p_operation text, p_outcome text, p_secret_ids text[], p_secret_table text, p_scopes text[]
) returns void
language plpgsql volatile set search_path = ''
as $$
declare
  v_batch pg_catalog.text;
begin
  perform pg_catalog.set_config('meshaudit.batch', 'first', true);
  insert into meshaudit_private.ledger (secret_id, access_type, operation, outcome, secret_table, scope, lane)
    select s.secret_id, (case p_operation when 'read' then 'read' else 'write' end), p_operation, p_outcome,
      p_secret_table, s.scope, -1
    from unnest(p_secret_ids, p_scopes) s (secret_id, scope);

  v_batch := pg_catalog.current_setting('meshaudit.batch', true);
  if v_batch <> 'first' then
    -- the lane is ours since the batch's first entry
    update meshaudit_private.lane_heads
      set seq = pg_catalog.split_part(v_batch, ' ', 2)::pg_catalog.int8,
          hash = pg_catalog.decode(pg_catalog.split_part(v_batch, ' ', 3), 'hex')
      where lane = pg_catalog.split_part(v_batch, ' ', 1)::pg_catalog.int4;
  end if;
  perform pg_catalog.set_config('meshaudit.batch', '', true);
end
$$;

comment on function meshaudit_private.record_accesses(text, text, text[], text, text[]) is
  'Writes an entry for each secret, in one statement; raises if it cannot.';
