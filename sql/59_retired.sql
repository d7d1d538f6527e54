-- What verify() has to know of retired entries: where they were, and that the log says so.

-- Says that entries p_from to p_to are gone; null if that is none.
create function meshaudit_private.gap(p_from bigint, p_to bigint) returns text
language sql immutable parallel safe
return case
  when p_from = p_to then 'deleted'
  when p_from < p_to then pg_catalog.format('deleted (entries %s to %s)', p_from, p_to)
end;

-- The stretches that are retired according to manifests whose digest the log holds: in an entry of its own, or in a later
-- manifest of which that is true. (An old retirement's entry is itself retired one day; the newest never is.)
create function meshaudit_private.backed_runs()
returns table (lane int, first_seq bigint, last_seq bigint, prev_hash bytea, hash bytea, partition text)
language sql stable set search_path = ''
as $$
  with recursive named as (
    select r.*, pg_catalog.encode(pg_catalog.sha256(pg_catalog.convert_to(r.manifest, 'UTF8')), 'hex') as digest,
      r.manifest::pg_catalog.jsonb as content
    from meshaudit_private.retirements r
  ), backed (number, partition, restored, content) as (
    select n.number, n.partition, n.restored, n.content from named n
    where exists (
      select from meshaudit_private.ledger l
      where l.lane = n.lane and l.seq = n.seq and l.secret_table = 'meshaudit.archive' and l.operation = 'delete'
        and l.secret_id = pg_catalog.concat(n.partition, ' ', n.digest))
    union
    select n.number, n.partition, n.restored, n.content from backed b
    join named n on n.digest = (b.content operator(pg_catalog.->>) 'previous')
  )
  select (e.run operator(pg_catalog.->>) 0)::pg_catalog.int4, (e.run operator(pg_catalog.->>) 1)::pg_catalog.int8,
    (e.run operator(pg_catalog.->>) 2)::pg_catalog.int8,
    pg_catalog.decode(e.run operator(pg_catalog.->>) 3, 'hex'), pg_catalog.decode(e.run operator(pg_catalog.->>) 4, 'hex'),
    b.partition
  from backed b, lateral pg_catalog.jsonb_array_elements(b.content operator(pg_catalog.->) 'runs') e (run)
  where not b.restored
$$;

-- The last retired seq before an entry, if it reaches that far; the first one behind it.
create function meshaudit_private.retired_before(p_lane int, p_seq bigint) returns bigint
language sql stable set search_path = ''
as $$
  select pg_catalog.max(r.last_seq) from meshaudit_private.retired_runs r where r.lane = p_lane and r.first_seq < p_seq
$$;

create function meshaudit_private.retired_behind(p_lane int, p_seq bigint) returns bigint
language sql stable set search_path = ''
as $$
  select pg_catalog.min(r.first_seq) from meshaudit_private.retired_runs r where r.lane = p_lane and r.last_seq > p_seq
$$;

-- What is wrong with the retired stretches: missing entries next to them, links that contradict them, entries where they
-- are, and stretches that no retirement in the log stands for.
create function meshaudit_private.verify_retired() returns table (lane int, seq bigint, id bigint, problem text)
language sql stable set search_path = ''
as $$
  with stretches as (
    select r.*, h.seq as head_seq, h.hash as head_hash,
      pg_catalog.lead(r.first_seq) over w as next_first, pg_catalog.lead(r.prev_hash) over w as next_prev,
      pg_catalog.lag(r.last_seq) over w as before_last
    from meshaudit_private.retired_runs r
    left join meshaudit_private.lane_heads h on h.lane = r.lane
    window w as (partition by r.lane order by r.first_seq)
  ), beside as (
    select s.*,
      (select pg_catalog.min(l.seq) from meshaudit_private.ledger l where l.lane = s.lane and l.seq > s.last_seq) as next_entry,
      (select pg_catalog.max(l.seq) from meshaudit_private.ledger l where l.lane = s.lane and l.seq < s.first_seq) as entry_before
    from stretches s
  ), gaps as (
    -- where the next is an entry, that tells
    select b.lane, b.last_seq + 1 as first, coalesce(b.next_first - 1, b.head_seq) as last from beside b
      where b.next_entry is null or b.next_entry >= b.next_first
    union all
    select b.lane, 1, b.first_seq - 1 from beside b where b.before_last is null and b.entry_before is null
  )
  select g.lane, g.first, null::pg_catalog.int8, meshaudit_private.gap(g.first, g.last)
    from gaps g where g.first <= g.last
  union all
  select b.lane, b.last_seq, null, 'edited' from beside b
    where (b.last_seq = b.head_seq and b.hash <> b.head_hash)
      or (b.next_first = b.last_seq + 1 and b.next_prev <> b.hash)
      or (b.next_entry = b.last_seq + 1 and not exists (
        select from meshaudit_private.ledger l
        where l.lane = b.lane and l.seq = b.last_seq + 1 and l.prev_hash = b.hash))
  union all
  select b.lane, b.first_seq, null, 'edited' from beside b
    where b.first_seq = 1 and b.prev_hash <> (
      select meshaudit_private.genesis_hash(t.ledger_id, b.lane) from meshaudit_private.settings t)
  union all
  select r.lane, l.seq, l.id, 'inserted' from meshaudit_private.retired_runs r
    join meshaudit_private.ledger l on l.lane = r.lane and l.seq between r.first_seq and r.last_seq
  union all
  select r.lane, r.first_seq, null, pg_catalog.format('retired without an entry (entries %s to %s)', r.first_seq, r.last_seq)
    from (select t.lane, t.first_seq, t.last_seq, t.prev_hash, t.hash, t.partition from meshaudit_private.retired_runs t
      except select * from meshaudit_private.backed_runs()) r
$$;

comment on function meshaudit_private.gap(bigint, bigint) is 'Says which entries are gone; null if none.';
comment on function meshaudit_private.backed_runs() is 'Stretches of lanes that are retired according to the log itself.';
comment on function meshaudit_private.retired_before(int, bigint) is 'The last retired seq of what begins before this one.';
comment on function meshaudit_private.retired_behind(int, bigint) is 'The first retired seq of what ends behind this one.';
comment on function meshaudit_private.verify_retired() is 'What is wrong with the retired stretches, for verify().';
