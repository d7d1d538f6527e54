-- What meshaudit.seal() (79_tick.sql) is made of: reads the slot and seals. Runs as its caller, who needs REPLICATION
-- (Postgres asks for it) and meshaudit_operator; what touches the ledger is in SECURITY DEFINER functions.

-- Takes the sealer's place; no row: somebody else has it. settled: no open transaction, this one included, has moved
-- sealed_lsn and may yet be rolled back.
create function meshaudit_private.begin_seal() returns table (slot_name text, sealed_lsn pg_lsn, settled boolean)
language plpgsql volatile security definer set search_path = ''
as $$
declare
  j meshaudit_private.journal;
  v_sealed pg_catalog.pg_lsn;
  v_settled pg_catalog.bool;
begin
  if pg_catalog.current_setting('transaction_isolation') <> 'read committed' then
    -- it must see entries that are committed after it began
    raise exception 'sealing takes a READ COMMITTED transaction' using errcode = 'MA005',
      hint = 'Run it in autocommit, or in a transaction of isolation level READ COMMITTED.';
  end if;
  select p.sealed_lsn, meshaudit_private.is_over(p.xmin) into v_sealed, v_settled
    from meshaudit_private.journal_progress p for update skip locked;
  if not found then
    return;
  end if;
  select * into j from meshaudit_private.journal;
  if not j.armed then
    raise exception 'the journal is not armed' using errcode = 'MA002', hint = 'Run select meshaudit.arm_journal() first.';
  end if;
  if not meshaudit_private.slot_works(j.slot_name, v_sealed) then
    raise exception 'the journal''s slot "%" is gone or has lost records after %', j.slot_name, v_sealed
      using errcode = 'MA002', hint = 'Run select meshaudit.arm_journal(): it records the gap and makes a new slot.';
  end if;
  return query select j.slot_name, v_sealed, v_settled;
end
$$;
revoke all on function meshaudit_private.begin_seal() from public;
grant execute on function meshaudit_private.begin_seal() to meshaudit_operator;

comment on function meshaudit_private.begin_seal() is
  'Takes the sealer''s place and says where to go on; no row if somebody else has it. Raises MA002 if the journal is not armed or its slot is lost.';

-- Reading the slot begins at its restart_lsn, which follows only where the log says what is running: each 15 s, by the background
-- writer. That can be hundreds of megabytes, read anew by each run. From 16 on who may can write that record himself: a
-- superuser, or whom one has granted it (docs/journal.md).
do $$
begin
  execute
    'create function meshaudit_private.shorten_reading(p_bytes numeric) returns void
     language plpgsql volatile security invoker set search_path = '''' as $b$
     begin '
    || case when current_setting('server_version_num')::int >= 160000 then
      'if p_bytes > 1048576 and pg_catalog.has_function_privilege(''pg_catalog.pg_log_standby_snapshot()'', ''EXECUTE'') then
         perform pg_catalog.pg_log_standby_snapshot();
       end if;' else 'perform p_bytes;' end
    || ' end $b$';
end
$$;
revoke all on function meshaudit_private.shorten_reading(numeric) from public;
grant execute on function meshaudit_private.shorten_reading(numeric) to meshaudit_operator;
comment on function meshaudit_private.shorten_reading(numeric) is
  'Lets the slot''s restart_lsn follow soon, if it is that many bytes behind and the caller may.';

-- Noted before the sealer has a transaction of its own, which would hold restart_lsn back by another run.
--
-- At most p_limit messages. The statements were parsed when they were made: the caller has no USAGE on our schema.
create function meshaudit_private.seal(p_limit int) returns bigint
language sql volatile security invoker
begin atomic
  select meshaudit_private.shorten_reading(pg_catalog.pg_current_wal_flush_lsn() - s.restart_lsn)
  from pg_catalog.pg_replication_slots s
  where s.slot_name = (select 'meshaudit_' || d.oid from pg_catalog.pg_database d where d.datname = pg_catalog.current_database());

  -- up to here the last run has committed
  select pg_catalog.pg_replication_slot_advance(b.slot_name, b.sealed_lsn)
  from meshaudit_private.begin_seal() b
  join pg_catalog.pg_replication_slots s on s.slot_name = b.slot_name
  where b.settled and s.confirmed_flush_lsn < b.sealed_lsn;

  with place as materialized (
    -- A run looks at a gigabyte of the log at most: what it is shown, foreign messages too, is on disk meanwhile.
    select b.slot_name, b.sealed_lsn, pg_catalog.pg_current_wal_flush_lsn() as flushed,
      least(pg_catalog.pg_current_wal_flush_lsn(), b.sealed_lsn + 1073741824) as upto
    from meshaudit_private.begin_seal() b
  ), taken as materialized (
    -- M, flags (1 byte), LSN (8), "meshaudit" and a zero byte, length (4), content. We never send one that is
    -- transactional (flags 1) or longer than 4 MiB: their content does not matter, and there may be much of it.
    -- The slot gives its messages in order, and nothing here reorders them.
    select pg_catalog.array_agg(m.lsn) filter (where m.ours) as lsns,
      pg_catalog.array_agg(m.content) filter (where m.ours) as contents,
      pg_catalog.sum(pg_catalog.octet_length(m.content)) as size, pg_catalog.count(*) as messages, max(m.lsn) as last
    from (
      select c.lsn, c.ours, case when c.ours then
          case when pg_catalog.get_byte(c.data, 1) = 0 and pg_catalog.octet_length(c.data) <= 4194304
            then pg_catalog.substr(c.data, 25) else '' end end as content
      from (
        select c.lsn, c.data, pg_catalog.get_byte(c.data, 0) = 77 and c.lsn > p.sealed_lsn
          and pg_catalog.substr(c.data, 11, 10) = '\x6d657368617564697400'::pg_catalog.bytea as ours
        from place p,
          lateral pg_catalog.pg_logical_slot_peek_binary_changes(p.slot_name::name, p.upto, p_limit,
            'proto_version', '1', 'publication_names', 'meshaudit_journal', 'messages', 'true') c
        offset 0) c
      offset 0) m
  ), fitting as materialized (
    -- how many of ours: those of a run are in memory at once
    select case when t.size > 67108864 then (
        select pg_catalog.count(*)
        from (select pg_catalog.sum(pg_catalog.octet_length(c)) over (rows unbounded preceding) as total from unnest(t.contents) c) s
        where s.total <= 67108864)::pg_catalog.int4 else pg_catalog.cardinality(t.lsns) end as count
    from taken t
  )
  select coalesce((
    select meshaudit_private.seal_messages(
      case when f.count < pg_catalog.cardinality(t.lsns) then t.lsns[:f.count] else t.lsns end,
      case when f.count < pg_catalog.cardinality(t.lsns) then t.contents[:f.count] else t.contents end,
      case
        when f.count < pg_catalog.cardinality(t.lsns) then (select max(l) from unnest(t.lsns[:f.count]) l)
        when t.messages >= p_limit then t.last
        else greatest(t.last, p.upto)
      end,
      t.messages < p_limit and p.upto = p.flushed and f.count is not distinct from pg_catalog.cardinality(t.lsns))
    from place p, taken t, fitting f), 0);
end;
revoke all on function meshaudit_private.seal(int) from public;
grant execute on function meshaudit_private.seal(int) to meshaudit_operator;

comment on function meshaudit_private.seal(int) is 'meshaudit.seal(), for at most so many messages.';
