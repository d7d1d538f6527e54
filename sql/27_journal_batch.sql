-- Many accesses in the journal at once: a record holds up to 500, and only the last record is waited for.
--
-- The key is in no parameter of a statement: debug_print_plan, which anybody may set, shows those to the client.

-- e says what they have in common, and where the first of them stands in the ledger (lane null: nowhere).
create function meshaudit_private.emit_batch(
  e meshaudit_private.ledger, p_xid xid8, p_secret_ids text[], p_scopes text[], p_times timestamptz[], p_access_ids uuid[]
) returns void
language plpgsql volatile set search_path = ''
as $$
declare
  j meshaudit_private.journal;
  v_count constant pg_catalog.int4 := pg_catalog.cardinality(p_secret_ids);
  v_ats constant pg_catalog.text[] := array(
    select pg_catalog.encode(pg_catalog.timestamptz_send(t.at), 'hex') from unnest(p_times) with ordinality t (at, i) order by t.i);
  v_last pg_catalog.int4;
  v_payload pg_catalog.bytea;
begin
  select * into j from meshaudit_private.journal;
  for i in 1 .. v_count by 500 loop
    v_last := least(i + 499, v_count);
    v_payload := pg_catalog.convert_to(row(
        pg_catalog.pg_current_wal_insert_lsn(), coalesce(p_access_ids[i]::pg_catalog.text, pg_catalog.pg_backend_pid()::pg_catalog.text), p_xid, e.lane, e.seq + i - 1, v_ats[i], e.operation,
        e.outcome, null, e.secret_table, null, e.user_identity, e.identity_source, e.claimed_identity, e.db_user,
        e.db_role, e.ip_address, e.application_name, e.user_agent, e.request_id,
        p_secret_ids[i:v_last], p_scopes[i:v_last], v_ats[i:v_last], p_access_ids[i:v_last]
      )::pg_catalog.text, 'UTF8');
    if meshaudit_private.emit(
      meshaudit_private.message(j.message_head, j.inner_key, j.outer_key, v_payload), j.flush and v_last = v_count and e.operation = 'read') is null then
      perform meshaudit_private.refuse_unrecorded();
    end if;
  end loop;
end
$$;
comment on function meshaudit_private.emit_batch(
  meshaudit_private.ledger, xid8, text[], text[], timestamptz[], uuid[]
) is 'Emits records of many accesses.';

-- journal_access() for many that were granted; refuses where it would return false.
create function meshaudit_private.journal_accesses(
  p_operation text, p_secret_ids text[], p_secret_table text, p_scopes text[], p_role text
) returns void
language plpgsql volatile set search_path = ''
as $$
declare
  j meshaudit_private.journal;
  c meshaudit_private.caller;
  e meshaudit_private.ledger;
  v_times constant pg_catalog.timestamptz[] := array(select pg_catalog.clock_timestamp() from unnest(p_secret_ids));
begin
  select * into j from meshaudit_private.journal;
  perform meshaudit_private.require_working(j.armed, j.slot_name);
  if not j.armed then
    perform meshaudit_private.refuse_unrecorded();
  end if;
  c := meshaudit_private.session_caller();
  e.operation := p_operation;
  e.outcome := 'granted';
  e.secret_table := p_secret_table;
  e.user_identity := c.user_identity;
  e.identity_source := c.identity_source;
  e.claimed_identity := c.claimed_identity;
  e.db_user := session_user;
  e.db_role := p_role;
  e.ip_address := c.ip_address;
  e.application_name := nullif(pg_catalog.current_setting('application_name'), '');
  e.user_agent := c.user_agent;
  e.request_id := c.request_id;
  perform meshaudit_private.emit_batch(
    e, meshaudit_private.deciding_xid(), p_secret_ids, p_scopes, v_times, null);
end
$$;
comment on function meshaudit_private.journal_accesses(text, text[], text, text[], text) is
  'Records many accesses in the journal; raises MA002 if that cannot be done.';
