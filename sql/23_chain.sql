-- The trigger that chains: no row enters the ledger unchained, and none but by the functions of this schema.
--
-- A row with lane 0 or -1 (there are no such lanes) is chained here; -1 is what seal() brings, which says itself who
-- called and is in the journal already. A row that has a lane comes from record_accesses() (30_record.sql) or seal(),
-- which have chained their batch.
--
-- No WHEN clause: it would cost 6 % of an access, since each INSERT parses it anew.

create function meshaudit_private.chain_entry() returns trigger
language plpgsql volatile set search_path = ''
as $$
declare
  v_caller meshaudit_private.caller;
  v_link meshaudit_private.link;
  v_lane constant pg_catalog.int4 := pg_catalog.pg_backend_pid() % 512 + 1;
  v_changed constant pg_catalog.bool := pg_catalog.pg_current_xact_id_if_assigned() is not null;
  v_at pg_catalog.tid;
  v_sealed pg_catalog.bool;  -- what seal() brings is in the journal already
  v_armed pg_catalog.bool;
  v_required pg_catalog.bool;
  v_head pg_catalog.bytea;
  v_inner pg_catalog.bytea;
  v_outer pg_catalog.bytea;
  v_flush pg_catalog.bool;
  v_payload pg_catalog.bytea;
begin
  if new.lane = 0 and not meshaudit_private.is_plain_session() then
    v_caller := meshaudit_private.session_caller();
    new.user_identity := v_caller.user_identity;
    new.identity_source := v_caller.identity_source;
    new.claimed_identity := v_caller.claimed_identity;
    new.ip_address := v_caller.ip_address;
    new.user_agent := v_caller.user_agent;
    new.request_id := v_caller.request_id;
    if meshaudit_private.erasable() then
      if v_caller.identity_source = 'jwt' then
        new.user_identity := meshaudit_private.pseudonym_of(v_caller.user_identity);
      end if;
      new.claimed_identity := meshaudit_private.pseudonym_of(v_caller.claimed_identity);
    end if;
  end if;

  -- The ordinary case, written out for speed, in one condition, since plpgsql prepares each anew in each transaction: the
  -- first or second entry of a transaction whose own lane is free.
  -- Inside a SECURITY DEFINER function current_user is the owner, while SET ROLE shows in "role" and a login in
  -- session_user: whoever became the owner by hand differs there.
  if new.lane = 0 and current_user = 'meshaudit_owner' and session_user <> 'meshaudit_owner'
     and pg_catalog.current_setting('role') <> 'meshaudit_owner'
     and (not v_changed or coalesce(pg_catalog.current_setting('meshaudit.lane_at', true), '') = '')
     and pg_catalog.current_setting('transaction_isolation') = 'read committed'
     and pg_catalog.pg_client_encoding() = 'UTF8'
     and pg_catalog.pg_try_advisory_xact_lock(1296389185, v_lane) then
    update meshaudit_private.lane_heads h
      set seq = h.seq + 1, prev_hash = h.hash,
          hash = pg_catalog.sha256(h.hash || pg_catalog.substr(pg_catalog.record_send(row(
            1, h.lane, h.seq + 1, new.id, new.secret_id, new.access_type, new."timestamp", new.user_identity,
            new.ip_address, new.operation, new.outcome, new.secret_table, new.scope, new.identity_source,
            new.claimed_identity, new.db_user, new.db_role, new.application_name, new.user_agent, new.request_id,
            new.access_id)), 5))
      where h.lane = v_lane and h.xmax = 0  -- touched by a transaction, open or undone: take_lane() knows more
      returning h.lane, h.seq, h.prev_hash, h.hash, h.ctid
      into new.lane, new.seq, new.prev_hash, new.hash, v_at;
    if v_changed and new.lane > 0 then
      perform pg_catalog.set_config('meshaudit.lane_at', pg_catalog.concat(v_lane, ' ', v_at), true);
    end if;
  else
    if current_user <> 'meshaudit_owner' or session_user = 'meshaudit_owner'
       or pg_catalog.current_setting('role') = 'meshaudit_owner' then
      raise exception 'the audit log takes entries only from meshaudit''s own functions'
        using errcode = 'MA003', hint = 'Use meshaudit.read_secret(), write_secret() or a protected table; each records itself.';
    end if;
    if new.lane > 0 then
      return new;
    end if;
    v_sealed := new.lane < 0;
  end if;

  if new.lane <= 0 or new.lane is null then
    v_link := meshaudit_private.take_lane(meshaudit_private.entry_tail(
      new.id, new.secret_id, new.access_type, new."timestamp", new.user_identity, new.ip_address, new.operation,
      new.outcome, new.secret_table, new.scope, new.identity_source, new.claimed_identity, new.db_user, new.db_role,
      new.application_name, new.user_agent, new.request_id, new.access_id));
    new.lane := v_link.lane;
    new.seq := v_link.seq;
    new.prev_hash := v_link.prev_hash;
    new.hash := v_link.hash;
  end if;

  if v_sealed or not meshaudit_private.journal_used() then
    return new;
  end if;
  select k.armed, k.required, k.message_head, k.inner_key, k.outer_key, k.flush and new.operation = 'read'
    into v_armed, v_required, v_head, v_inner, v_outer, v_flush
    from meshaudit_private.journal k;
  if v_required then
    perform meshaudit_private.require_journal();
  end if;
  -- in the journal too, so that it comes back when its transaction is rolled back
  if v_armed then
    v_payload := pg_catalog.convert_to(row(
      pg_catalog.pg_current_wal_insert_lsn(), new.access_id, pg_catalog.pg_current_xact_id(), new.lane, new.seq,
      pg_catalog.encode(pg_catalog.timestamptz_send(new."timestamp"), 'hex'), new.operation, new.outcome, new.secret_id,
      new.secret_table, new.scope, coalesce(v_caller.user_identity, new.user_identity), new.identity_source,
      coalesce(v_caller.claimed_identity, new.claimed_identity), new.db_user, new.db_role, new.ip_address, new.application_name,
      new.user_agent, new.request_id, null, null, null, null)::pg_catalog.text, 'UTF8');
    if meshaudit_private.emit(meshaudit_private.message(v_head, v_inner, v_outer, v_payload), v_flush) is null then
      perform meshaudit_private.refuse_unrecorded();
    end if;
  end if;
  return new;
end
$$;

create trigger chain_entry before insert on meshaudit_private.ledger
  for each row execute function meshaudit_private.chain_entry();
alter table meshaudit_private.ledger enable always trigger chain_entry;

comment on function meshaudit_private.chain_entry() is
  'Chains each new entry to its lane''s last one, with the caller''s identity behind a gateway; raises MA003 for rows that meshaudit''s functions did not make.';
