-- What the policies ask for now: which partitions are to be archived, which archives are to expire. meshaudit retain does it.

create function meshaudit_private.retention_plan(p_role text)
returns table (partition text, from_time timestamptz, to_time timestamptz, action text, due timestamptz, detail text)
language plpgsql stable security definer set search_path = ''
as $$
declare
  p pg_catalog.record;
  k pg_catalog.record;
  r meshaudit_private.retirements;
  v_keep constant pg_catalog.interval := (select s.keep_in_database from meshaudit_private.settings s);
begin
  perform meshaudit_private.require_whole_log(p_role);
  for r in select t.* from meshaudit_private.retirements t where not t.restored order by t.number loop
    partition := r.partition;
    from_time := r.from_time;
    to_time := r.to_time;
    due := nullif((select o.until from meshaudit_private.kept_in_archive(r.scopes, r.to_time) o), 'infinity');
    if exists (select from meshaudit_private.expiries e where e.partition = r.partition) then
      action := 'expired';
      detail := null;
    else
      detail := meshaudit_private.why_archived(r);
      action := case when detail is null then 'expire' else 'keep archive' end;
    end if;
    return next;
  end loop;
  for p in
    select l.* from meshaudit_private.partition_list() l
    where l.from_time <= pg_catalog.clock_timestamp()
      and not exists (select from meshaudit_private.retirements t where t.partition = l.name and not t.restored)
    order by l.from_time
  loop
    partition := p.name;
    from_time := p.from_time;
    to_time := p.to_time;
    select * into k from meshaudit_private.kept_in_database(p.leaf, p.to_time);
    due := greatest(p.to_time + v_keep, k.until);
    detail := case
      when not meshaudit_private.has_scope(p.leaf, '*', '{}') then 'it is empty'
      when k.uncovered is not null then pg_catalog.format('no policy for scope %s', k.uncovered)
      else meshaudit_private.why_kept(p.leaf, p.from_time, p.to_time) end;
    action := case when detail is null then 'archive' else 'keep' end;
    return next;
  end loop;
end
$$;
revoke all on function meshaudit_private.retention_plan(text) from public;
grant execute on function meshaudit_private.retention_plan(text) to meshaudit_auditor, meshaudit_operator;

create function meshaudit.retention_plan()
returns table (partition text, from_time timestamptz, to_time timestamptz, action text, due timestamptz, detail text)
language sql stable security invoker
begin atomic
  select p.partition, p.from_time, p.to_time, p.action, p.due, p.detail from meshaudit_private.retention_plan(current_user) p;
end;
revoke all on function meshaudit.retention_plan() from public;
grant execute on function meshaudit.retention_plan() to meshaudit_auditor, meshaudit_operator;

-- Rows of status(). A night and a day are left to whoever runs meshaudit retain.
create function meshaudit_private.retention_status(p_role text) returns table ("check" text, ok boolean, detail text)
language plpgsql stable set search_path = ''
as $$
declare
  v_late constant pg_catalog.timestamptz := pg_catalog.clock_timestamp() - '2 days'::pg_catalog.interval;
  v_used constant pg_catalog.bool := exists (select from meshaudit_private.retirements);
  v_default constant pg_catalog.bool := exists (
    select from meshaudit_private.retention t where t.scope = '*' and t.ended_at is null);
  v_policies pg_catalog.int8;
  v_archive pg_catalog.text;
  v_expire pg_catalog.text;
  v_count pg_catalog.int8;
begin
  "check" := 'retention';
  select pg_catalog.count(*) into v_policies from meshaudit_private.retention t where t.ended_at is null;
  if v_policies > 0 then
    select pg_catalog.string_agg(n.partition, ', ' order by n.to_time) filter (where n.action = 'archive'),
        pg_catalog.string_agg(n.partition, ', ' order by n.to_time) filter (where n.action = 'expire')
      into v_archive, v_expire
      from meshaudit_private.retention_plan(p_role) n where n.due < v_late;
  end if;
  ok := v_archive is null and v_expire is null and (v_default or not v_used);
  detail := case
    when not ok then pg_catalog.concat_ws('; ',
      'should have been archived: ' || v_archive, 'archives past their period: ' || v_expire,
      case when not v_default then 'no policy for scope *: its entries stay in the database, their archives for ever' end,
      case when v_archive is not null or v_expire is not null then 'schedule meshaudit retain nightly' end)
    when v_policies = 0 then 'no policies: everything stays'
    else pg_catalog.format('%s policies, nothing overdue', v_policies) end;
  return next;

  "check" := 'legal holds';
  select pg_catalog.count(*), pg_catalog.to_char(pg_catalog.min(h.placed_at) at time zone 'UTC', 'YYYY-MM-DD') into v_count, v_archive
    from meshaudit_private.holds h;
  ok := true;
  detail := case when v_count = 0 then 'none' else pg_catalog.format('%s, the oldest of %s', v_count, v_archive) end;
  return next;

  -- of no harm, until planning a query over thousands of tables takes longer than the query
  "check" := 'empty partitions';
  select pg_catalog.count(*) into v_count
    from meshaudit_private.retirements t join meshaudit_private.partition_list() l on l.name = t.partition
    where not t.restored;
  ok := v_count <= 1000;
  detail := pg_catalog.format('%s retired periods have left an empty table', v_count)
    || case when ok then '' else '; those whose archive has expired can be dropped (docs/retention.md)' end;
  return next;
end
$$;

comment on function meshaudit_private.retention_plan(text) is 'meshaudit.retention_plan(), for a role.';
comment on function meshaudit.retention_plan() is
  'One row a partition or archive: action keep, archive, keep archive, expire or expired; since or from when it is due; and detail, why it is kept. Raises MA001 to an auditor of a part of the log.';
comment on function meshaudit_private.retention_status(text) is 'Rows of status() about retention.';
