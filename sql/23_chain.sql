-- The trigger that chains: no row enters the ledger unchained, and none but by the functions of this schema.
--
-- A batch (record_accesses) marks its rows with lane -1: the first takes a lane, the others go on from
-- meshaudit.batch, which only the trigger writes while the batch's INSERT runs and no user's code does.
--
-- No SET clause: it would cost 2 % of an access. This runs inside SECURITY DEFINER functions, with search_path empty;
-- the first check is all that ever runs outside of them.

create function meshaudit_private.chain_entry() returns trigger
language plpgsql volatile
as $$
declare
  v_caller meshaudit_private.caller;
  v_tail pg_catalog.bytea;
  v_link meshaudit_private.link;
  v_lane pg_catalog.int4;
  v_batch pg_catalog.text;
begin
  -- inside a SECURITY DEFINER function current_user is the owner, while SET ROLE shows in "role" and a login in
  -- session_user: whoever became the owner by hand differs there
  if current_user operator(pg_catalog.<>) 'meshaudit_owner'::pg_catalog.name
     or session_user operator(pg_catalog.=) 'meshaudit_owner'::pg_catalog.name
     or pg_catalog.current_setting('role') operator(pg_catalog.=) 'meshaudit_owner'::pg_catalog.text then
    raise exception 'the audit log takes entries only from meshaudit''s own functions'
      using errcode = 'MA003', hint = 'Use meshaudit.read_secret(), write_secret() or a protected table; each records itself.';
  end if;

  if pg_catalog.current_setting('request.jwt.claims', true) <> '' or pg_catalog.current_setting('request.headers', true) <> '' then
    v_caller := meshaudit_private.request_caller(new.claimed_identity);
    new.user_identity := v_caller.user_identity;
    new.identity_source := v_caller.identity_source;
    new.claimed_identity := v_caller.claimed_identity;
    new.ip_address := v_caller.ip_address;
    new.user_agent := v_caller.user_agent;
    new.request_id := v_caller.request_id;
  end if;

  -- the ordinary case, written out for speed: the first entry of a transaction whose own lane is free
  v_lane := pg_catalog.pg_backend_pid() % 256;
  if new.lane = 0
     and pg_catalog.pg_current_xact_id_if_assigned() is null
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
      where h.lane = v_lane
      returning h.lane, h.seq, h.prev_hash, h.hash
      into new.lane, new.seq, new.prev_hash, new.hash;
    if found then
      return new;
    end if;
    new.lane := 0;
  end if;

  v_tail := meshaudit_private.entry_tail(
    new.id, new.secret_id, new.access_type, new."timestamp", new.user_identity, new.ip_address, new.operation,
    new.outcome, new.secret_table, new.scope, new.identity_source, new.claimed_identity, new.db_user, new.db_role,
    new.application_name, new.user_agent, new.request_id, new.access_id);
  if new.lane = 0 then
    v_link := meshaudit_private.take_lane(v_tail);
  else
    v_batch := pg_catalog.current_setting('meshaudit.batch', true);
    if v_batch = 'first' then
      v_link := meshaudit_private.take_lane(v_tail);
    else
      v_link.lane := pg_catalog.split_part(v_batch, ' ', 1);
      v_link.seq := pg_catalog.split_part(v_batch, ' ', 2)::pg_catalog.int8 + 1;
      v_link.prev_hash := pg_catalog.decode(pg_catalog.split_part(v_batch, ' ', 3), 'hex');
      v_link.hash := meshaudit_private.entry_hash(v_link.prev_hash, v_link.lane, v_link.seq, v_tail);
    end if;
    perform pg_catalog.set_config('meshaudit.batch',
      pg_catalog.concat(v_link.lane, ' ', v_link.seq, ' ', pg_catalog.encode(v_link.hash, 'hex')), true);
  end if;

  new.lane := v_link.lane;
  new.seq := v_link.seq;
  new.prev_hash := v_link.prev_hash;
  new.hash := v_link.hash;
  return new;
end
$$;

create trigger chain_entry before insert on meshaudit_private.ledger
  for each row execute function meshaudit_private.chain_entry();
alter table meshaudit_private.ledger enable always trigger chain_entry;

comment on function meshaudit_private.chain_entry() is
  'Chains each new entry to its lane''s last one, with the caller''s identity behind a gateway; raises MA003 for rows that meshaudit''s functions did not make.';
