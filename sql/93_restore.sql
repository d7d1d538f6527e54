-- Restoring a partition: entries come back from an archive if they are, to the byte, what was retired.
--
-- They are brought to a table of their own first. From there they enter the ledger only when each is sound and the lanes'
-- stretches are those of the manifest that the log names: the chain fixes everything else.

create table meshaudit_private.restoring (like meshaudit_private.ledger, primary key (lane, seq, "timestamp"));
alter table meshaudit_private.restoring enable row level security;

create function meshaudit.restore_entries(entries jsonb) returns void
language plpgsql volatile security definer set search_path = '' set timezone = 'UTC'
as $$
begin
  lock table meshaudit_private.restoring in exclusive mode;
  if entries is null then
    delete from meshaudit_private.restoring;
    return;
  end if;
  insert into meshaudit_private.restoring
    select * from pg_catalog.jsonb_populate_recordset(null::meshaudit_private.ledger, entries);
exception
  when unique_violation then
    raise exception 'an entry is there twice' using errcode = 'MA005', hint = 'meshaudit verify --archive tells what is wrong with the archive.';
  when data_exception or not_null_violation then
    raise exception 'these are no entries' using errcode = 'MA005', hint = 'A JSON array of objects with the columns of audit_logs.';
end
$$;
revoke all on function meshaudit.restore_entries(jsonb) from public;
grant execute on function meshaudit.restore_entries(jsonb) to meshaudit_operator;

create function meshaudit.restore_partition(name text) returns bigint
language plpgsql volatile security definer set search_path = ''
as $$
declare
  r meshaudit_private.retirements;
  p pg_catalog.record;
  v_why pg_catalog.text;
  v_count pg_catalog.int8;
  v_sound pg_catalog.int8;
begin
  lock table meshaudit_private.retirements in share row exclusive mode;
  lock table meshaudit_private.restoring in exclusive mode;
  select * into r from meshaudit_private.retirements t where t.partition = restore_partition.name;
  if r.restored is not false then
    raise exception 'no partition named "%" is retired', pg_catalog."left"(name, 100) using errcode = 'MA005',
      hint = 'select * from meshaudit.retirements() lists what was retired.';
  end if;
  select * into p from meshaudit_private.partition_list() l where l.name = r.partition;
  select pg_catalog.count(*), pg_catalog.count(*) filter (where meshaudit_private.is_sound(row(e.*)::meshaudit_private.ledger)) into v_count, v_sound
    from meshaudit_private.restoring e;
  v_why := case
    when exists (select from meshaudit_private.expiries e where e.partition = r.partition) then 'their archive has expired'
    when p.name is null then 'its table is gone'
    when v_count <> r.entries then pg_catalog.format('there are %s instead of %s', v_count, r.entries)
    when v_sound <> v_count then 'one is not what was hashed'
    when not exists (
      select from meshaudit_private.backed_runs() b where b.partition = r.partition) then 'the log does not say that they were'
    when (
        select pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(
          s.lane, s.first_seq, s.last_seq, pg_catalog.encode(s.prev_hash, 'hex'), pg_catalog.encode(s.hash, 'hex'))
          order by s.lane, s.first_seq)
        from meshaudit_private.stretches('meshaudit_private.restoring', null) s)
      is distinct from (r.manifest::pg_catalog.jsonb operator(pg_catalog.->) 'runs') then 'the lanes'' links differ'
  end;
  if v_why is not null then
    raise exception 'the entries are not those that were retired with %: %', r.partition, v_why using errcode = 'MA005',
      hint = 'meshaudit verify --archive tells what is wrong with the archive.';
  end if;

  execute pg_catalog.format('insert into %s select * from meshaudit_private.restoring', p.leaf);
  delete from meshaudit_private.restoring;
  delete from meshaudit_private.retired_runs u where u.partition = r.partition;
  update meshaudit_private.retirements t set restored = true where t.number = r.number;
  insert into meshaudit_private.ledger (secret_id, access_type, operation, outcome, secret_table, scope)
    values (pg_catalog.concat(r.partition, ' ', pg_catalog.encode(pg_catalog.sha256(pg_catalog.convert_to(r.manifest, 'UTF8')), 'hex')),
      'write', 'create', 'granted', 'meshaudit.archive', '*');
  return v_count;
end
$$;
revoke all on function meshaudit.restore_partition(text) from public;
grant execute on function meshaudit.restore_partition(text) to meshaudit_operator;

comment on table meshaudit_private.restoring is 'Entries on their way back from an archive, not verified yet.';
comment on function meshaudit.restore_entries(jsonb) is
  'Brings entries of an archive, an array of objects, for restore_partition() in the same transaction; null forgets what was brought. Raises MA005 if they are none.';
comment on function meshaudit.restore_partition(text) is
  'Takes a retired partition''s entries, brought by restore_entries(), back into the log: each hash is recomputed, and the lanes'' stretches are compared with the manifest that the log names. Recorded as a create of meshaudit.archive. Returns their number. Raises MA005 if they are not, to the byte, what was retired.';
