-- Verification inside the database. meshaudit verify does the same from outside, sharing no code with this.
--
-- An entry is sound when its hash is that of its own bytes. From sound entries and their links follows what was
-- done: docs/verification.md has the rules. Being STABLE, the functions see one snapshot throughout.
--
-- Invariants: whatever is compared may be NULL, for whoever can alter rows can also drop NOT NULL; and a seq may be
-- the least or the greatest number there is, so none is added to unguarded.

create type meshaudit_private.suspect as (
  lane int, seq bigint, id bigint, prev_hash bytea, hash bytea, sound boolean, at text,
  before_seq bigint, next_seq bigint, head_seq bigint, head_hash bytea
);

create function meshaudit_private.is_sound(l meshaudit_private.ledger) returns boolean
language sql stable parallel safe
return coalesce(
  pg_catalog.octet_length(l.prev_hash) = 32
  and l.hash = meshaudit_private.entry_hash(l.prev_hash, l.lane, l.seq, meshaudit_private.entry_tail(
    l.id, l.secret_id, l.access_type, l."timestamp", l.user_identity, l.ip_address, l.operation, l.outcome,
    l.secret_table, l.scope, l.identity_source, l.claimed_identity, l.db_user, l.db_role, l.application_name,
    l.user_agent, l.request_id, l.access_id)), false);

-- Which entries are unsound. All the hashing is here, apart from the links, because only a query without an order
-- is given to parallel workers, and in plpgsql only RETURN QUERY is.
create function meshaudit_private.unsound(p_from timestamptz, p_to timestamptz) returns setof text
language plpgsql stable set search_path = ''
as $$
begin
  return query
    select pg_catalog.concat(l.tableoid, l.ctid)
    from meshaudit_private.ledger l
    where (p_from is null or l."timestamp" >= p_from) and (p_to is null or l."timestamp" < p_to)
      -- is_sound(l), written out: inlined, it would make a row of each row's columns first
      and (pg_catalog.octet_length(l.prev_hash) = 32
        and l.hash = meshaudit_private.entry_hash(l.prev_hash, l.lane, l.seq, meshaudit_private.entry_tail(
          l.id, l.secret_id, l.access_type, l."timestamp", l.user_identity, l.ip_address, l.operation, l.outcome,
          l.secret_table, l.scope, l.identity_source, l.claimed_identity, l.db_user, l.db_role, l.application_name,
          l.user_agent, l.request_id, l.access_id))) is not true;
end
$$;

-- Entries that do not simply continue the one before and lead to the next: only these can be at fault.
create function meshaudit_private.suspects(p_from timestamptz, p_to timestamptz)
returns setof meshaudit_private.suspect
language plpgsql stable set search_path = ''
as $$
declare
  v_unsound constant pg_catalog.text[] := array(select u from meshaudit_private.unsound(p_from, p_to) u);
begin
  return query
    with linked as (
      select l.lane, l.seq, l.id, l.prev_hash, l.hash,
        v_unsound = '{}' or pg_catalog.concat(l.tableoid, l.ctid) <> all (v_unsound) as sound,
        l.tableoid, l.ctid,
        pg_catalog.lag(l.seq) over w as before_seq, pg_catalog.lag(l.hash) over w as before_hash,
        pg_catalog.lead(l.seq) over w as next_seq, pg_catalog.lead(l.prev_hash) over w as next_prev
      from meshaudit_private.ledger l
      where (p_from is null or l."timestamp" >= p_from) and (p_to is null or l."timestamp" < p_to)
      -- as the primary key has them; an order by id as well would have to be sorted
      window w as (partition by l.lane order by l.seq)
    )
    select l.lane, l.seq, l.id, l.prev_hash, l.hash, l.sound, pg_catalog.concat(l.tableoid, l.ctid),
      l.before_seq, l.next_seq, h.seq, h.hash
    from linked l
    left join meshaudit_private.lane_heads h on h.lane = l.lane
    where not l.sound or h.seq is null or l.seq >= h.seq or l.seq < 1
      or least(l.before_seq, 9223372036854775806) + 1 is distinct from l.seq
      or least(l.seq, 9223372036854775806) + 1 is distinct from l.next_seq
      or l.prev_hash is distinct from l.before_hash or l.next_prev is distinct from l.hash
    order by l.lane, l.seq, l.id;
end
$$;

-- Whether the lane's head or the next entry holds this entry's hash. p_false: entries that do not count.
create function meshaudit_private.is_named(s meshaudit_private.suspect, p_false text[]) returns boolean
language sql stable set search_path = ''
as $$
  select coalesce(s.seq = s.head_seq and s.hash = s.head_hash, false) or exists (
    select from meshaudit_private.ledger l
    where l.lane = s.lane and l.seq = least(s.seq, 9223372036854775806) + 1 and l.seq <= s.head_seq and l.prev_hash = s.hash
      and pg_catalog.concat(l.tableoid, l.ctid) <> all (p_false))
    or exists (
    select from meshaudit_private.retired_runs r
    where r.lane = s.lane and r.first_seq = least(s.seq, 9223372036854775806) + 1 and r.prev_hash = s.hash)
$$;

-- Whether a sound entry was given a new hash: its neighbours, sound as well, contradict it.
create function meshaudit_private.made_anew(s meshaudit_private.suspect, p_false text[]) returns boolean
language plpgsql stable set search_path = ''
as $$
declare
  v_genesis constant pg_catalog.bool := s.seq = 1 and s.prev_hash <> (
    select meshaudit_private.genesis_hash(t.ledger_id, s.lane) from meshaudit_private.settings t);
  v_links pg_catalog.bool;
begin
  if meshaudit_private.is_named(s, p_false) then
    return v_genesis;
  elsif v_genesis or s.seq = s.head_seq then
    return true;
  elsif not exists (
      select from meshaudit_private.ledger l
      where l.lane = s.lane and l.seq = least(s.seq, 9223372036854775806) + 1 and pg_catalog.concat(l.tableoid, l.ctid) <> all (p_false))
    and not exists (select from meshaudit_private.retired_runs r where r.lane = s.lane and r.first_seq = least(s.seq, 9223372036854775806) + 1) then
    return false;  -- nothing is there that could name it
  end if;
  -- a break before it, which is its own because the next entry does not name it either
  select pg_catalog.bool_or(not meshaudit_private.is_sound(l) or l.hash = s.prev_hash) into v_links
    from meshaudit_private.ledger l where l.lane = s.lane and l.seq = s.seq - 1;
  select coalesce(pg_catalog.bool_or(r.hash = s.prev_hash) or v_links, v_links, pg_catalog.bool_or(r.hash = s.prev_hash)) into v_links
    from meshaudit_private.retired_runs r where r.lane = s.lane and r.last_seq = s.seq - 1;
  if not v_links then
    return true;
  end if;
  -- a break behind it, which is its own unless the next entry is unsound or made anew itself
  return exists (select from meshaudit_private.retired_runs r where r.lane = s.lane and r.first_seq = least(s.seq, 9223372036854775806) + 1)
    or exists (
    select from meshaudit_private.ledger l
    where l.lane = s.lane and l.seq = least(s.seq, 9223372036854775806) + 1 and meshaudit_private.is_sound(l)
      and pg_catalog.concat(l.tableoid, l.ctid) <> all (p_false)
      and case when l.seq = s.head_seq then l.hash = s.head_hash else coalesce((
        select pg_catalog.bool_or(n.prev_hash = l.hash) from meshaudit_private.ledger n
        where n.lane = s.lane and n.seq = least(s.seq, 9223372036854775805) + 2 and n.seq <= s.head_seq
          and pg_catalog.concat(n.tableoid, n.ctid) <> all (p_false)), true) end);
end
$$;

-- Whether an unsound entry would be sound at another of the given places.
create function meshaudit_private.is_displaced(s meshaudit_private.suspect, p_places meshaudit_private.suspect[])
returns boolean
language sql stable set search_path = ''
as $$
  select exists (
    select from meshaudit_private.ledger l, unnest(p_places) p
    where l.lane = s.lane and l.seq = s.seq and pg_catalog.concat(l.tableoid, l.ctid) = s.at
      and (p.lane, p.seq) <> (s.lane, s.seq) and pg_catalog.octet_length(l.prev_hash) = 32
      and l.hash = meshaudit_private.entry_hash(l.prev_hash, p.lane, p.seq, meshaudit_private.entry_tail(
        l.id, l.secret_id, l.access_type, l."timestamp", l.user_identity, l.ip_address, l.operation, l.outcome,
        l.secret_table, l.scope, l.identity_source, l.claimed_identity, l.db_user, l.db_role, l.application_name,
        l.user_agent, l.request_id, l.access_id)))
$$;

create function meshaudit_private.verify(from_time timestamptz, to_time timestamptz, p_role text)
returns table (lane int, seq bigint, id bigint, problem text)
language plpgsql stable security definer set search_path = ''
as $$
declare
  c_limited constant pg_catalog.bool := from_time is not null or to_time is not null;
  v_suspects meshaudit_private.suspect[];
  v_places meshaudit_private.suspect[];
  v_false pg_catalog.text[] := '{}'::pg_catalog.text[];  -- entries at a shared seq that are not the true one
  v_true pg_catalog.text;
  v_last pg_catalog.int8;
  s meshaudit_private.suspect;
  v_before meshaudit_private.suspect;
begin
  perform meshaudit_private.require_whole_log(p_role);
  if from_time >= to_time then
    perform meshaudit_private.refuse('MA005', 'the range of time is empty', 'It holds from_time <= timestamp < to_time; null is no bound.');
  end if;
  v_suspects := array(select u from meshaudit_private.suspects(from_time, to_time) u);

  -- places where a displaced entry may have come from; a bound, so that a ruined ledger is still told soon
  v_places := array(select p from unnest(v_suspects) p where not p.sound limit 200);

  -- downwards: whether an entry is the true one of its seq follows from which of the next ones is
  for s in
    select l.lane, l.seq, l.id, l.prev_hash, l.hash, l.sound, l.at, null::pg_catalog.int8, null::pg_catalog.int8, p.head_seq, p.head_hash
    from (
        select distinct u.lane, u.seq, u.head_seq, u.head_hash from unnest(v_suspects) u
        where u.seq between 1 and u.head_seq and (c_limited or u.before_seq = u.seq or u.next_seq = u.seq)
      ) p,
      lateral (
        select e.*, meshaudit_private.is_sound(e) as sound, pg_catalog.concat(e.tableoid, e.ctid) as at,
          pg_catalog.count(*) over () as together
        from meshaudit_private.ledger e where e.lane = p.lane and e.seq = p.seq
      ) l
    where l.together > 1
    order by l.lane desc, l.seq desc, l.id
  loop
    if v_before.lane is distinct from s.lane or v_before.seq is distinct from s.seq then
      v_true := null;
    end if;
    if s.sound and v_true is null and meshaudit_private.is_named(s, v_false) then
      v_true := s.at;
    else
      v_false := pg_catalog.array_append(v_false, s.at);
    end if;
    v_before := s;
  end loop;

  v_before := null;
  foreach s in array v_suspects loop
    lane := s.lane;
    -- what is missing before it
    if s.seq >= 1 and s.head_seq is not null
       and s.before_seq is distinct from s.seq - 1 and s.before_seq is distinct from s.seq then
      select pg_catalog.max(l.seq) into v_last from meshaudit_private.ledger l where l.lane = s.lane and l.seq < s.seq;
      seq := greatest(v_last, meshaudit_private.retired_before(s.lane, s.seq), 0) + 1;
      id := null;
      problem := meshaudit_private.gap(seq, least(s.seq - 1, s.head_seq));
      if problem is not null then
        return next;
      end if;
    end if;

    -- what is wrong with it
    seq := s.seq;
    id := s.id;
    problem := case
      when s.seq between 1 and s.head_seq is not true then 'inserted'
      when s.at = any (v_false) then (case when s.sound then 'forked' else 'inserted' end)
      when not s.sound then (case when meshaudit_private.is_displaced(s, v_places) then 'reordered' else 'edited' end)
      when meshaudit_private.made_anew(s, v_false) then 'edited'
    end;
    if problem is not null then
      return next;
    end if;

    -- what is missing behind it, up to the next entry; if that is looked at too, it tells
    if s.seq < s.head_seq and (s.next_seq is null or s.next_seq > s.seq + 1) then
      select pg_catalog.min(l.seq) into v_last from meshaudit_private.ledger l where l.lane = s.lane and l.seq > s.seq;
      v_last := least(v_last, meshaudit_private.retired_behind(s.lane, s.seq));
      if v_last is null or v_last < s.next_seq or s.next_seq is null then
        seq := greatest(s.seq, 0) + 1;
        id := null;
        problem := meshaudit_private.gap(seq, least(v_last - 1, s.head_seq));
        if problem is not null then
          return next;
        end if;
      end if;
    end if;
  end loop;

  -- lanes that are gone altogether, and what was retired
  if not c_limited then
    return query select r.lane, r.seq, r.id, r.problem from meshaudit_private.verify_retired() r order by r.lane, r.seq, r.id;
    return query
      select h.lane, 1::pg_catalog.int8, null::pg_catalog.int8, meshaudit_private.gap(1, h.seq)
      from meshaudit_private.lane_heads h
      where h.seq > 0 and not exists (select from meshaudit_private.ledger l where l.lane = h.lane)
        and not exists (select from meshaudit_private.retired_runs r where r.lane = h.lane)
      order by h.lane;
  end if;
end
$$;
revoke all on function meshaudit_private.verify(timestamptz, timestamptz, text) from public;
grant execute on function meshaudit_private.verify(timestamptz, timestamptz, text) to meshaudit_auditor, meshaudit_operator;

-- Before the snapshot is taken: a partition that is retired between the two would look cut out.
create function meshaudit_private.keep_partitions() returns void
language plpgsql volatile security definer set search_path = ''
as $$
begin
  lock table meshaudit_private.ledger in access share mode;
end
$$;
revoke all on function meshaudit_private.keep_partitions() from public;
grant execute on function meshaudit_private.keep_partitions() to meshaudit_auditor, meshaudit_operator;

-- as the caller, so that who asks is known (42_vault_api.sql); volatile, so that the second statement has a snapshot of its own.
-- What the whole log's verification found is recorded (59_verifications.sql), where something can be.
create function meshaudit.verify(from_time timestamptz default null, to_time timestamptz default null)
returns table (lane int, seq bigint, id bigint, problem text)
language sql volatile security invoker
begin atomic
  select meshaudit_private.keep_partitions();
  with found as materialized (
    select v.lane, v.seq, v.id, v.problem from meshaudit_private.verify(from_time, to_time, current_user) v
  )
  select f.lane, f.seq, f.id, f.problem from found f
  where (select coalesce(case when from_time is null and to_time is null then meshaudit_private.record_verification(
    null, 'database', null, null, (select pg_catalog.count(*) from found),
    (select pg_catalog.concat_ws(', ', 'lane ' || n.lane, 'seq ' || n.seq, 'id ' || n.id) || ': ' || n.problem
     from found n limit 1), current_user) end, 0) >= 0);
end;
revoke all on function meshaudit.verify(timestamptz, timestamptz) from public;
grant execute on function meshaudit.verify(timestamptz, timestamptz) to meshaudit_auditor, meshaudit_operator;

comment on type meshaudit_private.suspect is 'An entry and its neighbours, for verify(). "at" says which row it is.';
comment on function meshaudit_private.is_sound(meshaudit_private.ledger) is 'Whether an entry''s hash is that of its bytes.';
comment on function meshaudit_private.unsound(timestamptz, timestamptz) is 'Which rows'' hashes are not those of their bytes.';
comment on function meshaudit_private.suspects(timestamptz, timestamptz) is
  'Entries that do not simply continue the one before, with what is needed to tell why.';
comment on function meshaudit_private.is_named(meshaudit_private.suspect, text[]) is
  'Whether the head or the next entry of the lane holds this entry''s hash.';
comment on function meshaudit_private.made_anew(meshaudit_private.suspect, text[]) is
  'Whether a sound entry''s hash was made anew, as its sound neighbours tell.';
comment on function meshaudit_private.is_displaced(meshaudit_private.suspect, meshaudit_private.suspect[]) is
  'Whether an unsound entry belongs at another of the given places.';
comment on function meshaudit_private.keep_partitions() is 'Until the transaction ends, no partition is retired.';
comment on function meshaudit_private.verify(timestamptz, timestamptz, text) is 'meshaudit.verify(), for a role.';
comment on function meshaudit.verify(timestamptz, timestamptz) is
  'Recomputes every hash and link of the log, or of from_time <= timestamp < to_time. No row: intact. Otherwise lane, seq, id and the problem: edited, deleted, inserted, reordered or forked. It cannot see what a checkpoint kept outside would show: a log rewritten as a whole. Raises MA001 for who sees only part of the log.';
