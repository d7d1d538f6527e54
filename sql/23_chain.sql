-- The trigger that chains: no row enters the ledger unchained, and none but by the functions of this schema.
--
-- A batch (record_accesses) marks its rows with lane -1: the first takes a lane, the others go on from
-- meshaudit.batch, which only the trigger writes while the batch's INSERT runs and no user's code does.

create function meshaudit_private.chain_entry() returns trigger
language plpgsql volatile set search_path = ''
as $$
declare
  v_tail constant pg_catalog.bytea := meshaudit_private.entry_tail(
    new.id, new.secret_id, new.access_type, new."timestamp", new.user_identity, new.ip_address, new.operation,
    new.outcome, new.secret_table, new.scope, new.identity_source, new.claimed_identity, new.db_user, new.db_role,
    new.application_name, new.user_agent, new.request_id, new.access_id);
  v_link meshaudit_private.link;
  v_batch pg_catalog.text;
begin
  -- inside a SECURITY DEFINER function current_user is the owner, while SET ROLE shows in "role" and a login in
  -- session_user: whoever became the owner by hand differs there
  if current_user <> 'meshaudit_owner' or pg_catalog.current_setting('role') = 'meshaudit_owner'
     or session_user = 'meshaudit_owner' then
    raise exception 'the audit log takes entries only from meshaudit''s own functions'
      using errcode = 'MA003', hint = 'Use meshaudit.read_secret(), write_secret() or a protected table; each records itself.';
  end if;

  if new.lane = -1 then
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
  else
    v_link := meshaudit_private.take_lane(v_tail);
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
  'Chains each new entry to its lane''s last one; raises MA003 for rows that meshaudit''s functions did not make.';
