-- The rules: what they find in new events of the feed (evaluate_entries) and in the system's state (evaluate_system).
-- A hit says what happened; whether it becomes an alert or one more of the same is raise_alerts()'s to decide.

create type meshaudit_private.alert_hit as (
  rule text, severity text, dedupe text, window_start timestamptz, scope text, user_identity text, identity_source text,
  message text, happened_at timestamptz, count bigint, more bigint, entry_id bigint, secret_id text, secret_table text,
  ip_address inet
);
comment on type meshaudit_private.alert_hit is
  'What a rule has found: count is how often if it is the first of its window, more how often since the last run.';

create function meshaudit_private.window_of(p_period interval, p_at timestamptz) returns timestamptz
language sql immutable
return pg_catalog.date_bin(p_period, p_at, '2000-01-01 00:00:00+00'::pg_catalog.timestamptz);
comment on function meshaudit_private.window_of(interval, timestamptz) is 'Start of the window that holds a time.';

-- An entry of the log about the log itself is no access to a secret.
create function meshaudit_private.is_access(p_table text) returns boolean
language sql immutable
return p_table = 'meshaudit.secrets' or p_table !~ '^meshaudit[.]';
comment on function meshaudit_private.is_access(text) is 'Whether an entry of that secret_table is about a secret.';

-- Null p_scope is all scopes; the length tells where a name ends and a scope begins.
create function meshaudit_private.dedupe_of(p_source text, p_identity text, p_scope text) returns text
language sql stable
return pg_catalog.concat_ws(' ', p_source, pg_catalog.char_length(p_identity), p_identity, p_scope);
comment on function meshaudit_private.dedupe_of(text, text, text) is 'Names whom an alert is about: an identity, in a scope or in all.';

-- Rules of one entry each: rolled_back, gap, hours.
create function meshaudit_private.hits_of_entries(p_rules text[], p_after bigint, p_upto bigint) returns meshaudit_private.alert_hit[]
language sql stable set search_path = ''
as $$
  select pg_catalog.array_agg(row(h.rule, h.severity, meshaudit_private.dedupe_of(h.identity_source, h.user_identity, h.scope),
      h.window_start, h.scope, h.user_identity, h.identity_source, h.message, h.happened_at, h.count, h.count, h.id,
      h.secret_id, h.secret_table, h.ip_address)::meshaudit_private.alert_hit)
  from (
    select distinct on (r.rule, f.identity_source, f.user_identity, f.scope, meshaudit_private.window_of(r.period, f."timestamp"))
      r.rule, r.severity, f.identity_source, f.user_identity, f.scope, f.id, f.secret_id, f.secret_table, f.ip_address,
      meshaudit_private.window_of(r.period, f."timestamp") as window_start, f."timestamp" as happened_at,
      pg_catalog.count(*) over (partition by r.rule, f.identity_source, f.user_identity, f.scope,
        meshaudit_private.window_of(r.period, f."timestamp")) as count,
      case r.rule
        when 'rolled_back' then 'a secret was read, then the transaction was rolled back'
        when 'gap' then 'the journal has lost records: ' || f.secret_id
        else pg_catalog.format('an access at %s (%s)',
          pg_catalog.to_char(f."timestamp" at time zone r.time_zone, 'Dy HH24:MI'), r.time_zone)
      end as message
    from meshaudit.audit_feed f
    join meshaudit_private.alert_rules r on r.rule = any (p_rules) and case r.rule
      when 'rolled_back' then f.outcome = 'rolled_back' and f.operation = 'read' and meshaudit_private.is_access(f.secret_table)
      when 'gap' then f.secret_table = 'meshaudit.journal' and f.secret_id ~ '^gap '
      when 'hours' then meshaudit_private.is_access(f.secret_table) and not (
        extract(isodow from f."timestamp" at time zone r.time_zone) = any (r.days)
        and case when r.opens <= r.closes
          then (f."timestamp" at time zone r.time_zone)::pg_catalog.time >= r.opens
            and (f."timestamp" at time zone r.time_zone)::pg_catalog.time < r.closes
          else (f."timestamp" at time zone r.time_zone)::pg_catalog.time >= r.opens
            or (f."timestamp" at time zone r.time_zone)::pg_catalog.time < r.closes end)
      else false end
    where f.feed_id > p_after and f.feed_id <= p_upto and f.kind = 'entry'
    order by r.rule, f.identity_source, f.user_identity, f.scope,
      meshaudit_private.window_of(r.period, f."timestamp"), f.feed_id) h
$$;
comment on function meshaudit_private.hits_of_entries(text[], bigint, bigint) is 'What rolled_back, gap and hours find in a range of the feed.';

-- Rules that count: reads, denials. A window slides by sixths.
--
-- What an auditor of one scope is told depends on no other: each scope is counted for itself. The total is for who sees
-- everything: where several scopes reach the threshold and none does alone, and from then on for its window.
create function meshaudit_private.hits_of_counts(p_rules text[], p_after bigint, p_upto bigint) returns meshaudit_private.alert_hit[]
language plpgsql volatile set search_path = ''
as $$
begin
  insert into meshaudit_private.alert_counts as c (rule, identity_source, user_identity, scope, bucket, count)
    select r.rule, f.identity_source, n.who, f.scope, meshaudit_private.window_of(r.period / 6, f."timestamp"), pg_catalog.count(*)
    from meshaudit.audit_feed f
    cross join lateral (select meshaudit_private.first_name(f.user_identity)) n (who)
    join meshaudit_private.alert_rules r on r.rule = any (p_rules) and case r.rule
      when 'reads' then f.operation = 'read' and f.outcome <> 'denied'
      when 'denials' then f.outcome = 'denied' else false end
    where f.feed_id > p_after and f.feed_id <= p_upto and f.kind = 'entry' and meshaudit_private.is_access(f.secret_table)
    group by 1, 2, 3, 4, 5
    on conflict (rule, identity_source, user_identity, scope, bucket) do update set count = c.count + excluded.count;
  return (
    with fresh as (
      select r.rule, r.severity, r.period, r.threshold, f.identity_source, w.who as user_identity, f.scope,
        max(f."timestamp") as last_at, max(f.id) as last_id, pg_catalog.count(*) as count,
        min(f.ip_address) as ip, max(f.ip_address) as last_ip
      from meshaudit.audit_feed f
      cross join lateral (select meshaudit_private.first_name(f.user_identity)) w (who)
      join meshaudit_private.alert_rules r on r.rule = any (p_rules) and case r.rule
        when 'reads' then f.operation = 'read' and f.outcome <> 'denied'
        when 'denials' then f.outcome = 'denied' else false end
      where f.feed_id > p_after and f.feed_id <= p_upto and f.kind = 'entry'
        and meshaudit_private.is_access(f.secret_table)
      group by r.rule, f.identity_source, w.who, f.scope
    ), seen as (
      -- null is the total
      select n.* from fresh n
      union all
      select n.rule, n.severity, n.period, n.threshold, n.identity_source, n.user_identity, null, max(n.last_at),
        max(n.last_id), pg_catalog.sum(n.count)::pg_catalog.int8, min(n.ip), max(n.last_ip)
      from fresh n group by n.rule, n.severity, n.period, n.threshold, n.identity_source, n.user_identity
    )
    select pg_catalog.array_agg(row(n.rule, n.severity, d.dedupe, d.window_start, coalesce(n.scope, '*'), n.user_identity,
        n.identity_source, pg_catalog.format('%s %s within %s', s.total, n.rule, n.period), n.last_at, s.total, n.count,
        n.last_id, null, null, case when n.ip = n.last_ip then n.ip end)::meshaudit_private.alert_hit
        order by n.last_id, n.scope)
    from seen n,
    lateral (
      select meshaudit_private.dedupe_of(n.identity_source, n.user_identity, n.scope) as dedupe,
        meshaudit_private.window_of(n.period, n.last_at) as window_start) d,
    lateral (
      select pg_catalog.sum(c.count)::pg_catalog.int8 as total, max(c.count) as most
      from (
        select pg_catalog.sum(c.count) as count
        from meshaudit_private.alert_counts c
        where c.rule = n.rule and c.identity_source = n.identity_source and c.user_identity = n.user_identity
          and (n.scope is null or c.scope = n.scope) and c.bucket > n.last_at - n.period and c.bucket <= n.last_at
        group by c.scope) c) s
    where s.total >= n.threshold and (n.scope is not null or s.most < n.threshold or exists (
      select from meshaudit_private.alerts a
      where a.rule = n.rule and a.dedupe = d.dedupe and a.window_start = d.window_start)));
end
$$;
comment on function meshaudit_private.hits_of_counts(text[], bigint, bigint) is 'What reads and denials find in a range of the feed.';

-- Rules about what is new: new_secret, new_network. What was not used for 90 days is new again.
create function meshaudit_private.hits_of_news(p_rules text[], p_after bigint, p_upto bigint) returns meshaudit_private.alert_hit[]
language plpgsql volatile set search_path = ''
as $$
declare
  v_hits meshaudit_private.alert_hit[];
  v_new pg_catalog.int8;
begin
  with used as materialized (
    select distinct on (r.rule, f.identity_source, v.who, w.what)
      r.rule, r.severity, r.period, r.enabled_at + r.learns as since, w.what, w.told, f.identity_source, v.who as user_identity,
      f.scope, f.id, f.secret_id, f.secret_table, f.ip_address, f."timestamp"
    from meshaudit.audit_feed f
    cross join lateral (select meshaudit_private.first_name(f.user_identity)) v (who)
    join meshaudit_private.alert_rules r on r.rule = any (p_rules),
    lateral (
      select pg_catalog.sha256(pg_catalog.convert_to(f.secret_table || ' ' || f.secret_id, 'UTF8')), 'a first access to this secret'
        where r.rule = 'new_secret' and f.outcome <> 'denied'
      union all
      select pg_catalog.inet_send(n.net), pg_catalog.format('a first access from the network %s', n.net)
        from (select pg_catalog.network(pg_catalog.set_masklen(f.ip_address,
          case pg_catalog.family(f.ip_address) when 4 then 24 else 48 end))::pg_catalog.inet as net) n
        where r.rule = 'new_network' and n.net is not null) w (what, told)
    where f.feed_id > p_after and f.feed_id <= p_upto and f.kind = 'entry' and meshaudit_private.is_access(f.secret_table)
    order by r.rule, f.identity_source, v.who, w.what, f.feed_id
  ), noted as (
    insert into meshaudit_private.alert_seen as s (rule, identity_source, user_identity, what, seen_at)
      select u.rule, u.identity_source, u.user_identity, u.what, u."timestamp" from used u
      on conflict (rule, identity_source, user_identity, what) do update set seen_at = excluded.seen_at
        where s.seen_at < excluded.seen_at - '1 day'::pg_catalog.interval
      returning s.rule, s.identity_source, s.user_identity, s.what, s.xmax = 0 as fresh
  ), fresh as (
    select u.* from used u join noted n on n.fresh and n.rule = u.rule and n.identity_source = u.identity_source
      and n.user_identity = u.user_identity and n.what = u.what
  )
  select
    (select pg_catalog.array_agg(row(h.rule, h.severity,
        meshaudit_private.dedupe_of(h.identity_source, h.user_identity, h.scope), h.window_start, h.scope, h.user_identity,
        h.identity_source, h.told, h."timestamp", h.count, h.count, h.id, h.secret_id, h.secret_table,
        h.ip_address)::meshaudit_private.alert_hit)
      from (
        select distinct on (f.rule, f.identity_source, f.user_identity, f.scope, w.window_start) f.*, w.window_start,
          pg_catalog.count(*) over (partition by f.rule, f.identity_source, f.user_identity, f.scope, w.window_start) as count
        from fresh f, lateral (select meshaudit_private.window_of(f.period, f."timestamp") as window_start) w
        where f."timestamp" >= f.since
        order by f.rule, f.identity_source, f.user_identity, f.scope, w.window_start, f.id) h),
    (select pg_catalog.count(*) from fresh)
    into v_hits, v_new;
  if v_new > 0 then
    update meshaudit_private.alert_state set seen = seen + v_new where singleton;
  end if;
  return v_hits;
end
$$;
comment on function meshaudit_private.hits_of_news(text[], bigint, bigint) is 'What new_secret and new_network find in a range of the feed.';

-- Rules about the system; p_quiet is how long nobody had fed although there was something to feed.
create function meshaudit_private.hits_of_system(p_rules text[], p_quiet interval) returns meshaudit_private.alert_hit[]
language sql stable set search_path = ''
as $$
  select pg_catalog.array_agg(row(r.rule, r.severity, '', meshaudit_private.window_of(r.period, f.at), '*', null, null,
      f.message, f.at, 1, 1, null, null, null, null)::meshaudit_private.alert_hit)
  from meshaudit_private.alert_rules r
  join (
    select 'lag' as rule, pg_catalog.clock_timestamp() as at,
      pg_catalog.format('nobody sealed or fed for %s seconds', pg_catalog.round(extract(epoch from q.quiet))) as message,
      q.quiet_seconds as threshold
    from (
      select greatest(p_quiet, case when j.armed then pg_catalog.clock_timestamp() - p.sealed_at end) as quiet,
        extract(epoch from greatest(p_quiet, case when j.armed then pg_catalog.clock_timestamp() - p.sealed_at end))::pg_catalog.int8
          as quiet_seconds
      from meshaudit_private.journal j, meshaudit_private.journal_progress p) q
    where q.quiet is not null
    union all
    select 'partitions', pg_catalog.clock_timestamp(), pg_catalog.format('%s partitions ahead of now; run meshaudit.maintain()', a.ahead),
      -a.ahead
    from (
      select pg_catalog.count(*) as ahead from pg_catalog.pg_inherits i
      join pg_catalog.pg_class c on c.oid = i.inhrelid
      where i.inhparent = 'meshaudit_private.ledger'::pg_catalog.regclass
        and pg_catalog.substring(pg_catalog.pg_get_expr(c.relpartbound, c.oid), 'FROM [(]''([^'']+)''')::pg_catalog.timestamptz
          > pg_catalog.clock_timestamp()) a
  ) f on f.rule = r.rule and case r.rule
    when 'lag' then f.threshold >= r.threshold
    when 'partitions' then -f.threshold < r.threshold
    else true end
  where r.rule = any (p_rules)
$$;
comment on function meshaudit_private.hits_of_system(text[], interval) is 'What lag and partitions find.';

-- Each verification is told once; several failed ones of a run are one hit.
create function meshaudit_private.hits_of_verifications() returns meshaudit_private.alert_hit[]
language plpgsql volatile set search_path = ''
as $$
declare
  v_hits meshaudit_private.alert_hit[];
begin
  with looked as (
    update meshaudit_private.verifications v set told = true where not v.told and v.ended_at is not null
    returning v.ended_at, v.problems, v.first_problem, v.verified_by
  ), failed as (
    select max(l.ended_at) as at, pg_catalog.count(*) as count,
      (pg_catalog.array_agg(pg_catalog.format('a verification by %s found %s problems', l.verified_by, l.problems)
        || coalesce(', first: ' || l.first_problem, '') order by l.ended_at desc))[1] as message
    from looked l where l.problems > 0
  )
  select pg_catalog.array_agg(row(r.rule, r.severity, '', meshaudit_private.window_of(r.period, f.at), '*', null, null,
      f.message, f.at, f.count, f.count, null, null, null, null)::meshaudit_private.alert_hit)
    into v_hits
    from failed f join meshaudit_private.alert_rules r on r.rule = 'verification'
    where f.count > 0;
  return v_hits;
end
$$;
comment on function meshaudit_private.hits_of_verifications() is 'What verification finds: results that were recorded since the last run.';

-- Rules of one kind find in one pass what they find.
create function meshaudit_private.kind_of(p_rule text) returns text
language sql immutable
return case when p_rule in ('reads', 'denials') then 'counts' when p_rule in ('new_secret', 'new_network') then 'news'
  when p_rule in ('lag', 'partitions') then 'system' when p_rule = 'verification' then 'verifications' else 'entries' end;
comment on function meshaudit_private.kind_of(text) is 'Which function finds what a rule is about.';

create function meshaudit_private.hits_of(p_kind text, p_rules text[], p_after bigint, p_upto bigint, p_quiet interval)
returns meshaudit_private.alert_hit[]
language plpgsql volatile set search_path = ''
as $$
begin
  return case p_kind
    when 'entries' then meshaudit_private.hits_of_entries(p_rules, p_after, p_upto)
    when 'counts' then meshaudit_private.hits_of_counts(p_rules, p_after, p_upto)
    when 'news' then meshaudit_private.hits_of_news(p_rules, p_after, p_upto)
    when 'system' then meshaudit_private.hits_of_system(p_rules, p_quiet)
    when 'verifications' then meshaudit_private.hits_of_verifications() end;
end
$$;
comment on function meshaudit_private.hits_of(text, text[], bigint, bigint, interval) is 'What rules of one kind find.';
