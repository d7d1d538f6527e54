-- Opening messages of the journal: which are genuine records, what they say, and what became of their transactions.
--
-- The work is done in sets, since a busy database has tens of thousands of records a second, nearly all of which have
-- their entry already. A set is arrays side by side, because a composite in a composite costs more to make and to take
-- apart than all the rest. STABLE functions with bodies in standard SQL are inlined into the statement that calls them, and
-- have its snapshot.

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
-- were none, or were old ones sent again. A denial stands whatever its transaction does. batches: whether any is of many
-- accesses; seen_from: where the earliest that is not fresh was written.
--
-- A record that was written after p_sealed, the end of what has been sealed, and signed with p_key_id, the key in use, is
-- fresh: no earlier run can have met it. So is one that waited, since none is sealed while it does.
create function meshaudit_private.open_messages(p_lsns pg_lsn[], p_contents bytea[], p_sealed pg_lsn, p_key_id int)
returns table (
  lsns pg_lsn[], access_ids uuid[], fresh boolean[], statuses text[], records meshaudit_private.journal_record[],
  batches boolean, seen_from pg_lsn, forged bigint, garbage bigint, replayed bigint
)
language sql stable
begin atomic
  -- "offset 0": what one step computes, the next does not compute again. Nothing here reorders rows. The keys are read by
  -- subqueries: what is in no parameter, debug_print_plan shows to no client.
  select
    pg_catalog.array_agg(t.lsn) filter (where t.timely), pg_catalog.array_agg(t.access_id) filter (where t.timely),
    pg_catalog.array_agg(t.fresh) filter (where t.timely), pg_catalog.array_agg(t.status) filter (where t.timely),
    pg_catalog.array_agg(t.r) filter (where t.timely),
    pg_catalog.bool_or(t.batch) filter (where t.timely), min(t.written) filter (where t.timely and not t.fresh),
    pg_catalog.count(*) filter (where t.key_id is not null and not t.genuine),
    pg_catalog.count(*) filter (where t.key_id is null and not t.genuine),
    pg_catalog.count(*) filter (where not t.timely)
  from (
    select x.lsn, x.key_id, x.genuine, x.r, (x.r).secret_ids is not null as batch, (x.r).written as written,
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
        when (x.r).xid >= (select pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())) then 'in progress'
        else coalesce(pg_catalog.pg_xact_status((x.r).xid), 'aborted') end as status
    from (
      select p.lsn, null::pg_catalog.int4 as key_id, null::pg_catalog.bytea as mac, p.access_id, true as genuine,
        true as waited, p.payload::meshaudit_private.journal_record as r
      from (
        select p.* from meshaudit_private.journal_pending p
        where p.xid = any ((select meshaudit_private.ended_transactions())::pg_catalog.xid8[]) order by p.lsn) p
      union all
      select c.lsn, c.key_id, c.mac, null, c.genuine, false,
        case when c.genuine then pg_catalog.convert_from(c.body, 'UTF8')::meshaudit_private.journal_record end
      from (
        select m.lsn, m.key_id, m.mac, m.body,
          case
            when m.key_id is null then false
            when m.key_id = p_key_id then coalesce(m.mac = pg_catalog.sha256(
              (select k.outer_key from meshaudit_private.journal_keys k where k.key_id = p_key_id)
              || pg_catalog.sha256((select k.inner_key from meshaudit_private.journal_keys k where k.key_id = p_key_id)
                || m.body)), false)
            else exists (
              select from meshaudit_private.journal_keys k where k.key_id = m.key_id
                and m.mac = pg_catalog.sha256(k.outer_key || pg_catalog.sha256(k.inner_key || m.body)))
          end as genuine
        from (
          select m.lsn, pg_catalog.substr(m.content, 6, 32) as mac, pg_catalog.substr(m.content, 38) as body,
            case when pg_catalog.octet_length(m.content) >= 40 and pg_catalog.get_byte(m.content, 0) = 1 then
              ('x' || pg_catalog.encode(pg_catalog.substr(m.content, 2, 4), 'hex'))::pg_catalog."bit"(32)::pg_catalog.int4
            end as key_id
          from unnest(p_lsns, p_contents) m (lsn, content) offset 0) m
        offset 0) c
      offset 0) x
    offset 0) t;
end;

-- The same with the accesses of each batch one by one, in order.
create function meshaudit_private.open_batches(
  p_access_ids uuid[], p_fresh boolean[], p_statuses text[], p_records meshaudit_private.journal_record[]
) returns table (access_ids uuid[], fresh boolean[], statuses text[], records meshaudit_private.journal_record[])
language sql stable
begin atomic
  with items as materialized (
    select i.* from unnest(p_access_ids, p_fresh, p_statuses) with ordinality i (access_id, fresh, status, i)
  ), records as materialized (
    select r as r, pg_catalog.row_number() over () as i from unnest(p_records) r
  ), singles as (
    select i.i, 0::pg_catalog.int8 as n, i.access_id, i.fresh, i.status, r.r
    from items i join records r on r.i = i.i
    where (r.r).secret_ids is null
    union all
    select i.i, b.n,
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
  select pg_catalog.array_agg(s.access_id), pg_catalog.array_agg(s.fresh), pg_catalog.array_agg(s.status),
    pg_catalog.array_agg(s.r)
  from (select s.* from singles s order by s.i, s.n) s;
end;

comment on function meshaudit_private.open_messages(pg_lsn[], bytea[], pg_lsn, int) is
  'Genuine records among messages, with the state of their transactions, and how many were forged or garbage.';
comment on function meshaudit_private.open_batches(uuid[], boolean[], text[], meshaudit_private.journal_record[]) is
  'Records with the accesses of each batch one by one.';
