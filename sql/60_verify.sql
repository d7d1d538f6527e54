-- Verification inside the database. meshaudit verify does the same from outside, sharing no code with this.
--
-- An entry is sound when its hash is that of its own bytes. From sound entries and their links follows what was
-- done: docs/verification.md has the rules. Being STABLE, the function sees one snapshot throughout.

create type meshaudit_private.suspect as (
  lane int, seq bigint, id bigint, prev_hash bytea, hash bytea, sound boolean, tail bytea,
  before_seq bigint, before_id bigint, before_hash bytea, before_sound boolean,
  next_seq bigint, next_prev bytea, head_seq bigint, head_hash bytea
);

-- Entries that do not simply continue the one before: unsound, unlinked, after a gap, a lane's first and last.
create function meshaudit_private.suspects(p_from timestamptz, p_to timestamptz)
returns setof meshaudit_private.suspect
language sql stable set search_path = ''
as $$
  with checked as (
    select l.lane, l.seq, l.id, l.prev_hash, l.hash,
      l.hash = meshaudit_private.entry_hash(l.prev_hash, l.lane, l.seq, meshaudit_private.entry_tail(
        l.id, l.secret_id, l.access_type, l."timestamp", l.user_identity, l.ip_address, l.operation, l.outcome,
        l.secret_table, l.scope, l.identity_source, l.claimed_identity, l.db_user, l.db_role, l.application_name,
        l.user_agent, l.request_id, l.access_id)) as sound
    from meshaudit_private.ledger l
    where (p_from is null or l."timestamp" >= p_from) and (p_to is null or l."timestamp" < p_to)
  ), linked as (
    select c.*,
      pg_catalog.lag(c.seq) over w as before_seq, pg_catalog.lag(c.id) over w as before_id,
      pg_catalog.lag(c.hash) over w as before_hash, pg_catalog.lag(c.sound) over w as before_sound,
      pg_catalog.lead(c.seq) over w as next_seq, pg_catalog.lead(c.prev_hash) over w as next_prev
    from checked c
    window w as (partition by c.lane order by c.seq, c.id)
  )
  select l.lane, l.seq, l.id, l.prev_hash, l.hash, l.sound,
    case when not l.sound then (
      select meshaudit_private.entry_tail(
        e.id, e.secret_id, e.access_type, e."timestamp", e.user_identity, e.ip_address, e.operation, e.outcome,
        e.secret_table, e.scope, e.identity_source, e.claimed_identity, e.db_user, e.db_role, e.application_name,
        e.user_agent, e.request_id, e.access_id)
      from meshaudit_private.ledger e
      where e.lane = l.lane and e.seq = l.seq and e.id = l.id and e.hash = l.hash limit 1) end,
    l.before_seq, l.before_id, l.before_hash, l.before_sound, l.next_seq, l.next_prev, h.seq, h.hash
  from linked l
  left join meshaudit_private.lane_heads h on h.lane = l.lane
  where not l.sound or l.before_seq is null or l.next_seq is null or l.seq <> l.before_seq + 1
    or l.prev_hash <> l.before_hash or l.next_seq = l.seq or h.seq is null or l.seq > h.seq
  order by l.lane, l.seq, l.id
$$;

-- Says that entries p_from to p_to of a lane are gone, unless a limited range only left them out.
create function meshaudit_private.gap(p_lane int, p_from bigint, p_to bigint) returns text
language sql stable set search_path = ''
as $$
  select case
    when pg_catalog.count(distinct l.seq) = p_to - p_from + 1 then null
    when p_to = p_from then 'deleted'
    else pg_catalog.format('deleted (entries %s to %s)', p_from, p_to)
  end
  from meshaudit_private.ledger l
  where l.lane = p_lane and l.seq between p_from and p_to
$$;

create function meshaudit.verify(from_time timestamptz default null, to_time timestamptz default null)
returns table (lane int, seq bigint, id bigint, problem text)
language plpgsql stable security definer set search_path = ''
as $$
declare
  v_suspects constant meshaudit_private.suspect[] := array(select s from meshaudit_private.suspects(from_time, to_time) s);
  v_places meshaudit_private.suspect[];
  s meshaudit_private.suspect;
begin
  -- places where a displaced entry may have come from; a bound, so that a ruined ledger is still told soon
  v_places := array(select p from unnest(v_suspects) p where not p.sound limit 200);

  foreach s in array v_suspects loop
    lane := s.lane;
    -- what is missing before it
    if s.seq > coalesce(s.before_seq, 0) + 1 then
      seq := coalesce(s.before_seq, 0) + 1;
      id := null;
      problem := meshaudit_private.gap(s.lane, seq, s.seq - 1);
      if problem is not null then
        return next;
      end if;
    end if;

    -- what is wrong with it
    seq := s.seq;
    id := s.id;
    problem := case
      when (s.before_seq = s.seq or s.next_seq = s.seq)
        and not (s.sound and coalesce(s.hash = s.head_hash or exists (
          select from meshaudit_private.ledger l where l.lane = s.lane and l.seq = s.seq + 1 and l.prev_hash = s.hash), false))
        then (case when s.sound then 'forked' else 'inserted' end)
      when s.head_seq is null or s.seq > s.head_seq then 'inserted'
      when not s.sound and exists (
          select from unnest(v_places) p
          where (p.lane, p.seq) <> (s.lane, s.seq)
            and meshaudit_private.entry_hash(s.prev_hash, p.lane, p.seq, s.tail) = s.hash)
        then 'reordered'
      when not s.sound then 'edited'
      -- sound, so somebody made the hash anew: the neighbours tell
      when s.seq = 1 and s.prev_hash <> meshaudit_private.genesis_hash(
          (select t.ledger_id from meshaudit_private.settings t), s.lane) then 'edited'
      when s.before_seq = s.seq - 1 and s.prev_hash <> s.before_hash and s.before_sound
        and (s.next_prev <> s.hash or (s.next_seq is null and s.hash <> s.head_hash)) then 'edited'
      when s.next_seq is null and to_time is null and s.seq = s.head_seq and s.hash <> s.head_hash
        and s.before_hash is not distinct from (case when s.seq > 1 then s.prev_hash end) then 'edited'
    end;
    if problem is null and s.before_seq = s.seq - 1 and s.prev_hash <> s.before_hash and s.before_sound then
      seq := s.before_seq;
      id := s.before_id;
      problem := 'edited';
    end if;
    if problem is not null then
      return next;
    end if;

    -- what is missing after the last
    if s.next_seq is null and to_time is null and s.head_seq > s.seq then
      seq := s.seq + 1;
      id := null;
      problem := meshaudit_private.gap(s.lane, seq, s.head_seq);
      if problem is not null then
        return next;
      end if;
    end if;
  end loop;

  -- lanes that are gone altogether
  if from_time is null and to_time is null then
    return query
      select h.lane, 1::pg_catalog.int8, null::pg_catalog.int8, meshaudit_private.gap(h.lane, 1, h.seq)
      from meshaudit_private.lane_heads h
      where h.seq > 0 and not exists (select from meshaudit_private.ledger l where l.lane = h.lane)
      order by h.lane;
  end if;
end
$$;
revoke all on function meshaudit.verify(timestamptz, timestamptz) from public;
grant execute on function meshaudit.verify(timestamptz, timestamptz) to meshaudit_auditor, meshaudit_operator;

comment on type meshaudit_private.suspect is 'An entry and its neighbours, for verify().';
comment on function meshaudit_private.suspects(timestamptz, timestamptz) is
  'Entries that do not simply continue the one before, with what is needed to tell why.';
comment on function meshaudit_private.gap(int, bigint, bigint) is 'Says that entries of a lane are gone; null if they are there.';
comment on function meshaudit.verify(timestamptz, timestamptz) is
  'Recomputes every hash and link of the log, or of from_time <= timestamp < to_time. No row: intact. Otherwise lane, seq, id and the problem: edited, deleted, inserted, reordered or forked. It cannot see what a checkpoint kept outside would show: a log rewritten as a whole.';
