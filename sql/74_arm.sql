-- Arming and disarming the journal; each is an entry itself. The functions that touch the slot run as their caller, who
-- needs REPLICATION, and are parsed when made (no USAGE on our schema).

-- What must be known before a slot is made, because no slot can be made after a write.
create function meshaudit_private.slot_to_make() returns name
language plpgsql stable security definer set search_path = ''
as $$
declare
  v_slot pg_catalog.name;
begin
  if pg_catalog.current_setting('wal_level') <> 'logical' then
    raise exception 'the journal needs wal_level = logical, this server has %', pg_catalog.current_setting('wal_level')
      using errcode = 'MA002', hint = 'Set wal_level = logical and restart the server.';
  elsif not exists (select from pg_catalog.pg_publication p where p.pubname = 'meshaudit_journal') then
    raise exception 'the publication meshaudit_journal is gone' using errcode = 'MA002',
      hint = 'Run: create publication meshaudit_journal (it needs no tables).';
  end if;
  -- slots are named for the whole server; a copy of this database must not take the original's
  v_slot := (select 'meshaudit_' || d.oid from pg_catalog.pg_database d where d.datname = pg_catalog.current_database());
  if pg_catalog.pg_current_xact_id_if_assigned() is not null
    and not exists (select from pg_catalog.pg_replication_slots s where s.slot_name = v_slot) then
    raise exception 'the journal cannot be armed in a transaction that has written' using errcode = 'MA005',
      hint = 'Run select meshaudit.arm_journal() by itself. What is sent together, or run together in an editor, is one transaction.';
  end if;
  return v_slot;
end
$$;
revoke all on function meshaudit_private.slot_to_make() from public;

-- Whether there is a slot that goes on where the sealer stopped.
create function meshaudit_private.slot_goes_on() returns boolean
language sql stable security definer set search_path = ''
as $$
  select meshaudit_private.slot_works(j.slot_name, p.sealed_lsn)
  from meshaudit_private.journal j, meshaudit_private.journal_progress p
$$;
revoke all on function meshaudit_private.slot_goes_on() from public;

-- Notes that the slot was made at p_lsn: a new key, and an entry for what may have been lost before.
create function meshaudit_private.note_armed(p_slot name, p_lsn pg_lsn, p_fresh boolean) returns text
-- a plan would show the key to the client
language plpgsql volatile security definer set search_path = '' set debug_print_plan = off
as $$
declare
  j meshaudit_private.journal;
  k meshaudit_private.journal_keys;
  v_sealed pg_catalog.pg_lsn;
  v_inner pg_catalog.bytea := ''::pg_catalog.bytea;
  v_outer pg_catalog.bytea := ''::pg_catalog.bytea;
  v_key constant pg_catalog.bytea := pg_catalog.decode(pg_catalog.replace(
    pg_catalog.concat(pg_catalog.gen_random_uuid(), pg_catalog.gen_random_uuid(), pg_catalog.gen_random_uuid(),
      pg_catalog.gen_random_uuid()), '-', ''), 'hex');
begin
  select p.sealed_lsn into v_sealed from meshaudit_private.journal_progress p for update;
  select * into j from meshaudit_private.journal for update;
  if not p_fresh and j.armed then
    return 'armed already';
  end if;
  -- 64 bytes, as long as a block of SHA-256, of which 488 bits are random
  for i in 0 .. 63 loop
    v_inner := v_inner || pg_catalog.set_byte(pg_catalog.decode('00', 'hex'), 0, pg_catalog.get_byte(v_key, i) # 54);
    v_outer := v_outer || pg_catalog.set_byte(pg_catalog.decode('00', 'hex'), 0, pg_catalog.get_byte(v_key, i) # 92);
  end loop;
  insert into meshaudit_private.journal_keys (inner_key, outer_key) values (v_inner, v_outer) returning * into k;
  update meshaudit_private.journal set
    armed = true, slot_name = p_slot, armed_at = pg_catalog.clock_timestamp(), key_id = k.key_id,
    message_head = '\x01'::pg_catalog.bytea || pg_catalog.int4send(k.key_id), inner_key = k.inner_key, outer_key = k.outer_key, healthy_until = pg_catalog.clock_timestamp() + '10 seconds'::pg_catalog.interval,
    healthy_since = pg_catalog.pg_postmaster_start_time(), healthy_lsn = meshaudit_private.safe_lsn(p_slot)
    where singleton;
  update meshaudit_private.journal_progress set sealed_lsn = p_lsn, sealed_at = pg_catalog.clock_timestamp() where singleton;
  insert into meshaudit_private.ledger (secret_id, access_type, operation, outcome, secret_table, scope)
    values (case when j.armed then pg_catalog.format('gap %s..%s', v_sealed, p_lsn) else pg_catalog.format('armed at %s', p_lsn) end,
      'write', (case when j.armed then 'update' else 'create' end), 'granted', 'meshaudit.journal', '*');
  return case when j.armed then pg_catalog.format('armed anew; records between %s and %s may be missing', v_sealed, p_lsn)
    else 'armed' end;
end
$$;
revoke all on function meshaudit_private.note_armed(name, pg_lsn, boolean) from public;

-- Where pg_cron is in this database, it seals: as the caller, who has what it takes. Says so, or what kept it from it.
create function meshaudit_private.schedule_sealing(p_wanted boolean) returns text
language plpgsql volatile security invoker set search_path = ''
as $$
declare
  v_version constant pg_catalog.text := (select e.extversion from pg_catalog.pg_extension e where e.extname = 'pg_cron');
  -- pg_cron 1.5 can do seconds
  v_schedule constant pg_catalog.text := case
    when v_version ~ '^1[.][0-4]([^0-9]|$)' then '* * * * *' else '1 seconds' end;
begin
  if v_version is null then
    return '';
  end if;
  if p_wanted then
    execute 'select cron.schedule($1, $2, $3)' using 'meshaudit seal', v_schedule, 'select meshaudit.seal()';
    return pg_catalog.format('; pg_cron seals (%s)', v_schedule);
  end if;
  execute 'select cron.unschedule(j.jobid) from cron.job j where j.jobname = $1' using 'meshaudit seal';
  return '';
exception when others then
  return pg_catalog.format('; pg_cron was not told: %s', sqlerrm);
end
$$;
revoke all on function meshaudit_private.schedule_sealing(boolean) from public;

-- Makes the slot; returns where it begins. In a subtransaction (that is what the EXCEPTION is for): a commit that changes the
-- catalogue, and that the new slot skips, has Postgres roll back one of its own, and go on with the resource owner of what is around that:
-- the query that had called it then ended in "snapshot reference is not owned by resource owner TopTransaction".
create function meshaudit_private.make_slot(p_slot name) returns pg_lsn
language plpgsql volatile security invoker set search_path = ''
as $$
begin
  begin
    return (select c.lsn from pg_catalog.pg_create_logical_replication_slot(p_slot, 'pgoutput') c);
  exception when no_data_found then
    raise;
  end;
end
$$;
revoke all on function meshaudit_private.make_slot(name) from public;

create function meshaudit_private.arm() returns text
language sql volatile security invoker
begin atomic
  -- a slot that has lost records is of no more use
  select pg_catalog.pg_drop_replication_slot(s.slot_name) from pg_catalog.pg_replication_slots s
    where s.slot_name = meshaudit_private.slot_to_make() and not meshaudit_private.slot_goes_on();
  with missing as materialized (
    select n from meshaudit_private.slot_to_make() n
    where not exists (select from pg_catalog.pg_replication_slots s where s.slot_name = n)
  ), made as materialized (
    select meshaudit_private.make_slot(m.n) as lsn from missing m
  )
  select n.told || meshaudit_private.schedule_sealing(true)
  from (select meshaudit_private.note_armed(meshaudit_private.slot_to_make(),
    coalesce((select m.lsn from made m), pg_catalog.pg_current_wal_insert_lsn()), exists (select from made)) as told
    offset 0) n;
end;
revoke all on function meshaudit_private.arm() from public;

-- Waits until no transaction is open that has read the journal's state, and keeps others from reading it: who recorded
-- an access in the journal is then sealed before the slot goes. Returns up to where; null if there is nothing to seal.
create function meshaudit_private.begin_disarm() returns pg_lsn
language plpgsql volatile security definer set search_path = '' set lock_timeout = '3s'
as $$
begin
  begin
    perform from meshaudit_private.journal_progress for update;
    lock table meshaudit_private.journal in access exclusive mode;
  exception when lock_not_available then
    raise exception 'transactions that used the journal are still open' using errcode = 'MA002',
      hint = 'Try again when they have ended (pg_stat_activity and pg_prepared_xacts show them).';
  end;
  if not (select j.armed and meshaudit_private.slot_goes_on() from meshaudit_private.journal j) then
    return null;
  end if;
  perform meshaudit_private.flush_wal();
  return pg_catalog.pg_current_wal_flush_lsn();
end
$$;
revoke all on function meshaudit_private.begin_disarm() from public;

create function meshaudit_private.note_disarmed(p_lsn pg_lsn) returns name
language plpgsql volatile security definer set search_path = ''
as $$
declare
  j meshaudit_private.journal;
begin
  select * into j from meshaudit_private.journal for update;
  if (select p.sealed_lsn < p_lsn from meshaudit_private.journal_progress p) then
    raise exception 'the journal is not sealed yet' using errcode = 'MA002',
      hint = 'Run select meshaudit.seal() until it returns 0, then disarm again.';
  end if;
  -- ROLLBACK TO gives the lock up that begin_disarm() waits for. (Who is in the log of another server, whose data came here, is
  -- neither open nor over.)
  if p_lsn is not null and exists (
    select from meshaudit_private.journal_pending p
    where p.xid < pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())
      or exists (select from pg_catalog.pg_locks l where l.transactionid = p.xid::pg_catalog.xid)) then
    raise exception 'transactions that used the journal are still open' using errcode = 'MA002',
      hint = 'Try again when they have ended (pg_stat_activity and pg_prepared_xacts show them).';
  end if;
  if j.armed then
    update meshaudit_private.journal set
      armed = false, key_id = null, message_head = null, inner_key = null, outer_key = null, healthy_until = '-infinity'
      where singleton;
    insert into meshaudit_private.ledger (secret_id, access_type, operation, outcome, secret_table, scope)
      values (pg_catalog.format('disarmed at %s', pg_catalog.pg_current_wal_insert_lsn()), 'write', 'delete', 'granted',
        'meshaudit.journal', '*');
  end if;
  return j.slot_name;
end
$$;
revoke all on function meshaudit_private.note_disarmed(pg_lsn) from public;

create function meshaudit_private.disarm() returns boolean
language sql volatile security invoker
begin atomic
  with begun as materialized (
    select meshaudit_private.begin_disarm() as lsn
  ), sealed as materialized (
    select b.lsn, case when b.lsn is not null then meshaudit_private.seal(100000) end from begun b
  ), noted as materialized (
    select meshaudit_private.note_disarmed(s.lsn) as slot_name from sealed s
  )
  select pg_catalog.count(pg_catalog.pg_drop_replication_slot(s.slot_name)) > 0
  from noted n join pg_catalog.pg_replication_slots s on s.slot_name = n.slot_name
  where meshaudit_private.schedule_sealing(false) is not null;
end;
revoke all on function meshaudit_private.disarm() from public;

create function meshaudit.arm_journal() returns text
language sql volatile security invoker
return meshaudit_private.arm();
revoke all on function meshaudit.arm_journal() from public;
grant execute on function meshaudit.arm_journal() to meshaudit_operator;

create function meshaudit.disarm_journal() returns boolean
language sql volatile security invoker
return meshaudit_private.disarm();
revoke all on function meshaudit.disarm_journal() from public;
grant execute on function meshaudit.disarm_journal() to meshaudit_operator;

grant execute on function meshaudit_private.slot_to_make(), meshaudit_private.slot_works(text, pg_lsn), meshaudit_private.arm(),
  meshaudit_private.slot_goes_on(), meshaudit_private.schedule_sealing(boolean), meshaudit_private.note_armed(name, pg_lsn, boolean), meshaudit_private.disarm(),
  meshaudit_private.begin_disarm(), meshaudit_private.note_disarmed(pg_lsn), meshaudit_private.make_slot(name)
  to meshaudit_operator;

comment on function meshaudit_private.slot_to_make() is 'The slot''s name. Raises MA002 if no slot can be made, MA005 if not in this transaction.';
comment on function meshaudit_private.make_slot(name) is 'Makes a slot of that name; returns where it begins.';
comment on function meshaudit_private.note_armed(name, pg_lsn, boolean) is 'Notes that the slot was made: key, state, entry.';
comment on function meshaudit_private.slot_goes_on() is 'Whether the slot is there, and nobody but the sealer has moved it.';
comment on function meshaudit_private.begin_disarm() is 'Shuts the journal; returns up to where it must be sealed.';
comment on function meshaudit_private.note_disarmed(pg_lsn) is 'Notes that the journal is disarmed; returns the slot''s name.';
comment on function meshaudit_private.schedule_sealing(boolean) is 'Has pg_cron seal, or no more.';
comment on function meshaudit_private.arm() is 'meshaudit.arm_journal().';
comment on function meshaudit_private.disarm() is 'meshaudit.disarm_journal().';
comment on function meshaudit.arm_journal() is
  'Arms the journal: makes its logical slot and a new signing key. Recorded; if an armed journal had lost its slot, as a gap with the LSN range that may be missing. From then on somebody must seal (meshaudit seal --follow), since the slot keeps WAL; where pg_cron is in this database, it is told to. Needs meshaudit_operator and REPLICATION. Raises MA002 if the server cannot, MA005 in a transaction that has written.';
comment on function meshaudit.disarm_journal() is
  'Seals the journal a last time, disarms it and drops its slot. Recorded. Raises MA002 while transactions that used it are open. False if there was no slot. Needs meshaudit_operator and REPLICATION.';
