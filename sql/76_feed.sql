-- Feeding: entries of the ledger become events of the feed; and who sees and who writes them.
--
-- What is new is found by lanes. A lane is locked until its transaction commits, and its seq has no gap: so the entries
-- up to the lane's committed head are all there, and the next that come have higher numbers. No access takes part in it.

-- A NOTIFY only says that it is worth looking: who follows looks by itself, too. Its queue is the whole cluster's, and
-- anybody can fill it; then the COMMIT fails of whoever adds to it. (To ask how full it is also clears it of what all have read.)
create function meshaudit_private.notify(p_channel text, p_payload text) returns void
language sql volatile
return case when pg_catalog.pg_notification_queue_usage() < 0.5 then pg_catalog.pg_notify(p_channel, p_payload) end;
comment on function meshaudit_private.notify(text, text) is 'NOTIFY, unless others have filled its queue.';

-- Writing by hand is refused, to everybody. The owner's functions run as it, while SET ROLE and a login show.
create function meshaudit_private.guard_feed() returns trigger
language plpgsql volatile set search_path = ''
as $$
begin
  if tg_op in ('UPDATE', 'TRUNCATE') or current_user <> 'meshaudit_owner' or session_user = 'meshaudit_owner'
     or pg_catalog.current_setting('role') = 'meshaudit_owner' then
    raise exception 'what meshaudit has told is append-only: % is refused', pg_catalog.lower(tg_op)
      using errcode = 'MA003', hint = 'Only meshaudit''s own functions write here.';
  end if;
  return null;
end
$$;
comment on function meshaudit_private.guard_feed() is 'Raises MA003 unless a function of this schema adds or prunes.';

create trigger append_only before insert or update or delete or truncate on meshaudit.audit_feed
  for each statement execute function meshaudit_private.guard_feed();
alter table meshaudit.audit_feed enable always trigger append_only;

-- The scopes whose events the caller may see. Realtime asks as a login of its own, in the name of each subscriber: there,
-- and only for the feed, the subject is that of the subscriber's claims.
create function meshaudit_private.feed_scopes(p_role text) returns text[]
language plpgsql stable security definer set search_path = ''
as $$
declare
  v_claims constant pg_catalog.text := pg_catalog.current_setting('request.jwt.claims', true);
begin
  if v_claims <> '' and (select session_user = any (s.realtime_roles) from meshaudit_private.settings s) then
    return (
      select coalesce(pg_catalog.array_agg(a.scope), '{}') from meshaudit_private.auditors a
      where a.identity_source = 'jwt'
        and a.identity = meshaudit_private.subject(meshaudit_private.json_object(v_claims))
    );
  end if;
  return meshaudit_private.visible_scopes(p_role);
end
$$;
revoke all on function meshaudit_private.feed_scopes(text) from public;
grant execute on function meshaudit_private.feed_scopes(text) to meshaudit_auditor;
comment on function meshaudit_private.feed_scopes(text) is
  'Scopes of the feed that a role, the request''s JWT subject or Realtime''s subscriber may read; ''*'' is all.';

create policy auditors_read on meshaudit.audit_feed for select to meshaudit_auditor
  using ('*' = any ((select meshaudit_private.feed_scopes(current_user))::text[])
         or scope = any ((select meshaudit_private.feed_scopes(current_user))::text[]));
grant select on meshaudit.audit_feed to meshaudit_auditor;

-- Adds the entries in these ranges of lanes, of one side of p_since. Returns how many. The settings keep the plan to what
-- it should be, whatever the statistics say: an index's range a lane and partition.
create function meshaudit_private.copy_to_feed(
  p_lanes int[], p_after bigint[], p_upto bigint[], p_last_id bigint, p_since timestamptz, p_before timestamptz
) returns bigint
language plpgsql volatile
set search_path = '' set enable_hashjoin = off set enable_mergejoin = off set enable_seqscan = off set enable_bitmapscan = off set jit = off
as $$
declare
  v_rows pg_catalog.int8;
begin
  insert into meshaudit.audit_feed (
      feed_id, id, secret_id, access_type, "timestamp", user_identity, ip_address, operation, outcome, secret_table, scope,
      identity_source, claimed_identity, db_user, db_role, application_name, user_agent, request_id, access_id, lane, seq,
      hash, kind)
    select p_last_id + pg_catalog.row_number() over (order by l.id), l.id, l.secret_id, l.access_type, l."timestamp",
      l.user_identity, l.ip_address, l.operation, l.outcome, l.secret_table, l.scope, l.identity_source,
      l.claimed_identity, l.db_user, l.db_role, l.application_name, l.user_agent, l.request_id, l.access_id, l.lane,
      l.seq, l.hash, 'entry'
    from unnest(p_lanes, p_after, p_upto) m (lane, after, upto),
      lateral (
        select e.* from meshaudit_private.ledger e
        where e.lane = m.lane and e.seq > m.after and e.seq <= m.upto
          and e."timestamp" >= p_since and e."timestamp" < p_before
        order by e.seq limit m.upto - m.after) l;
  get diagnostics v_rows = row_count;
  return v_rows;
end
$$;
comment on function meshaudit_private.copy_to_feed(int[], bigint[], bigint[], bigint, timestamptz, timestamptz) is
  'Adds the entries of ranges of lanes, recorded in a range of time, to the feed; returns how many.';

-- Adds what has been committed since the last run, at most p_limit entries; returns how many.
create function meshaudit_private.feed_entries(p_last_id bigint, p_limit int) returns bigint
language plpgsql volatile set search_path = ''
as $$
declare
  v_lanes pg_catalog.int4[];
  v_after pg_catalog.int8[];
  v_upto pg_catalog.int8[];
  v_wanted pg_catalog.int8;
  v_rows pg_catalog.int8;
  v_recent constant pg_catalog.timestamptz := pg_catalog.clock_timestamp() - '1 day'::pg_catalog.interval;
begin
  -- a long batch in one lane lets the others go first
  select pg_catalog.array_agg(t.lane), pg_catalog.array_agg(t.fed), pg_catalog.array_agg(t.upto),
      pg_catalog.sum(t.upto - t.fed)
    into v_lanes, v_after, v_upto, v_wanted
    from (
      select m.lane, m.fed, least(m.seq, m.fed + p_limit - (m.total - (m.seq - m.fed))) as upto
      from (
        select h.lane, h.seq, coalesce(f.seq, 0) as fed,
          pg_catalog.sum(h.seq - coalesce(f.seq, 0)) over (order by h.seq - coalesce(f.seq, 0), h.lane) as total
        from meshaudit_private.lane_heads h
        left join meshaudit_private.feed_lanes f on f.lane = h.lane
        where h.seq > coalesce(f.seq, 0)) m
      where m.total - (m.seq - m.fed) < p_limit) t;
  if v_lanes is null then
    return 0;
  end if;
  v_rows := meshaudit_private.copy_to_feed(v_lanes, v_after, v_upto, p_last_id, v_recent, 'infinity');
  -- entries bear the time of their access: of a long transaction, or of a record that was sealed late, it is older
  if v_rows < v_wanted then
    v_rows := v_rows
      + meshaudit_private.copy_to_feed(v_lanes, v_after, v_upto, p_last_id + v_rows, '-infinity', v_recent);
  end if;
  insert into meshaudit_private.feed_lanes as f (lane, seq)
    select m.lane, m.upto from unnest(v_lanes, v_upto) m (lane, upto)
    on conflict (lane) do update set seq = excluded.seq;
  return v_rows;
end
$$;
comment on function meshaudit_private.feed_entries(bigint, int) is
  'Adds the entries that were committed since the last run to the feed, at most so many; returns how many.';

-- One run: entries, then alerts, pruning, and the word to who listens. Returns the number of events added; 0 also if another runs.
create function meshaudit_private.feed(p_limit int) returns bigint
language plpgsql volatile security definer set search_path = ''
as $$
declare
  s meshaudit_private.feed_state;
  v_last pg_catalog.int8;
  v_keep pg_catalog.int8;
  v_failure pg_catalog.text;
begin
  if pg_catalog.current_setting('transaction_isolation') <> 'read committed' then
    -- it must see entries that are committed after it began
    raise exception 'feeding takes a READ COMMITTED transaction' using errcode = 'MA005',
      hint = 'Run it in autocommit, or in a transaction of isolation level READ COMMITTED.';
  end if;
  select * into s from meshaudit_private.feed_state for update skip locked;
  if not found then
    return 0;
  end if;
  v_last := s.last_id + meshaudit_private.feed_entries(s.last_id, p_limit);
  -- a rule that fails keeps no entry out of the feed
  begin
    v_last := v_last + meshaudit_private.evaluate(v_last,
      case when v_last > s.last_id then pg_catalog.clock_timestamp() - s.ran_at end);
  exception when others then
    v_failure := 'alerts: ' || sqlerrm;
  end;

  select c.feed_keep into v_keep from meshaudit_private.settings c;
  -- more than a run adds: a lowered setting takes effect by and by
  delete from meshaudit.audit_feed f
    where f.feed_id <= least(v_last - v_keep, (select min(o.feed_id) from meshaudit.audit_feed o) + 2 * p_limit);
  if v_last > s.last_id or s.ran_at is null or s.failure is distinct from v_failure
     or s.ran_at < pg_catalog.clock_timestamp() - '5 seconds'::pg_catalog.interval then
    update meshaudit_private.feed_state set
      last_id = v_last, ran_at = pg_catalog.clock_timestamp(), failure = v_failure,
      failed_at = case when v_failure is not null then pg_catalog.clock_timestamp() end where singleton;
  end if;
  if v_last > s.last_id then
    perform meshaudit_private.notify('meshaudit_feed', v_last::pg_catalog.text);
  end if;
  return v_last - s.last_id;
end
$$;
revoke all on function meshaudit_private.feed(int) from public;
grant execute on function meshaudit_private.feed(int) to meshaudit_operator;
comment on function meshaudit_private.feed(int) is 'meshaudit.feed(), for at most so many entries.';

-- After sealing: whatever goes wrong here is noted, and undoes nothing that was sealed. It ends soon, however much there is
-- to feed: the entries just made are visible only when it is done.
create function meshaudit_private.feed_after_seal(p_limit int) returns bigint
language plpgsql volatile security definer set search_path = ''
as $$
declare
  c_slice constant pg_catalog.int4 := 2000;
  v_until constant pg_catalog.timestamptz := pg_catalog.clock_timestamp() + '0.1 s'::pg_catalog.interval;
  v_fed pg_catalog.int8;
  v_total pg_catalog.int8 := 0;
begin
  loop
    v_fed := meshaudit_private.feed(c_slice);
    v_total := v_total + v_fed;
    exit when v_fed < c_slice or v_total >= p_limit or pg_catalog.clock_timestamp() > v_until;
  end loop;
  return v_total;
exception when others then
  raise warning 'the feed was not filled: %', sqlerrm;
  update meshaudit_private.feed_state set failed_at = pg_catalog.clock_timestamp(), failure = sqlerrm
    where singleton and exists (select from meshaudit_private.feed_state s for update skip locked);
  return 0;
end
$$;
revoke all on function meshaudit_private.feed_after_seal(int) from public;
grant execute on function meshaudit_private.feed_after_seal(int) to meshaudit_operator;
comment on function meshaudit_private.feed_after_seal(int) is 'feed(), but a failure is only noted.';

create function meshaudit_private.feed_range(out oldest bigint, out newest bigint)
language sql stable security definer set search_path = ''
as $$
  select (select min(f.feed_id) from meshaudit.audit_feed f), s.last_id from meshaudit_private.feed_state s
$$;
revoke all on function meshaudit_private.feed_range() from public;
grant execute on function meshaudit_private.feed_range() to meshaudit_auditor;
comment on function meshaudit_private.feed_range() is 'meshaudit.feed_range().';

-- For who follows: asking the log would be an entry, which would have to be fed. Says nothing of what there is.
create function meshaudit_private.feed_is_behind() returns boolean
language sql volatile security definer set search_path = ''
as $$
  select coalesce(s.ran_at < pg_catalog.clock_timestamp() - '10 seconds'::pg_catalog.interval, true) and exists (
    select from meshaudit_private.lane_heads h left join meshaudit_private.feed_lanes f on f.lane = h.lane
    where h.seq > coalesce(f.seq, 0))
  from meshaudit_private.feed_state s
$$;
revoke all on function meshaudit_private.feed_is_behind() from public;
grant execute on function meshaudit_private.feed_is_behind() to meshaudit_auditor;
comment on function meshaudit_private.feed_is_behind() is 'meshaudit.feed_is_behind().';

-- It starts at the present, not with the whole history.
insert into meshaudit_private.feed_lanes (lane, seq) select h.lane, h.seq from meshaudit_private.lane_heads h;
