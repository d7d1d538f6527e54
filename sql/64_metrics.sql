-- Numbers for monitoring: what is cheap to get, and nothing that is not known. meshaudit serve shows them at /metrics.

-- In the transaction of whoever feeds, which is the sealer: no access takes part in it.
create function meshaudit_private.count_entries() returns trigger
language plpgsql volatile security definer set search_path = ''
as $$
begin
  insert into meshaudit_private.entry_counts as c (access_type, operation, outcome, entries)
    select a.access_type, a.operation, a.outcome, pg_catalog.count(*) from added a
    where a.kind = 'entry' group by a.access_type, a.operation, a.outcome
    on conflict on constraint entry_counts_pkey do update set entries = c.entries + excluded.entries;
  return null;
end
$$;
revoke all on function meshaudit_private.count_entries() from public;
create trigger count_entries after insert on meshaudit.audit_feed
  referencing new table as added for each statement execute function meshaudit_private.count_entries();

create function meshaudit_private.metrics(p_role text) returns table (name text, labels jsonb, value float8)
language plpgsql stable security definer set search_path = ''
as $$
declare
  j meshaudit_private.journal;
  p meshaudit_private.journal_progress;
  f meshaudit_private.feed_state;
  v_now constant pg_catalog.timestamptz := pg_catalog.clock_timestamp();
begin
  perform meshaudit_private.require_whole_log(p_role);
  select * into j from meshaudit_private.journal;
  select * into p from meshaudit_private.journal_progress;
  select * into f from meshaudit_private.feed_state;

  return query
    select 'meshaudit_entries_total', pg_catalog.jsonb_build_object(
        'access_type', c.access_type, 'operation', c.operation, 'outcome', c.outcome), c.entries::pg_catalog.float8
      from meshaudit_private.entry_counts c order by c.access_type, c.operation, c.outcome;
  return query
    select s."check_name", '{}'::pg_catalog.jsonb, s.number
    from (values
      ('meshaudit_journal_armed', coalesce(j.armed, false)::pg_catalog.int4::pg_catalog.float8),
      ('meshaudit_seal_lag_seconds', case when j.armed then extract(epoch from v_now - p.sealed_at) end::pg_catalog.float8),
      ('meshaudit_seal_lag_bytes', case when j.armed and not pg_catalog.pg_is_in_recovery() then
        pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_flush_lsn(), p.sealed_lsn) end::pg_catalog.float8),
      ('meshaudit_feed_events_total', f.last_id::pg_catalog.float8),
      ('meshaudit_feed_lag_seconds', extract(epoch from v_now - f.ran_at)::pg_catalog.float8),
      ('meshaudit_partitions_ahead', (
        select pg_catalog.count(*) from pg_catalog.pg_inherits i
        join pg_catalog.pg_class c on c.oid = i.inhrelid
        where i.inhparent = 'meshaudit_private.ledger'::pg_catalog.regclass
          and pg_catalog.substring(pg_catalog.pg_get_expr(c.relpartbound, c.oid), 'FROM [(]''([^'']+)''')
            ::pg_catalog.timestamptz > v_now)::pg_catalog.float8)
    ) s ("check_name", number)
    where s.number is not null;
  return query
    select v.name, '{}'::pg_catalog.jsonb, v.value from meshaudit_private.verification_metrics() v where v.value is not null;
  return query
    select 'meshaudit_alerts_total', pg_catalog.jsonb_build_object('rule', t.rule, 'severity', t.severity),
        t.raised::pg_catalog.float8
      from meshaudit_private.alert_totals t order by t.rule, t.severity;
  return query
    select 'meshaudit_journal_refused_total', pg_catalog.jsonb_build_object('why', r.why), r.number::pg_catalog.float8
    from (values ('forged', p.forged), ('garbage', p.garbage), ('replayed', p.replayed)) r (why, number)
    where j.armed;
  return query
    select 'meshaudit_check_ok', pg_catalog.jsonb_build_object('check', c."check"), c.ok::pg_catalog.int4::pg_catalog.float8
    from meshaudit_private.status(p_role) c where c.ok is not null;
  -- What recording adds is known where track_functions is on; chain_entry is the chaining's part of each access.
  return query
    select m.name, pg_catalog.jsonb_build_object('function', m.function), m.number
    from (
      select 'meshaudit_function_calls_total' as name, u.funcname::pg_catalog.text as function, u.calls::pg_catalog.float8 as number
        from pg_catalog.pg_stat_user_functions u where u.schemaname = 'meshaudit_private'
      union all
      select 'meshaudit_function_seconds_total', u.funcname, u.total_time / 1000
        from pg_catalog.pg_stat_user_functions u where u.schemaname = 'meshaudit_private') m
    where m.function = any (array['chain_entry', 'read_secret', 'read_secret_by_key', 'read_secrets', 'write_secret', 'delete_secret']);
end
$$;
revoke all on function meshaudit_private.metrics(text) from public;
grant execute on function meshaudit_private.metrics(text) to meshaudit_auditor, meshaudit_operator;

create function meshaudit.metrics() returns table (name text, labels jsonb, value float8)
language sql stable security invoker
begin atomic
  select m.name, m.labels, m.value from meshaudit_private.metrics(current_user) m;
end;
revoke all on function meshaudit.metrics() from public;
grant execute on function meshaudit.metrics() to meshaudit_auditor, meshaudit_operator;

comment on function meshaudit_private.count_entries() is 'Adds new entries of the feed to entry_counts.';
comment on function meshaudit_private.metrics(text) is 'meshaudit.metrics(), for a role.';
comment on function meshaudit.metrics() is
  'Numbers for monitoring, by name and labels as Prometheus has them. Raises MA001 to an auditor of a part of the log.';
