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

create type meshaudit_private.journal_item as (
  lsn pg_lsn, access_id uuid, status text, r meshaudit_private.journal_record
);
comment on type meshaudit_private.journal_item is 'A genuine record, and what became of its transaction.';

-- An access_id made of a digest (version 8: made in a way of our own).
create function meshaudit_private.digest_id(p_digest bytea) returns uuid
language sql immutable parallel safe
return pg_catalog.encode(pg_catalog.set_byte(pg_catalog.set_byte(pg_catalog.substr(p_digest, 1, 16),
  6, pg_catalog.get_byte(p_digest, 6) & 15 | 128), 8, pg_catalog.get_byte(p_digest, 8) & 63 | 128), 'hex')::pg_catalog.uuid;
comment on function meshaudit_private.digest_id(bytea) is 'An access_id made of a digest.';

-- Genuine records among messages, those that waited included, with the state of their transactions; and how many
-- messages were none, or were old ones sent again. A denial stands whatever its transaction does.
create function meshaudit_private.open_messages(
  p_lsns pg_lsn[], p_contents bytea[],
  out items meshaudit_private.journal_item[], out forged bigint, out garbage bigint, out replayed bigint
)
language sql volatile set search_path = ''
as $$
  with messages as (
    select m.lsn, m.content,
      case when pg_catalog.octet_length(m.content) >= 40 and pg_catalog.get_byte(m.content, 0) = 1 then
        ('x' || pg_catalog.encode(pg_catalog.substr(m.content, 2, 4), 'hex'))::pg_catalog."bit"(32)::pg_catalog.int4
      end as key_id
    from unnest(p_lsns, p_contents) m (lsn, content)
  ), checked as (
    select m.lsn, m.key_id, pg_catalog.substr(m.content, 6, 32) as mac, pg_catalog.substr(m.content, 38) as body,
      k.key_id is not null and pg_catalog.substr(m.content, 6, 32)
        = pg_catalog.sha256(k.outer_key || pg_catalog.sha256(k.inner_key || pg_catalog.substr(m.content, 38))) as genuine
    from messages m
    left join meshaudit_private.journal_keys k on k.key_id = m.key_id
  ), records as materialized (
    select c.lsn, c.mac, null::pg_catalog.uuid as access_id,
      pg_catalog.convert_from(c.body, 'UTF8')::meshaudit_private.journal_record as r, false as waited
    from checked c
    where c.genuine
    union all
    select p.lsn, null, p.access_id, p.payload::meshaudit_private.journal_record, true
    from meshaudit_private.journal_pending p
  ), timely as materialized (
    -- half of how long journal_seen remembers
    select x.lsn, x.r,
      case
        when x.waited then x.access_id
        when (x.r).writer ~ '-' then (x.r).writer::pg_catalog.uuid
        else meshaudit_private.digest_id(x.mac)
      end as access_id,
      x.waited or x.lsn - (x.r).written between 0 and 536870912 as timely from records x
  )
  select
    (select pg_catalog.array_agg(row(x.lsn, x.access_id,
        case when (x.r).xid is null or (x.r).outcome = 'denied' then 'none'
          -- too new to be asked about: still open, or of another server whose data came here
          when (x.r).xid >= pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot()) then 'in progress'
          else coalesce(pg_catalog.pg_xact_status((x.r).xid), 'aborted') end,
        x.r)::meshaudit_private.journal_item order by x.lsn)
      from timely x where x.timely),
    (select pg_catalog.count(*) from checked c where c.key_id is not null and not c.genuine),
    (select pg_catalog.count(*) from checked c where c.key_id is null),
    (select pg_catalog.count(*) from timely x where not x.timely)
$$;

-- The entries that these records ask for and the ledger lacks. Call it in a later snapshot than open_messages():
-- what was over by then is visible now.
create function meshaudit_private.missing_entries(
  p_items meshaudit_private.journal_item[], out entries meshaudit_private.ledger[], out replayed bigint
)
language sql volatile set search_path = ''
as $$
  with over as materialized (
    select i.lsn, i.access_id, i.status, i.r from unnest(p_items) i where i.status <> 'in progress'
  ), singles as (
    select o.lsn, 0::pg_catalog.int8 as n, o.access_id, o.status, o.r from over o where (o.r).secret_ids is null
    union all
    -- a batch's entries follow each other
    select o.lsn, b.n,
      coalesce(b.access_id, meshaudit_private.digest_id(pg_catalog.sha256(
        pg_catalog.uuid_send(o.access_id) || pg_catalog.int8send(b.n)))),
      o.status, row(
      (o.r).written, (o.r).writer, (o.r).xid, (o.r).lane, (o.r).seq + b.n - 1, b.at, (o.r).operation, (o.r).outcome, b.secret_id,
      (o.r).secret_table, b.scope, (o.r).user_identity, (o.r).identity_source, (o.r).claimed_identity, (o.r).db_user,
      (o.r).db_role, (o.r).ip_address, (o.r).application_name, (o.r).user_agent, (o.r).request_id,
      null, null, null, null)::meshaudit_private.journal_record
    from over o,
      lateral unnest((o.r).secret_ids, (o.r).scopes, (o.r).ats, (o.r).access_ids)
        with ordinality b (secret_id, scope, at, access_id, n)
    where (o.r).secret_ids is not null
  ), missing as materialized (
    select s.lsn, s.n, s.access_id, s.status, s.r from singles s
    where (s.r).lane is null or not exists (
      select from meshaudit_private.ledger l
      where l.lane = (s.r).lane and l.seq = (s.r).seq and l."timestamp" = meshaudit_private.time_of((s.r).at)
        and l.access_id = s.access_id)
  ), fresh as (
    insert into meshaudit_private.journal_seen (access_id, lsn)
      select m.access_id, m.lsn from missing m order by m.lsn, m.n
      on conflict do nothing
      returning access_id
  ), once as (
    select distinct on (m.access_id) m.lsn, m.n, m.access_id, m.status, m.r
    from missing m join fresh f on f.access_id = m.access_id
    order by m.access_id, m.lsn
  )
  select
    (select pg_catalog.array_agg(meshaudit_private.entry_of(o.r, o.access_id, case
        when (o.r).outcome = 'denied' then 'denied'
        when (o.r).lane is not null or o.status = 'aborted' then 'rolled_back'
        else (o.r).outcome
      end))
      from (select o.* from once o order by o.lsn, o.n) o),
    (select pg_catalog.count(*) from missing) - (select pg_catalog.count(*) from fresh)
$$;

-- Seals messages, and what was pending; everything before p_upto is then done. Returns the number of entries made.
create function meshaudit_private.seal_messages(p_lsns pg_lsn[], p_contents bytea[], p_upto pg_lsn, p_caught_up boolean)
returns bigint
language plpgsql volatile security definer set search_path = ''
as $$
declare
  v_items meshaudit_private.journal_item[];
  v_forged pg_catalog.int8;
  v_garbage pg_catalog.int8;
  v_replayed pg_catalog.int8;
  v_entries meshaudit_private.ledger[];
begin
  select o.items, o.forged, o.garbage, o.replayed into v_items, v_forged, v_garbage, v_replayed
    from meshaudit_private.open_messages(p_lsns, p_contents) o;
  select m.entries, v_replayed + m.replayed into v_entries, v_replayed from meshaudit_private.missing_entries(v_items) m;

  delete from meshaudit_private.journal_pending p
    using unnest(v_items) i where p.access_id = i.access_id and i.status <> 'in progress';
  insert into meshaudit_private.journal_pending (access_id, lsn, payload)
    select i.access_id, i.lsn, i.r::pg_catalog.text from unnest(v_items) i where i.status = 'in progress'
    on conflict do nothing;

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
    forged = forged + v_forged, garbage = garbage + v_garbage, replayed = replayed + v_replayed
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

comment on function meshaudit_private.open_messages(pg_lsn[], bytea[]) is
  'Genuine records among messages, with the state of their transactions, and how many were forged or garbage.';
comment on function meshaudit_private.missing_entries(meshaudit_private.journal_item[]) is
  'The entries that records ask for and the ledger lacks, each once; and how many records were second ones.';
comment on function meshaudit_private.seal_messages(pg_lsn[], bytea[], pg_lsn, boolean) is
  'Seals messages of the journal; returns how many entries it made.';
