-- The journal's part of status().

create function meshaudit_private.journal_status() returns table ("check" text, ok boolean, detail text)
language plpgsql volatile set search_path = ''
as $$
declare
  j meshaudit_private.journal;
  p meshaudit_private.journal_progress;
  s pg_catalog.record;
  v_lag pg_catalog.numeric;
  v_kept pg_catalog.numeric;
  v_age pg_catalog.interval;
begin
  -- the slot before how far the sealer is: it follows behind
  select r.slot_name, r.wal_status, r.restart_lsn, r.confirmed_flush_lsn, r.database, r.safe_wal_size into s
    from pg_catalog.pg_replication_slots r
    where r.slot_name = (select k.slot_name from meshaudit_private.journal k);
  select * into j from meshaudit_private.journal;
  select * into p from meshaudit_private.journal_progress;
  "check" := 'journal';
  ok := j.armed;
  detail := case when j.armed then pg_catalog.format('armed since %s',
      pg_catalog.to_char(j.armed_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI "UTC"'))
    else 'not armed: a rolled-back access leaves no trace, READ ONLY transactions get no secret, and who reads the log in either goes unrecorded; run meshaudit.arm_journal()' end;
  return next;
  if not j.armed then
    return;
  end if;

  "check" := 'journal slot';
  ok := meshaudit_private.slot_works(j.slot_name)
    and (s.confirmed_flush_lsn <= p.sealed_lsn or pg_catalog.current_setting('transaction_isolation') <> 'read committed');
  detail := case when ok then pg_catalog.format('%s, %s', j.slot_name, coalesce(s.wal_status, 'reserved'))
    else pg_catalog.format('%s is gone or has lost records after %s; run meshaudit.arm_journal(), which records the gap', j.slot_name, p.sealed_lsn) end;
  return next;

  v_lag := pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_flush_lsn(), p.sealed_lsn);
  v_age := pg_catalog.clock_timestamp() - p.sealed_at;
  "check" := 'journal lag';
  ok := v_lag < 67108864 and v_age < '60 seconds'::pg_catalog.interval;
  detail := pg_catalog.format('%s bytes, last sealed %s seconds ago (bounds: 64 MB, 60 s)', v_lag,
    pg_catalog.round(extract(epoch from v_age), 1))
    || case when ok then '' else '; is meshaudit seal --follow running?' end;
  return next;

  v_kept := pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_flush_lsn(), s.restart_lsn);
  "check" := 'journal wal kept';
  ok := coalesce(v_kept < 1073741824, false) and coalesce(s.safe_wal_size > v_kept, true);
  detail := coalesce(v_kept || ' bytes kept for the slot (bound: 1 GB)'
    || coalesce('; ' || s.safe_wal_size || ' more, and it may be lost (max_slot_wal_keep_size)', ''),
    'none: the slot is gone or has lost records');
  return next;

  "check" := 'journal records refused';
  ok := p.forged + p.garbage + p.replayed = 0;
  detail := pg_catalog.format('%s forged, %s garbage, %s replayed', p.forged, p.garbage, p.replayed);
  return next;
end
$$;
comment on function meshaudit_private.journal_status() is 'The journal''s checks for meshaudit.status().';
