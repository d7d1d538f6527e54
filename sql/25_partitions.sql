-- Partitions of the ledger, by time: a month each, or a week, or a day.
--
-- Invariants
--   * there is a default partition, so that no access fails or waits because nobody made partitions;
--   * a period whose rows went to the default partition keeps them there: rows are never moved;
--   * each partition is guarded on its own before it is attached;
--   * making a partition takes no lock that an access needs: ATTACH, and NOWAIT on the default partition. Only where the
--     current period's own partition is missing do accesses need the default one, and then for as long as the making
--     lasts: should its transaction be left open, the server ends it after 2 seconds.

create function meshaudit_private.period_start(p_at timestamptz, p_interval text) returns timestamptz
language sql immutable set search_path = ''
as $$
  select pg_catalog.date_trunc(p_interval, p_at at time zone 'UTC') at time zone 'UTC'
$$;

create function meshaudit_private.period_next(p_start timestamptz, p_interval text) returns timestamptz
language sql immutable set search_path = ''
as $$
  select ((p_start at time zone 'UTC') + ('1 ' operator(pg_catalog.||) p_interval)::pg_catalog.interval) at time zone 'UTC'
$$;

create function meshaudit_private.partition_name(p_start timestamptz, p_interval text) returns text
language sql stable set search_path = ''
as $$
  select 'ledger_' || pg_catalog.to_char(p_start at time zone 'UTC',
    case p_interval when 'month' then 'YYYY_MM' when 'week' then 'IYYY_"w"IW' else 'YYYY_MM_DD' end)
$$;

-- Where the partitions are that a range of time meets: the end of the last of them; null if there is none.
create function meshaudit_private.taken_until(p_start timestamptz, p_end timestamptz) returns timestamptz
language sql stable set search_path = '' set timezone = 'UTC' set datestyle = 'ISO'
as $$
  select pg_catalog.max(b.upper)
  from pg_catalog.pg_inherits i
  join pg_catalog.pg_class c on c.oid = i.inhrelid,
    lateral (select pg_catalog.pg_get_expr(c.relpartbound, c.oid)) e (bound),
    lateral (select
      pg_catalog.substring(e.bound, 'FROM [(]''([^'']+)''')::pg_catalog.timestamptz,
      pg_catalog.substring(e.bound, 'TO [(]''([^'']+)''')::pg_catalog.timestamptz) b (lower, upper)
  where i.inhparent = 'meshaudit_private.ledger'::pg_catalog.regclass and b.lower < p_end and b.upper > p_start
$$;

-- Makes the partition for a period that starts at p_start, or for what other partitions (of another interval) leave of
-- it. False: there is one, its rows are in the default partition already, or that one is locked just now.
create function meshaudit_private.add_partition(p_start timestamptz, p_interval text) returns boolean
language plpgsql volatile set search_path = '' set timezone = 'UTC'
as $$
declare
  v_end constant pg_catalog.timestamptz := meshaudit_private.period_next(p_start, p_interval);
  v_start constant pg_catalog.timestamptz := coalesce(meshaudit_private.taken_until(p_start, v_end), p_start);
  v_name constant pg_catalog.text := meshaudit_private.partition_name(p_start, p_interval);
begin
  if v_start >= v_end or pg_catalog.to_regclass('meshaudit_private.' || v_name) is not null then
    return false;
  end if;
  begin
    lock table meshaudit_private.ledger_default in access exclusive mode nowait;
    if exists (select from meshaudit_private.ledger_default d where d."timestamp" >= v_start and d."timestamp" < v_end) then
      return false;
    end if;
    execute pg_catalog.format(
      'create table meshaudit_private.%I (like meshaudit_private.ledger including defaults including constraints)', v_name);
    perform meshaudit_private.guard(('meshaudit_private.' || v_name)::pg_catalog.regclass);
    execute pg_catalog.format(
      'alter table meshaudit_private.ledger attach partition meshaudit_private.%I for values from (%L) to (%L)',
      v_name, v_start, v_end);
    execute pg_catalog.format('alter table meshaudit_private.%I enable always trigger chain_entry', v_name);
  exception
    when lock_not_available or invalid_object_definition or duplicate_table then
      return false;
  end;
  return true;
end
$$;

-- Makes what is missing from now on; returns how many it made.
create function meshaudit_private.add_partitions() returns int
language plpgsql volatile set search_path = ''
as $$
declare
  v_settings meshaudit_private.settings;
  v_start pg_catalog.timestamptz;
  v_made pg_catalog.int4 := 0;
begin
  select * into v_settings from meshaudit_private.settings;
  v_start := meshaudit_private.period_start(pg_catalog.clock_timestamp(), v_settings.partition_interval);
  perform pg_catalog.set_config('idle_in_transaction_session_timeout', '2s', true)
    where pg_catalog.to_regclass('meshaudit_private.' || meshaudit_private.partition_name(v_start, v_settings.partition_interval)) is null;
  for i in 0 .. v_settings.partitions_ahead loop
    if meshaudit_private.add_partition(v_start, v_settings.partition_interval) then
      v_made := v_made + 1;
    end if;
    v_start := meshaudit_private.period_next(v_start, v_settings.partition_interval);
  end loop;
  return v_made;
end
$$;

create function meshaudit.maintain() returns text
language plpgsql volatile security definer set search_path = ''
as $$
declare
  v_partitions pg_catalog.int4;
begin
  -- two at a time would only collide; the second has nothing to do
  perform from meshaudit_private.settings for update skip locked;
  if not found then
    return 'another maintain() is running';
  end if;
  v_partitions := meshaudit_private.add_partitions();
  perform meshaudit_private.add_lanes(least(
    pg_catalog.current_setting('max_connections')::pg_catalog.int4
      + pg_catalog.current_setting('max_prepared_transactions')::pg_catalog.int4, 4096));
  update meshaudit_private.settings set maintained_at = pg_catalog.clock_timestamp() where singleton;
  return pg_catalog.format('%s partitions made', v_partitions);
end
$$;
revoke all on function meshaudit.maintain() from public;
grant execute on function meshaudit.maintain() to meshaudit_operator;

create table meshaudit_private.ledger_default partition of meshaudit_private.ledger default;
select meshaudit_private.guard('meshaudit_private.ledger_default');
alter table meshaudit_private.ledger_default enable always trigger chain_entry;
select meshaudit.maintain();

comment on table meshaudit_private.ledger_default is 'Entries of periods for which nobody had made a partition.';
comment on function meshaudit_private.period_start(timestamptz, text) is 'Start of the period (UTC) that holds a time.';
comment on function meshaudit_private.period_next(timestamptz, text) is 'Start of the next period (UTC).';
comment on function meshaudit_private.partition_name(timestamptz, text) is 'Name of the partition of a period.';
comment on function meshaudit_private.taken_until(timestamptz, timestamptz) is
  'End of the last partition that a range of time meets; null if it meets none.';
comment on function meshaudit_private.add_partition(timestamptz, text) is 'Makes one partition, unless it cannot be made now.';
comment on function meshaudit_private.add_partitions() is 'Makes the partitions from now on that are missing; returns how many.';
comment on function meshaudit.maintain() is
  'Nightly job: makes partitions ahead (settings partition_interval, partitions_ahead). Returns what it did. Safe to call at any time, by several at once; blocks no access.';
