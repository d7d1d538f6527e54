-- The sealer: turns records of the journal that have no entry in the ledger into entries.
--
-- Invariants
--   * one at a time: whoever seals holds the row of journal_progress; a second finds it locked and leaves;
--   * what is sealed and how far (sealed_lsn) is one transaction. The slot is advanced by the next run, up to where
--     the last one committed: killed at any instant, nothing is lost and nothing is doubled;
--   * a record of a transaction that is still open waits in journal_pending, and the slot goes on;
--   * only signed records count; of those, each access makes one entry.
--
-- The access_ids of the entries that records (no batches) say are in the ledger, and maybe of a few beside them: whole ranges
-- are read, 256 entries of a lane at most, because each descent of an index costs as much as several entries beside each
-- other. The settings keep the plan to that, whatever the statistics say.
create function meshaudit_private.entries_of(p_records meshaudit_private.journal_record[]) returns uuid[]
language plpgsql volatile
set search_path = '' set enable_hashjoin = off set enable_mergejoin = off set enable_seqscan = off set enable_bitmapscan = off set jit = off
as $$
begin
  return array(
    select l.access_id
    from (
      select r.lane, min(r.seq) as first, max(r.seq) as last, min(r.at) as since, max(r.at) as until
      from (
        select r.lane, r.seq, meshaudit_private.time_of(r.at) as at from unnest(p_records) r where r.lane is not null offset 0) r
      group by r.lane, r.seq / 256) m,
    lateral (
      select e.access_id from meshaudit_private.ledger e
      where e.lane = m.lane and e.seq >= m.first and e.seq <= m.last and e."timestamp" >= m.since and e."timestamp" <= m.until
      order by e.seq limit m.last - m.first + 1) l);
end
$$;

-- The entries that these records (no batches) ask for and that are not among p_there; which accesses they are of, and
-- whether any is a denial. And how many records were of accesses sealed before.
--
-- Whatever is null, as the id of read_secret(null), or a role that somebody gave who can name this schema, makes an entry: a
-- record that made none would hold up all that come after it.
create function meshaudit_private.missing_entries(
  p_access_ids uuid[], p_fresh boolean[], p_statuses text[], p_records meshaudit_private.journal_record[], p_there uuid[],
  p_seen_from pg_lsn
) returns table (entries meshaudit_private.ledger[], access_ids uuid[], denied boolean, replayed bigint)
language sql stable
begin atomic
  select
    pg_catalog.array_agg(row(
      pg_catalog.nextval('meshaudit_private.ledger_id'), coalesce(meshaudit_private.bounded(m.secret_id), '<NULL>'),
      case m.operation when 'read' then 'read' else 'write' end, meshaudit_private.time_of(m.at), m.user_identity,
      m.ip_address, m.operation,
      case
        when m.outcome = 'denied' then 'denied'
        when m.lane is not null or m.status = 'aborted' then 'rolled_back'
        else m.outcome
      end,
      m.secret_table, coalesce(m.scope, ''), m.identity_source, m.claimed_identity, m.db_user, coalesce(m.db_role, '<NULL>'),
      nullif(m.application_name, ''), m.user_agent, m.request_id, m.access_id, -1, 0::pg_catalog.int8, ''::pg_catalog.bytea,
      ''::pg_catalog.bytea)::meshaudit_private.ledger) filter (where not m.seen),
    pg_catalog.array_agg(m.access_id) filter (where not m.seen),
    pg_catalog.bool_or(m.outcome = 'denied') filter (where not m.seen),
    pg_catalog.count(*) filter (where m.seen)
  from (
    select s.*, not s.fresh and s.access_id in (
        select u from meshaudit_private.journal_seen b, unnest(b.access_ids) u where b.lsn >= p_seen_from) as seen
    from unnest(p_access_ids, p_fresh, p_statuses, p_records) s (
      access_id, fresh, status, written, writer, xid, lane, seq, at, operation, outcome, secret_id, secret_table,
      scope, user_identity, identity_source, claimed_identity, db_user, db_role, ip_address, application_name,
      user_agent, request_id, secret_ids, scopes, ats, access_ids)
    where s.status <> 'in progress'
      -- "not in": hashed, whatever the planner makes of arrays
      and (s.lane is null or s.access_id not in (select u from unnest(p_there) u))
    offset 0) m;
end;

-- Seals messages, and what was pending; everything before p_upto is then done. Returns the number of entries made.
create function meshaudit_private.seal_messages(p_lsns pg_lsn[], p_contents bytea[], p_upto pg_lsn, p_caught_up boolean)
returns bigint
language plpgsql volatile security definer set search_path = '' set work_mem = '128MB' set jit = off
as $$
declare
  v_sealed constant pg_catalog.pg_lsn := (select p.sealed_lsn from meshaudit_private.journal_progress p);
  v_key_id constant pg_catalog.int4 := (select j.key_id from meshaudit_private.journal j);
  v_lsns pg_catalog.pg_lsn[];
  v_access_ids pg_catalog.uuid[];
  v_fresh pg_catalog.bool[];
  v_statuses pg_catalog.text[];
  v_records meshaudit_private.journal_record[];
  v_there pg_catalog.uuid[];
  v_batches pg_catalog.bool;
  v_seen_from pg_catalog.pg_lsn;
  v_forged pg_catalog.int8;
  v_garbage pg_catalog.int8;
  v_replayed pg_catalog.int8;
  v_again pg_catalog.int8;
  v_denied pg_catalog.bool;
  v_safe pg_catalog.pg_lsn;
  v_entries meshaudit_private.ledger[];
  v_once meshaudit_private.ledger[];
begin
  -- somebody with REPLICATION may have moved it between begin_seal() and the look at it
  if not (select meshaudit_private.slot_works(j.slot_name, v_sealed) from meshaudit_private.journal j) then
    raise exception 'the journal''s slot was moved while it was read' using errcode = 'MA002',
      hint = 'Run select meshaudit.arm_journal(): it records the gap and makes a new slot.';
  end if;
  select o.* into v_lsns, v_access_ids, v_fresh, v_statuses, v_records, v_batches, v_seen_from, v_forged, v_garbage, v_replayed
    from meshaudit_private.open_messages(p_lsns, p_contents, v_sealed, v_key_id) o;

  if exists (select from meshaudit_private.journal_pending) then
    delete from meshaudit_private.journal_pending p
      using unnest(v_access_ids, v_statuses) d (access_id, status)
      where p.access_id = d.access_id and d.status <> 'in progress';
  end if;
  if 'in progress' = any (v_statuses) then
    insert into meshaudit_private.journal_pending (access_id, lsn, xid, payload)
      select s.access_id, s.lsn, (n.r).xid, n.r::pg_catalog.text
      from unnest(v_lsns, v_access_ids, v_statuses) with ordinality s (lsn, access_id, status, i)
      join (select r as r, pg_catalog.row_number() over () as i from unnest(v_records) r) n on n.i = s.i
      where s.status = 'in progress'
      on conflict do nothing;
  end if;
  if v_batches then
    select b.* into v_access_ids, v_fresh, v_statuses, v_records
      from meshaudit_private.open_batches(v_access_ids, v_fresh, v_statuses, v_records) b;
  end if;

  -- in a later snapshot than that of open_messages(): what was over by then is visible now
  v_there := meshaudit_private.entries_of(v_records);
  select m.* into v_entries, v_access_ids, v_denied, v_again
    from meshaudit_private.missing_entries(v_access_ids, v_fresh, v_statuses, v_records, v_there, v_seen_from) m;
  if v_entries is not null then
    if (select pg_catalog.count(*) from (select from unnest(v_access_ids) u group by u) d) < pg_catalog.cardinality(v_access_ids) then
      v_once := meshaudit_private.each_once(v_entries);
      v_again := v_again + pg_catalog.cardinality(v_entries) - pg_catalog.cardinality(v_once);
      v_entries := v_once;
      v_access_ids := array(select e.access_id from unnest(v_entries) e);
    end if;
    insert into meshaudit_private.journal_seen as s (lsn, access_ids) values (p_upto, v_access_ids)
      on conflict (lsn) do update set access_ids = s.access_ids || excluded.access_ids;
    if meshaudit_private.erasable() then
      v_entries := meshaudit_private.pseudonymous(v_entries);
    end if;
    if v_denied then
      v_entries := meshaudit_private.bound_denials(v_entries);
    end if;
  end if;
  -- behind, it may yet come to denials of minutes long past
  if p_caught_up then
    v_entries := v_entries || meshaudit_private.close_denials();
  end if;
  perform meshaudit_private.append_surely(v_entries);

  delete from meshaudit_private.journal_seen s
    where s.lsn < '0/0'::pg_catalog.pg_lsn + greatest(p_upto - '0/0'::pg_catalog.pg_lsn - 1073741824, 0);
  update meshaudit_private.journal_progress set
    sealed_lsn = greatest(sealed_lsn, p_upto), sealed_at = pg_catalog.clock_timestamp(),
    forged = forged + v_forged, garbage = garbage + v_garbage, replayed = replayed + v_replayed + v_again
    where singleton;
  v_safe := meshaudit_private.safe_lsn((select j.slot_name from meshaudit_private.journal j));
  update meshaudit_private.journal set
    healthy_until = pg_catalog.clock_timestamp() + '10 seconds'::pg_catalog.interval,
    healthy_since = pg_catalog.pg_postmaster_start_time(), healthy_lsn = v_safe
    where ctid = (  -- never waits for a set_setting() that is not committed
      select j.ctid from meshaudit_private.journal j
      where j.healthy_until < pg_catalog.clock_timestamp() + '6 seconds'::pg_catalog.interval
        or j.healthy_since is distinct from pg_catalog.pg_postmaster_start_time()
        -- half of what it was good for is written
        or j.healthy_lsn - pg_catalog.pg_current_wal_lsn() < (v_safe - pg_catalog.pg_current_wal_lsn()) / 2
      for update skip locked);
  return coalesce(pg_catalog.cardinality(v_entries), 0);
end
$$;
revoke all on function meshaudit_private.seal_messages(pg_lsn[], bytea[], pg_lsn, boolean) from public;
grant execute on function meshaudit_private.seal_messages(pg_lsn[], bytea[], pg_lsn, boolean) to meshaudit_operator;


comment on function meshaudit_private.entries_of(meshaudit_private.journal_record[]) is
  'The access_ids of the entries that records say are in the ledger, as far as they are, and maybe of some beside them.';
comment on function meshaudit_private.missing_entries(
  uuid[], boolean[], text[], meshaudit_private.journal_record[], uuid[], pg_lsn
) is 'The entries that records ask for and the ledger lacks, and how many records were of accesses sealed before.';
comment on function meshaudit_private.seal_messages(pg_lsn[], bytea[], pg_lsn, boolean) is
  'Seals messages of the journal; returns how many entries it made.';
