-- Which partitions there are, and which of them may be retired.

create function meshaudit_private.partition_list()
returns table (name text, leaf regclass, from_time timestamptz, to_time timestamptz)
language sql stable set search_path = '' set timezone = 'UTC' set datestyle = 'ISO'
as $$
  select c.relname::pg_catalog.text, c.oid::pg_catalog.regclass,
    pg_catalog.substring(e.bound, 'FROM [(]''([^'']+)''')::pg_catalog.timestamptz,
    pg_catalog.substring(e.bound, 'TO [(]''([^'']+)''')::pg_catalog.timestamptz
  from pg_catalog.pg_inherits i
  join pg_catalog.pg_class c on c.oid = i.inhrelid,
    lateral (select pg_catalog.pg_get_expr(c.relpartbound, c.oid)) e (bound)
  where i.inhparent = 'meshaudit_private.ledger'::pg_catalog.regclass and e.bound <> 'DEFAULT'
$$;

-- Whether a hold matches an entry of the partition.
create function meshaudit_private.held_by(p_leaf regclass, p_from timestamptz, p_to timestamptz) returns bigint
language plpgsql stable set search_path = ''
as $$
declare
  h meshaudit_private.holds;
  v_found pg_catalog.bool;
begin
  for h in
    select * from meshaudit_private.holds k
    where coalesce(k.from_time < p_to, true) and coalesce(k.to_time > p_from, true) order by k.hold
  loop
    execute pg_catalog.format('select exists (select from %s l
        where ($1 is null or l.secret_id = $1) and ($2 is null or l.user_identity = any ($2)) and ($3 is null or l.scope = $3)
          and ($4 is null or l."timestamp" >= $4) and ($5 is null or l."timestamp" < $5))', p_leaf)
      into v_found using h.secret_id, meshaudit_private.names_of(h.user_identity), h.scope, h.from_time, h.to_time;
    if v_found then
      return h.hold;
    end if;
  end loop;
  return null;
end
$$;

-- Why a partition cannot be retired now; null: nothing speaks against it.
create function meshaudit_private.why_kept(p_leaf regclass, p_from timestamptz, p_to timestamptz) returns text
language plpgsql stable set search_path = ''
as $$
declare
  v_keep constant pg_catalog.interval := (select s.keep_in_database from meshaudit_private.settings s);
  k pg_catalog.record;
  v_hold pg_catalog.int8;
begin
  if p_to > pg_catalog.clock_timestamp() - v_keep then
    return pg_catalog.format('it ends less than %s ago (setting keep_in_database)', v_keep);
  end if;
  select * into k from meshaudit_private.kept_in_database(p_leaf, p_to);
  if k.until > pg_catalog.clock_timestamp() then
    return pg_catalog.format('scope %s is kept in the database until %s (retention policy)', k.scope,
      pg_catalog.to_char(k.until at time zone 'UTC', 'YYYY-MM-DD'));
  end if;
  if (select j.armed from meshaudit_private.journal j) then
    if (select p.sealed_at is null or p.sealed_at < pg_catalog.clock_timestamp() - '1 hour'::pg_catalog.interval
        from meshaudit_private.journal_progress p) then
      return 'the journal has not been sealed for an hour and may hold records of its time: run meshaudit seal';
    end if;
    if exists (
        select from meshaudit_private.journal_pending p
        where meshaudit_private.time_of((p.payload::meshaudit_private.journal_record).at) < p_to) then
      return 'the journal holds records of its time that wait for the end of their transaction';
    end if;
  end if;
  v_hold := meshaudit_private.held_by(p_leaf, p_from, p_to);
  if v_hold is not null then
    return pg_catalog.format('legal hold %s is on entries of it', v_hold);
  end if;
  return null;
end
$$;

create function meshaudit_private.partitions(p_role text)
returns table (partition text, from_time timestamptz, to_time timestamptz, state text, detail text)
language plpgsql stable security definer set search_path = ''
as $$
declare
  p pg_catalog.record;
  r meshaudit_private.retirements;
begin
  perform meshaudit_private.require_whole_log(p_role);
  for p in select * from meshaudit_private.partition_list() l order by l.from_time loop
    select * into r from meshaudit_private.retirements t where t.partition = p.name;
    partition := p.name;
    from_time := p.from_time;
    to_time := p.to_time;
    detail := case when r.restored is not false then meshaudit_private.why_kept(p.leaf, p.from_time, p.to_time) end;
    state := case when not r.restored then 'retired' when r.restored then 'restored'
      when detail is null then 'ready' else 'kept' end;
    return next;
  end loop;
end
$$;
revoke all on function meshaudit_private.partitions(text) from public;
grant execute on function meshaudit_private.partitions(text) to meshaudit_auditor, meshaudit_operator;

create function meshaudit.partitions()
returns table (partition text, from_time timestamptz, to_time timestamptz, state text, detail text)
language sql stable security invoker
begin atomic
  select p.partition, p.from_time, p.to_time, p.state, p.detail from meshaudit_private.partitions(current_user) p;
end;
revoke all on function meshaudit.partitions() from public;
grant execute on function meshaudit.partitions() to meshaudit_auditor, meshaudit_operator;

create function meshaudit_private.retirements(p_role text)
returns table (partition text, manifest text, lane int, seq bigint, restored boolean, retired_at timestamptz)
language plpgsql stable security definer set search_path = ''
as $$
begin
  perform meshaudit_private.require_whole_log(p_role);
  return query
    select r.partition, r.manifest, r.lane, r.seq, r.restored, r.retired_at
    from meshaudit_private.retirements r order by r.number;
end
$$;
revoke all on function meshaudit_private.retirements(text) from public;
grant execute on function meshaudit_private.retirements(text) to meshaudit_auditor, meshaudit_operator;

create function meshaudit.retirements()
returns table (partition text, manifest text, lane int, seq bigint, restored boolean, retired_at timestamptz)
language sql stable security invoker
begin atomic
  select r.partition, r.manifest, r.lane, r.seq, r.restored, r.retired_at from meshaudit_private.retirements(current_user) r;
end;
revoke all on function meshaudit.retirements() from public;
grant execute on function meshaudit.retirements() to meshaudit_auditor, meshaudit_operator;

comment on function meshaudit_private.partition_list() is 'The ledger''s partitions and their bounds, the default one aside.';
comment on function meshaudit_private.held_by(regclass, timestamptz, timestamptz) is 'A legal hold that matches an entry of a partition; null if none does.';
comment on function meshaudit_private.why_kept(regclass, timestamptz, timestamptz) is 'Why a partition cannot be retired now; null if it can.';
comment on function meshaudit_private.partitions(text) is 'meshaudit.partitions(), for a role.';
comment on function meshaudit.partitions() is
  'The ledger''s partitions, oldest first: their bounds, and state kept (detail says why), ready (may be archived and retired), retired or restored. Raises MA001 to an auditor of a part of the log.';
comment on function meshaudit_private.retirements(text) is 'meshaudit.retirements(), for a role.';
comment on function meshaudit.retirements() is
  'Retired partitions, in the order of their retirement: the archive''s manifest, the lane and seq of the entry that records it, and whether it is restored. Raises MA001 to an auditor of a part of the log.';
