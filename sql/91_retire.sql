-- Retiring a partition: its entries leave the ledger for an archive, and the log says so.
--
-- Invariants
--   * the manifest is compared with the partition itself, under a lock that keeps entries out: bounds, count, and of each
--     lane every stretch with its first link and its last hash. From those the chain fixes every byte between;
--   * entry, manifest and emptying are one transaction;
--   * no access waits: what is locked is a partition that is over. It is emptied, not detached, since detaching locks the
--     ledger itself, and Postgres cannot do it CONCURRENTLY beside a default partition (docs/adr/0012-archive.md).

-- prev_hash is that of the first entry, hash that of the last.
create type meshaudit_private.stretch as (lane int, first_seq bigint, last_seq bigint, prev_hash bytea, hash bytea);

-- A table's stretches; of those lanes, or of all.
create function meshaudit_private.stretches(p_leaf regclass, p_lanes int[]) returns setof meshaudit_private.stretch
language plpgsql volatile set search_path = ''
as $$
begin
  return query execute pg_catalog.format($query$
    with linked as (
      select l.lane, l.seq, l.prev_hash, l.hash,
        (pg_catalog.lag(l.seq) over w + 1 is distinct from l.seq
          or pg_catalog.lag(l.hash) over w is distinct from l.prev_hash) as starts,
        (pg_catalog.lead(l.seq) over w - 1 is distinct from l.seq
          or pg_catalog.lead(l.prev_hash) over w is distinct from l.hash) as ends
      from only %s l%s
      window w as (partition by l.lane order by l.seq)
    ), edges as (
      select e.lane, e.seq, e.prev_hash, e.starts,
        case when e.ends then e.seq else pg_catalog.lead(e.seq) over w end as last_seq,
        case when e.ends then e.hash else pg_catalog.lead(e.hash) over w end as hash
      from linked e where e.starts or e.ends
      window w as (partition by e.lane order by e.seq)
    )
    select s.lane, s.seq, s.last_seq, s.prev_hash, s.hash from edges s where s.starts
  $query$, p_leaf, case when p_lanes is not null then ' where l.lane = any ($1)' else '' end) using p_lanes;
end
$$;

-- Of a partition of the ledger, which sorting costs more than archiving does: lanes without a gap are told by counting, since
-- no place is there twice, and the links between cancel each other out. (By a sum of 64 bits: it finds what went wrong, not
-- what was made to fit. The archive's every link is compared by who verifies it.)
create function meshaudit_private.partition_stretches(p_leaf regclass) returns setof meshaudit_private.stretch
language plpgsql volatile set search_path = ''
as $$
declare
  v meshaudit_private.stretch;
  v_lanes pg_catalog.int4[];
  v_whole pg_catalog.int4[];
begin
  for v.lane, v.first_seq, v.last_seq, v.prev_hash, v.hash, v_lanes in execute pg_catalog.format($query$
    with lanes as materialized (
      select l.lane, min(l.seq) as first_seq, max(l.seq) as last_seq, pg_catalog.count(*) as entries,
        pg_catalog.bit_xor(pg_catalog.hash_record_extended(row(l.hash), 0)
          # pg_catalog.hash_record_extended(row(l.prev_hash), 0)) as links
      from only %1$s l group by l.lane
    )
    select n.lane, n.first_seq, n.last_seq, f.prev_hash, t.hash, (select pg_catalog.array_agg(a.lane) from lanes a)
    from lanes n
    join only %1$s f on f.lane = n.lane and f.seq = n.first_seq
    join only %1$s t on t.lane = n.lane and t.seq = n.last_seq
    where n.entries = n.last_seq - n.first_seq + 1
      and n.links = (pg_catalog.hash_record_extended(row(f.prev_hash), 0) # pg_catalog.hash_record_extended(row(t.hash), 0))
  $query$, p_leaf)
  loop
    v_whole := v_whole || v.lane;
    return next v;
  end loop;
  if pg_catalog.cardinality(v_whole) = pg_catalog.cardinality(v_lanes) then
    return;
  end if;
  execute pg_catalog.format('select array(select distinct l.lane from only %s l where l.lane <> all ($1))', p_leaf)
    into v_lanes using coalesce(v_whole, '{}');
  return query select * from meshaudit_private.stretches(p_leaf, v_lanes);
end
$$;

-- As a manifest lists them.
create function meshaudit_private.runs_of(p_leaf regclass) returns jsonb
language sql volatile set search_path = ''
as $$
  select coalesce(pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(
    s.lane, s.first_seq, s.last_seq, pg_catalog.encode(s.prev_hash, 'hex'), pg_catalog.encode(s.hash, 'hex'))
    order by s.lane, s.first_seq), '[]')
  from meshaudit_private.partition_stretches(p_leaf) s
$$;

create function meshaudit.retire_partition(name text, manifest text) returns text
language plpgsql volatile security definer set search_path = '' set timezone = 'UTC' set datestyle = 'ISO'
as $$
declare
  v_digest constant pg_catalog.text := pg_catalog.encode(pg_catalog.sha256(pg_catalog.convert_to(manifest, 'UTF8')), 'hex');
  m pg_catalog.jsonb;
  p pg_catalog.record;
  r meshaudit_private.retirements;
  v_why pg_catalog.text;
  v_count pg_catalog.int8;
  v_previous pg_catalog.text;
  v_lane pg_catalog.int4;
  v_seq pg_catalog.int8;
begin
  if pg_catalog.current_setting('transaction_isolation') <> 'read committed' then
    raise exception 'retiring takes a READ COMMITTED transaction' using errcode = 'MA005',
      hint = 'Run it in autocommit, or in a transaction of isolation level READ COMMITTED.';
  end if;
  begin
    m := manifest::pg_catalog.jsonb;
  exception when data_exception then
    null;
  end;
  -- one at a time, since each manifest names the one before
  lock table meshaudit_private.retirements in share row exclusive mode;
  select * into p from meshaudit_private.partition_list() l where l.name = retire_partition.name;
  if p.name is null then
    raise exception 'no partition named "%"', pg_catalog."left"(name, 100) using errcode = 'MA005',
      hint = 'select * from meshaudit.partitions() lists them. The default partition cannot be retired.';
  end if;
  select * into r from meshaudit_private.retirements t where t.partition = p.name;
  if not r.restored then
    raise exception '% is retired already', p.name using errcode = 'MA005', hint = 'Nothing is left to do.';
  end if;
  -- readers may go on; entries of an old time, which only the sealer brings, wait until this is over
  execute pg_catalog.format('lock table only %s in share mode nowait', p.leaf);
  -- a hold or a policy whose transaction is still open must not be overlooked
  lock table meshaudit_private.holds, meshaudit_private.retention in share mode nowait;
  v_why := meshaudit_private.why_kept(p.leaf, p.from_time, p.to_time);
  if v_why is not null then
    raise exception '% cannot be retired: %', p.name, v_why using errcode = 'MA005',
      hint = 'select * from meshaudit.partitions() says of each whether it can be.';
  end if;

  select pg_catalog.encode(pg_catalog.sha256(pg_catalog.convert_to(t.manifest, 'UTF8')), 'hex') into v_previous
    from meshaudit_private.retirements t where t.number < coalesce(r.number, 2147483647) order by t.number desc limit 1;
  execute pg_catalog.format('select pg_catalog.count(*) from only %s', p.leaf) into v_count;
  v_why := case
    when m is null or m operator(pg_catalog.->>) 'format' is distinct from 'meshaudit archive v1' then 'it is no manifest of format "meshaudit archive v1"'
    when m operator(pg_catalog.->>) 'ledger_id' is distinct from (select s.ledger_id::pg_catalog.text from meshaudit_private.settings s) then 'it is of another ledger'
    when m operator(pg_catalog.->>) 'partition' is distinct from p.name then 'it is of another partition'
    when (m operator(pg_catalog.->>) 'from')::pg_catalog.timestamptz is distinct from p.from_time
      or (m operator(pg_catalog.->>) 'to')::pg_catalog.timestamptz is distinct from p.to_time then 'the bounds differ'
    when m operator(pg_catalog.->>) 'previous' is distinct from v_previous then 'it does not name the manifest of the last retirement'
    when r.number is not null and r.manifest <> retire_partition.manifest then 'it is not the one that the partition was restored from'
    when pg_catalog.jsonb_array_length(m operator(pg_catalog.->) 'files') is distinct from 1 then 'it names no file'
    when m operator(pg_catalog.->) 'entries' is distinct from pg_catalog.to_jsonb(v_count) then 'the number of entries differs'
    when m operator(pg_catalog.->) 'runs' is distinct from meshaudit_private.runs_of(p.leaf) then 'the lanes'' links differ'
  end;
  if v_why is not null then
    raise exception 'the manifest does not fit %: %', p.name, v_why using errcode = 'MA005',
      hint = 'Run meshaudit archive again: it writes the archive anew and verifies it.';
  end if;
  -- a reader of the log must not find it half gone; who reads just now is not waited for
  execute pg_catalog.format('lock table only %s in access exclusive mode nowait', p.leaf);

  insert into meshaudit_private.ledger (secret_id, access_type, operation, outcome, secret_table, scope)
    values (pg_catalog.concat(p.name, ' ', v_digest), 'write', 'delete', 'granted', 'meshaudit.archive', '*')
    returning lane, seq into v_lane, v_seq;
  insert into meshaudit_private.retirements as t (partition, manifest, from_time, to_time, entries, lane, seq, scopes)
    values (p.name, retire_partition.manifest, p.from_time, p.to_time, v_count, v_lane, v_seq, meshaudit_private.scopes_of(p.leaf))
    on conflict on constraint retirements_partition_key do update set lane = v_lane, seq = v_seq, restored = false;
  insert into meshaudit_private.retired_runs (lane, first_seq, last_seq, prev_hash, hash, partition)
    select (e.run operator(pg_catalog.->>) 0)::pg_catalog.int4, (e.run operator(pg_catalog.->>) 1)::pg_catalog.int8,
      (e.run operator(pg_catalog.->>) 2)::pg_catalog.int8, pg_catalog.decode(e.run operator(pg_catalog.->>) 3, 'hex'),
      pg_catalog.decode(e.run operator(pg_catalog.->>) 4, 'hex'), p.name
    from pg_catalog.jsonb_array_elements(m operator(pg_catalog.->) 'runs') e (run);
  execute pg_catalog.format('alter table only %s disable trigger append_only', p.leaf);
  execute pg_catalog.format('truncate table only %s', p.leaf);
  execute pg_catalog.format('alter table only %s enable always trigger append_only', p.leaf);
  return v_digest;
exception
  when lock_not_available then
    raise exception '% is being read, or a hold or a policy changed, just now', name using errcode = '55P03', hint = 'Try again in a moment; nothing was done.';
  when invalid_text_representation or invalid_datetime_format or datetime_field_overflow or numeric_value_out_of_range
      or invalid_parameter_value or null_value_not_allowed then
    raise exception 'the manifest does not fit %: a field has no meaning', name using errcode = 'MA005',
      hint = 'Run meshaudit archive again: it writes the archive anew and verifies it.';
end
$$;
revoke all on function meshaudit.retire_partition(text, text) from public;
grant execute on function meshaudit.retire_partition(text, text) to meshaudit_operator;

comment on type meshaudit_private.stretch is 'Entries of a lane without a gap, each linked to the one before.';
comment on function meshaudit_private.stretches(regclass, int[]) is 'Of those lanes, or of all, the stretches that a table holds, each link compared.';
comment on function meshaudit_private.partition_stretches(regclass) is 'Of each lane the stretches that a partition of the ledger holds.';
comment on function meshaudit_private.runs_of(regclass) is 'Of each lane the stretches that a partition holds, as a manifest lists them.';
comment on function meshaudit.retire_partition(text, text) is
  'Empties a partition that is archived: compares the archive''s manifest with the partition (bounds, count, each lane''s stretches with their first and last links), records a delete of meshaudit.archive that names the manifest''s sha256, which it returns, and removes the entries. Raises MA005 if the manifest does not fit, or the partition is too young, kept by a retention policy or a legal hold, or may get entries from the journal; 55P03 while it is being read, or holds or policies are being changed.';
