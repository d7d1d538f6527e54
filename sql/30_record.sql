-- Recording accesses that were granted. (The vault's own reads are written out, for speed: 40_vault_functions.sql.)

-- One: in the journal alone, as it is asked for and as READ ONLY demands, or as one INSERT into the ledger (11_ledger.sql).
create function meshaudit_private.record_access(
  p_operation text, p_secret_id text, p_secret_table text, p_scope text, p_role text, p_journal boolean
) returns void
language plpgsql volatile parallel unsafe set search_path = ''
as $$
begin
  if p_journal or pg_catalog.current_setting('transaction_read_only') = 'on' then
    if not meshaudit_private.journal_access(p_operation, 'granted', p_secret_id, p_secret_table, p_scope, p_role) then
      perform meshaudit_private.refuse_unrecorded();
    end if;
  else
    insert into meshaudit_private.ledger (secret_id, access_type, operation, outcome, secret_table, scope, db_role)
      values (p_secret_id, (case p_operation when 'read' then 'read' else 'write' end), p_operation, 'granted',
        p_secret_table, p_scope, p_role);
  end if;
end
$$;

-- Many at once, in the ledger: the first goes the ordinary way, takes the lane and says who calls. The others are chained
-- to it here and inserted in one statement, because a row trigger costs more than all the rest of an entry. The cost of an
-- entry does not grow with their number. (unnest() gives its rows in order, and nothing here reorders them.)
create function meshaudit_private.record_accesses(
  p_operation text, p_outcome text, p_secret_ids text[], p_secret_table text, p_scopes text[], p_role name
) returns void
language plpgsql volatile set search_path = ''
as $$
declare
  e meshaudit_private.ledger;
  v_count constant pg_catalog.int4 := coalesce(pg_catalog.cardinality(p_secret_ids), 0);
  v_ids pg_catalog.int8[];
  v_times pg_catalog.timestamptz[];
  v_access_ids pg_catalog.uuid[];
  v_bytes pg_catalog.bytea[];
  v_links pg_catalog.bytea[];
  j meshaudit_private.journal;
  c meshaudit_private.caller;
begin
  if v_count = 0 then
    return;
  end if;
  insert into meshaudit_private.ledger (secret_id, access_type, operation, outcome, secret_table, scope, db_role)
    values (p_secret_ids[1], (case p_operation when 'read' then 'read' else 'write' end), p_operation, p_outcome,
      p_secret_table, p_scopes[1], p_role)
    returning * into e;
  if v_count = 1 then
    return;
  end if;

  select pg_catalog.array_agg(b.id), pg_catalog.array_agg(b.at), pg_catalog.array_agg(b.access_id),
      pg_catalog.array_agg(meshaudit_private.entry_head(e.lane, e.seq + b.i) || meshaudit_private.entry_tail(
        b.id, b.secret_id, e.access_type, b.at, e.user_identity, e.ip_address, e.operation, e.outcome,
        e.secret_table, b.scope, e.identity_source, e.claimed_identity, e.db_user, e.db_role, e.application_name,
        e.user_agent, e.request_id, b.access_id))
    into v_ids, v_times, v_access_ids, v_bytes
    from (
      select u.secret_id, u.scope, u.i, pg_catalog.nextval('meshaudit_private.ledger_id') as id,
        pg_catalog.clock_timestamp() as at, pg_catalog.gen_random_uuid() as access_id
      from unnest(p_secret_ids[2:], p_scopes[2:]) with ordinality u (secret_id, scope, i) offset 0) b;
  v_links := meshaudit_private.links(e.hash, v_bytes);

  insert into meshaudit_private.ledger (
      id, secret_id, access_type, "timestamp", user_identity, ip_address, operation, outcome, secret_table, scope,
      identity_source, claimed_identity, db_user, db_role, application_name, user_agent, request_id, access_id,
      lane, seq, prev_hash, hash)
    select b.id, b.secret_id, e.access_type, b.at, e.user_identity, e.ip_address, e.operation, e.outcome,
      e.secret_table, b.scope, e.identity_source, e.claimed_identity, e.db_user, e.db_role, e.application_name,
      e.user_agent, e.request_id, b.access_id, e.lane, e.seq + b.i, b.prev_hash, b.hash
    from unnest(v_ids, p_secret_ids[2:], v_times, p_scopes[2:], v_access_ids, v_links[:v_count - 1], v_links[2:])
      with ordinality b (id, secret_id, at, scope, access_id, prev_hash, hash, i);
  if meshaudit_private.journal_used() then
    select * into j from meshaudit_private.journal;
  end if;
  if j.armed then
    e.seq := e.seq + 1;
    if meshaudit_private.erasable() then
      c := meshaudit_private.session_caller();
      e.user_identity := c.user_identity;
      e.claimed_identity := c.claimed_identity;
    end if;
    perform meshaudit_private.emit_batch(e, pg_catalog.pg_current_xact_id(), p_secret_ids[2:], p_scopes[2:], v_times,
      v_access_ids);
    e.seq := e.seq - 1;
  end if;
  -- ours since the first entry
  update meshaudit_private.lane_heads
    set seq = e.seq + v_count - 1, prev_hash = v_links[v_count - 1], hash = v_links[v_count]
    where lane = e.lane;
end
$$;

comment on function meshaudit_private.record_access(text, text, text, text, text, boolean) is
  'Records one access that was granted. Raises MA002 if it cannot.';
comment on function meshaudit_private.record_accesses(text, text, text[], text, text[], name) is
  'Writes an entry for each secret, in one statement; raises if it cannot. p_secret_ids and p_scopes run in parallel; p_role is who called.';
