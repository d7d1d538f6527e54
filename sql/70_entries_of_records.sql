-- From records of the journal to entries of the ledger.

create function meshaudit_private.time_of(p_at text) returns timestamptz
language sql stable
return '2000-01-01 00:00:00+00'::pg_catalog.timestamptz
  + ('x' || p_at)::pg_catalog."bit"(64)::pg_catalog.int8 * '1 microsecond'::pg_catalog.interval;

-- A record as an entry, not chained yet.
create function meshaudit_private.entry_of(r meshaudit_private.journal_record, p_access_id uuid, p_outcome text)
returns meshaudit_private.ledger
language sql volatile
return row(
    pg_catalog.nextval('meshaudit_private.ledger_id'), r.secret_id,
    case r.operation when 'read' then 'read' else 'write' end,
    meshaudit_private.time_of(r.at), r.user_identity, r.ip_address, r.operation, p_outcome, r.secret_table, r.scope,
    r.identity_source, r.claimed_identity, r.db_user, r.db_role, r.application_name, r.user_agent, r.request_id,
    p_access_id, -1, 0::pg_catalog.int8, ''::pg_catalog.bytea, ''::pg_catalog.bytea)::meshaudit_private.ledger;

-- Chains entries that say themselves who called, and adds them: the first takes a lane, the others follow it.
create function meshaudit_private.append_entries(p_entries meshaudit_private.ledger[]) returns void
language plpgsql volatile set search_path = ''
as $$
declare
  v_count constant pg_catalog.int4 := coalesce(pg_catalog.cardinality(p_entries), 0);
  v_rows meshaudit_private.ledger[];
  e meshaudit_private.ledger;
  v_lane pg_catalog.int4;
  v_seq pg_catalog.int8;
  v_hash pg_catalog.bytea;
begin
  if v_count = 0 then
    return;
  end if;
  e := p_entries[1];
  insert into meshaudit_private.ledger select e.* returning lane, seq, hash into v_lane, v_seq, v_hash;
  for i in 2 .. v_count loop
    e := p_entries[i];
    v_seq := v_seq + 1;
    e.lane := v_lane;
    e.seq := v_seq;
    e.prev_hash := v_hash;
    v_hash := meshaudit_private.entry_hash(v_hash, v_lane, v_seq, meshaudit_private.entry_tail(
      e.id, e.secret_id, e.access_type, e."timestamp", e.user_identity, e.ip_address, e.operation, e.outcome,
      e.secret_table, e.scope, e.identity_source, e.claimed_identity, e.db_user, e.db_role, e.application_name,
      e.user_agent, e.request_id, e.access_id));
    e.hash := v_hash;
    v_rows[i - 1] := e;
  end loop;
  if v_count > 1 then
    insert into meshaudit_private.ledger select r.* from unnest(v_rows) r;
    update meshaudit_private.lane_heads
      set seq = v_seq, prev_hash = e.prev_hash, hash = v_hash where lane = v_lane;
  end if;
end
$$;

comment on function meshaudit_private.time_of(text) is 'The time that a record gives in hex.';
comment on function meshaudit_private.entry_of(meshaudit_private.journal_record, uuid, text) is 'A record as an entry, not chained.';
comment on function meshaudit_private.append_entries(meshaudit_private.ledger[]) is 'Chains entries and adds them to the ledger.';
