-- The sealer: turns records of the journal that have no entry in the ledger into entries.
--
-- Invariants
--   * one at a time: whoever seals holds the row of journal_progress; a second finds it locked and leaves;
--   * what is sealed and how far (sealed_lsn) is one transaction. The slot is advanced by the next run, up to where
--     the last one committed: killed at any instant, nothing is lost and nothing is doubled;
--   * a record of a transaction that is still open waits in journal_pending, and the slot goes on;
--   * only signed records count; of those, each access makes one entry.
--
-- The work is done in sets, since a busy database has tens of thousands of records a second, nearly all of which have
-- their entry already.

-- Item i is what lsns[i], access_ids[i], … say. Arrays side by side, since a composite in a composite costs more to make
-- and to take apart than all the rest.
create type meshaudit_private.journal_items as (
  lsns pg_lsn[],
  access_ids uuid[],
  fresh boolean[],  -- cannot have been sealed before
  statuses text[],
  records meshaudit_private.journal_record[],
  batches boolean,  -- whether any is of many accesses
  seen_from pg_lsn  -- where the earliest that is not fresh was written
);
comment on type meshaudit_private.journal_items is 'Genuine records, and what became of their transactions.';

-- An access_id made of a digest (version 8: made in a way of our own).
create function meshaudit_private.digest_id(p_digest bytea) returns uuid
language sql immutable parallel safe
return pg_catalog.encode(pg_catalog.set_byte(pg_catalog.set_byte(pg_catalog.substr(p_digest, 1, 16),
  6, pg_catalog.get_byte(p_digest, 6) & 15 | 128), 8, pg_catalog.get_byte(p_digest, 8) & 63 | 128), 'hex')::pg_catalog.uuid;
comment on function meshaudit_private.digest_id(bytea) is 'An access_id made of a digest.';

-- Of the transactions that records wait for, those that are over. Looks at each transaction once, not at each record: who
-- keeps one open after a million accesses makes no run of the sealer any longer.
create function meshaudit_private.ended_transactions() returns xid8[]
language sql volatile set search_path = ''
as $$
  with recursive waited as (
    select pg_catalog.min(p.xid) as xid from (
      select p.xid from meshaudit_private.journal_pending p order by p.xid limit 1) p
    union all
    select (select p.xid from meshaudit_private.journal_pending p where p.xid > w.xid order by p.xid limit 1)
    from waited w where w.xid is not null
  )
  select array(
    select w.xid from waited w
    where case when w.xid is null or w.xid >= pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot()) then false
      else pg_catalog.pg_xact_status(w.xid) is distinct from 'in progress' end)
$$;
comment on function meshaudit_private.ended_transactions() is 'The transactions that records wait for and that are over.';

-- Genuine records among messages, those that waited first, with the state of their transactions; and how many messages
-- were none, or were old ones sent again. A denial stands whatever its transaction does.
--
-- A record that was written after p_sealed, the end of what has been sealed, and signed with p_key_id, the key in use, is
-- fresh: no earlier run can have met it. So is one that waited, since none is sealed while it does.
create function meshaudit_private.open_messages(
  p_lsns pg_lsn[], p_contents bytea[], p_sealed pg_lsn, p_key_id int,
  out items meshaudit_private.journal_items, out forged bigint, out garbage bigint, out replayed bigint
)
language sql volatile set search_path = ''
as $$
  -- "offset 0": what one step computes, the next does not compute again
  select
    row(
      pg_catalog.array_agg(t.lsn) filter (where t.timely), pg_catalog.array_agg(t.access_id) filter (where t.timely),
      pg_catalog.array_agg(t.fresh) filter (where t.timely), pg_catalog.array_agg(t.status) filter (where t.timely),
      pg_catalog.array_agg(t.r) filter (where t.timely),
      pg_catalog.bool_or((t.r).secret_ids is not null) filter (where t.timely),
      pg_catalog.min((t.r).written) filter (where t.timely and not t.fresh))::meshaudit_private.journal_items,
    pg_catalog.count(*) filter (where t.key_id is not null and not t.genuine),
    pg_catalog.count(*) filter (where t.key_id is null and not t.genuine),
    pg_catalog.count(*) filter (where not t.timely)
  from (
    select x.lsn, x.key_id, x.genuine, x.r,
      case
        when x.access_id is not null or not x.genuine then x.access_id
        when pg_catalog.strpos((x.r).writer, '-') > 0 then (x.r).writer::pg_catalog.uuid
        else meshaudit_private.digest_id(x.mac)
      end as access_id,
      x.waited or (x.key_id = p_key_id and (x.r).written > p_sealed) as fresh,
      -- half of how long journal_seen remembers
      case when x.genuine then x.waited or x.lsn - (x.r).written between 0 and 536870912 end as timely,
      case when (x.r).xid is null or (x.r).outcome = 'denied' then 'none'
        -- too new to be asked about: still open, or of another server whose data came here
        when (x.r).xid >= pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot()) then 'in progress'
        else coalesce(pg_catalog.pg_xact_status((x.r).xid), 'aborted') end as status
    from (
      select p.lsn, null::pg_catalog.int4 as key_id, null::pg_catalog.bytea as mac, p.access_id, true as genuine,
        true as waited, p.payload::meshaudit_private.journal_record as r
      from (
        select p.* from meshaudit_private.journal_pending p
        where p.xid = any (meshaudit_private.ended_transactions()) order by p.lsn) p
      union all
      select c.lsn, c.key_id, c.mac, null, c.genuine, false,
        case when c.genuine then pg_catalog.convert_from(c.body, 'UTF8')::meshaudit_private.journal_record end
      from (
        select m.lsn, m.key_id, m.mac, m.body,
          k.key_id is not null
            and m.mac = pg_catalog.sha256(k.outer_key || pg_catalog.sha256(k.inner_key || m.body)) as genuine
        from (
          select m.lsn, pg_catalog.substr(m.content, 6, 32) as mac, pg_catalog.substr(m.content, 38) as body,
            case when pg_catalog.octet_length(m.content) >= 40 and pg_catalog.get_byte(m.content, 0) = 1 then
              ('x' || pg_catalog.encode(pg_catalog.substr(m.content, 2, 4), 'hex'))::pg_catalog."bit"(32)::pg_catalog.int4
            end as key_id
          from unnest(p_lsns, p_contents) m (lsn, content) offset 0) m
        left join meshaudit_private.journal_keys k on k.key_id = m.key_id
        offset 0) c
      offset 0) x
    -- the join with the keys may have mixed them
    order by x.lsn offset 0) t
$$;

-- The same items with the accesses of each batch one by one, in order.
create function meshaudit_private.open_batches(p_items meshaudit_private.journal_items)
returns meshaudit_private.journal_items
language sql stable set search_path = ''
as $$
  with items as materialized (
    select i.* from unnest((p_items).lsns, (p_items).access_ids, (p_items).fresh, (p_items).statuses)
      with ordinality i (lsn, access_id, fresh, status, i)
  ), records as materialized (
    select r as r, pg_catalog.row_number() over () as i from unnest((p_items).records) r
  ), singles as (
    select i.lsn, i.i, 0::pg_catalog.int8 as n, i.access_id, i.fresh, i.status, r.r
    from items i join records r on r.i = i.i
    where (r.r).secret_ids is null
    union all
    select i.lsn, i.i, b.n,
      coalesce(b.access_id, meshaudit_private.digest_id(pg_catalog.sha256(
        pg_catalog.uuid_send(i.access_id) || pg_catalog.int8send(b.n)))),
      i.fresh, i.status, row(
      (r.r).written, (r.r).writer, (r.r).xid, (r.r).lane, (r.r).seq + b.n - 1, b.at, (r.r).operation, (r.r).outcome, b.secret_id,
      (r.r).secret_table, b.scope, (r.r).user_identity, (r.r).identity_source, (r.r).claimed_identity, (r.r).db_user,
      (r.r).db_role, (r.r).ip_address, (r.r).application_name, (r.r).user_agent, (r.r).request_id,
      null, null, null, null)::meshaudit_private.journal_record
    from items i join records r on r.i = i.i,
      lateral unnest((r.r).secret_ids, (r.r).scopes, (r.r).ats, (r.r).access_ids)
        with ordinality b (secret_id, scope, at, access_id, n)
    where (r.r).secret_ids is not null
  )
  select row(
    pg_catalog.array_agg(s.lsn), pg_catalog.array_agg(s.access_id), pg_catalog.array_agg(s.fresh),
    pg_catalog.array_agg(s.status), pg_catalog.array_agg(s.r), false, (p_items).seen_from)::meshaudit_private.journal_items
  from (select s.* from singles s order by s.i, s.n) s
$$;

-- The entries that these records (no batches) ask for and the ledger lacks. Call it in a later snapshot than
-- open_messages(): what was over by then is visible now. Whatever is null, as the id of read_secret(null), or a role that
-- somebody gave who can name this schema: a record that makes no entry would hold up all that come after it.
create function meshaudit_private.missing_entries(
  p_lsns pg_lsn[], p_access_ids uuid[], p_fresh boolean[], p_statuses text[],
  p_records meshaudit_private.journal_record[], p_seen_from pg_lsn,
  out entries meshaudit_private.ledger[], out replayed bigint
)
language sql volatile set search_path = ''
as $$
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
    pg_catalog.count(*) filter (where m.seen)
  from (
    select s.*, not s.fresh and s.access_id in (
        select u from meshaudit_private.journal_seen b, unnest(b.access_ids) u where b.lsn >= p_seen_from) as seen
    from unnest(p_lsns, p_access_ids, p_fresh, p_statuses, p_records) with ordinality s (
      lsn, access_id, fresh, status, written, writer, xid, lane, seq, at, operation, outcome, secret_id, secret_table,
      scope, user_identity, identity_source, claimed_identity, db_user, db_role, ip_address, application_name,
      user_agent, request_id, secret_ids, scopes, ats, access_ids, i)
    where s.status <> 'in progress' and (s.lane is null or not exists (
      select from meshaudit_private.ledger l
      where l.lane = s.lane and l.seq = s.seq and l."timestamp" = meshaudit_private.time_of(s.at)
        and l.access_id = s.access_id))
    -- a join may have mixed them
    order by s.i offset 0) m
$$;

-- Seals messages, and what was pending; everything before p_upto is then done. Returns the number of entries made.
create function meshaudit_private.seal_messages(p_lsns pg_lsn[], p_contents bytea[], p_upto pg_lsn, p_caught_up boolean)
returns bigint
language plpgsql volatile security definer set search_path = ''
as $$
declare
  i meshaudit_private.journal_items;
  v_forged pg_catalog.int8;
  v_garbage pg_catalog.int8;
  v_replayed pg_catalog.int8;
  v_again pg_catalog.int8;
  v_entries meshaudit_private.ledger[];
  v_once meshaudit_private.ledger[];
begin
  -- somebody with REPLICATION may have moved it between begin_seal() and the look at it
  if not (select meshaudit_private.slot_works(j.slot_name, p.sealed_lsn)
      from meshaudit_private.journal j, meshaudit_private.journal_progress p) then
    raise exception 'the journal''s slot was moved while it was read' using errcode = 'MA002',
      hint = 'Run select meshaudit.arm_journal(): it records the gap and makes a new slot.';
  end if;
  select (o.items).*, o.forged, o.garbage, o.replayed into i.lsns, i.access_ids, i.fresh, i.statuses, i.records, i.batches,
      i.seen_from, v_forged, v_garbage, v_replayed
    from (
      select o.* from meshaudit_private.open_messages(p_lsns, p_contents,
        (select p.sealed_lsn from meshaudit_private.journal_progress p),
        (select j.key_id from meshaudit_private.journal j)) o offset 0) o;

  delete from meshaudit_private.journal_pending p
    using unnest(i.access_ids, i.statuses) d (access_id, status)
    where p.access_id = d.access_id and d.status <> 'in progress';
  if 'in progress' = any (i.statuses) then
    insert into meshaudit_private.journal_pending (access_id, lsn, xid, payload)
      select s.access_id, s.lsn, (n.r).xid, n.r::pg_catalog.text
      from unnest(i.lsns, i.access_ids, i.statuses) with ordinality s (lsn, access_id, status, i)
      join (select r as r, pg_catalog.row_number() over () as i from unnest(i.records) r) n on n.i = s.i
      where s.status = 'in progress'
      on conflict do nothing;
  end if;
  if i.batches then
    i := meshaudit_private.open_batches(i);
  end if;

  select m.entries, m.replayed into v_entries, v_again from meshaudit_private.missing_entries(
    i.lsns, i.access_ids, i.fresh, i.statuses, i.records, i.seen_from) m;
  if v_entries is not null then
    v_once := meshaudit_private.each_once(v_entries);
    v_again := v_again + pg_catalog.cardinality(v_entries) - pg_catalog.cardinality(v_once);
    v_entries := v_once;
    insert into meshaudit_private.journal_seen as s (lsn, access_ids)
      select p_upto, pg_catalog.array_agg(e.access_id) from unnest(v_entries) e
      on conflict (lsn) do update set access_ids = s.access_ids || excluded.access_ids;
    if meshaudit_private.erasable() then
      v_entries := meshaudit_private.pseudonymous(v_entries);
    end if;
  end if;

  if (select pg_catalog.bool_or(e.outcome = 'denied') from unnest(v_entries) e) then
    v_entries := meshaudit_private.bound_denials(v_entries);
  end if;
  -- behind, it may yet come to denials of minutes long past
  if p_caught_up then
    v_entries := v_entries || meshaudit_private.close_denials();
  end if;
  perform meshaudit_private.append_entries(v_entries);

  delete from meshaudit_private.journal_seen s
    where s.lsn < '0/0'::pg_catalog.pg_lsn + greatest(p_upto - '0/0'::pg_catalog.pg_lsn - 1073741824, 0);
  update meshaudit_private.journal_progress set
    sealed_lsn = greatest(sealed_lsn, p_upto), sealed_at = pg_catalog.clock_timestamp(),
    forged = forged + v_forged, garbage = garbage + v_garbage, replayed = replayed + v_replayed + v_again
    where singleton;
  update meshaudit_private.journal set
    healthy_until = pg_catalog.clock_timestamp() + '10 seconds'::pg_catalog.interval,
    healthy_since = pg_catalog.pg_postmaster_start_time()
    where ctid = (  -- never waits for a set_setting() that is not committed
      select j.ctid from meshaudit_private.journal j
      where j.healthy_until < pg_catalog.clock_timestamp() + '6 seconds'::pg_catalog.interval
        or j.healthy_since is distinct from pg_catalog.pg_postmaster_start_time()
      for update skip locked);
  return coalesce(pg_catalog.cardinality(v_entries), 0);
end
$$;
revoke all on function meshaudit_private.seal_messages(pg_lsn[], bytea[], pg_lsn, boolean) from public;
grant execute on function meshaudit_private.seal_messages(pg_lsn[], bytea[], pg_lsn, boolean) to meshaudit_operator;

comment on function meshaudit_private.open_messages(pg_lsn[], bytea[], pg_lsn, int) is
  'Genuine records among messages, with the state of their transactions, and how many were forged or garbage.';
comment on function meshaudit_private.open_batches(meshaudit_private.journal_items) is
  'Records with the accesses of each batch one by one.';
comment on function meshaudit_private.missing_entries(pg_lsn[], uuid[], boolean[], text[], meshaudit_private.journal_record[], pg_lsn) is
  'The entries that records ask for and the ledger lacks, and how many records were of accesses sealed before.';
comment on function meshaudit_private.seal_messages(pg_lsn[], bytea[], pg_lsn, boolean) is
  'Seals messages of the journal; returns how many entries it made.';
