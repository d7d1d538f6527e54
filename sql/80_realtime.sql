-- Supabase's Realtime: the feed in the publication supabase_realtime. Adding a table takes the owner of the publication
-- who also acts as the table's owner; nobody does the latter but while installing, or here.

create function meshaudit.publish_feed() returns text
language plpgsql volatile security invoker set search_path = ''
as $$
declare
  v_joined pg_catalog.bool := false;
begin
  if not exists (select from pg_catalog.pg_publication p where p.pubname = 'supabase_realtime') then
    return 'there is no publication supabase_realtime';
  elsif exists (select from pg_catalog.pg_publication_tables t
      where t.pubname = 'supabase_realtime' and t.schemaname = 'meshaudit' and t.tablename = 'audit_feed') then
    return 'published already';
  end if;
  if not pg_catalog.pg_has_role(current_user, 'meshaudit_owner', 'USAGE') then
    execute pg_catalog.format('grant meshaudit_owner to %I', current_user);
    v_joined := true;
  end if;
  alter publication supabase_realtime add table meshaudit.audit_feed;
  if v_joined then
    execute pg_catalog.format('revoke meshaudit_owner from %I', current_user);
  end if;
  return 'published';
end
$$;
revoke all on function meshaudit.publish_feed() from public;

comment on function meshaudit.publish_feed() is
  'Adds meshaudit.audit_feed to the publication supabase_realtime; says what it did. For who owns that publication and has installed meshaudit. To take it out: alter publication supabase_realtime drop table meshaudit.audit_feed.';

create function meshaudit_private.feed_status() returns table ("check" text, ok boolean, detail text)
language plpgsql volatile set search_path = ''
as $$
declare
  s meshaudit_private.feed_state;
  v_behind pg_catalog.int8;
  v_age pg_catalog.interval;
  v_list pg_catalog.text;
  v_rules pg_catalog.text;
  v_given_up pg_catalog.int8;
  v_failing pg_catalog.int8;
  v_old constant pg_catalog.timestamptz := pg_catalog.clock_timestamp() - '5 minutes'::pg_catalog.interval;
begin
  select * into s from meshaudit_private.feed_state;
  select coalesce(pg_catalog.sum(h.seq - coalesce(f.seq, 0)), 0) into v_behind
    from meshaudit_private.lane_heads h left join meshaudit_private.feed_lanes f on f.lane = h.lane
    where h.seq > coalesce(f.seq, 0);
  v_age := pg_catalog.clock_timestamp() - s.ran_at;
  "check" := 'feed';
  ok := s.failure is null and coalesce(v_behind = 0 or v_age < '60 seconds'::pg_catalog.interval, false) and v_behind < 100000;
  detail := coalesce('fails: ' || pg_catalog."left"(s.failure, 200) || '; ', '')
    || pg_catalog.format('%s entries behind, last run %s', v_behind,
      coalesce(pg_catalog.round(extract(epoch from v_age)) || ' seconds ago', 'never'))
    || case when ok then '' else '; is meshaudit seal --follow running?' end;
  return next;

  "check" := 'realtime';
  select pg_catalog.string_agg(distinct t.pubname, ', ') into v_list
    from pg_catalog.pg_publication_tables t where t.schemaname = 'meshaudit_private';
  if v_list is not null then
    ok := false;
    detail := 'publications that stream the inside of the log and the vault: ' || v_list || '; name their tables instead of all';
  elsif not exists (select from pg_catalog.pg_publication p where p.pubname = 'supabase_realtime') then
    ok := true;
    detail := 'no publication supabase_realtime';
  else
    ok := exists (select from pg_catalog.pg_publication_tables t
      where t.pubname = 'supabase_realtime' and t.schemaname = 'meshaudit' and t.tablename = 'audit_feed');
    detail := case when ok then 'supabase_realtime publishes the feed'
      else 'supabase_realtime does not publish the feed; as its owner: select meshaudit.publish_feed()' end;
  end if;
  return next;

  -- overdue: nobody takes them; failing: taken, and not well for so long
  "check" := 'alerts';
  select pg_catalog.count(*) filter (where o.next_at < v_old), pg_catalog.count(*) filter (where o.next_at is null),
      pg_catalog.count(*) filter (where o.next_at >= v_old),
      (pg_catalog.array_agg(o.error order by o.delivery_id desc) filter (where o.error is not null))[1]
    into v_behind, v_given_up, v_failing, v_list
    from meshaudit_private.alert_outbox o
    where o.next_at < v_old or o.next_at is null and o.error is not null
      or o.next_at >= v_old and o.attempts > 0 and o.alert_id in (
        select a.alert_id from meshaudit_private.alerts a where a.raised_at < v_old);
  select pg_catalog.string_agg(pg_catalog.format('%s: %s', f.what, f.failure), '; ' order by f.what) into v_rules
    from (
      select pg_catalog.format('rule %s fails', r.rule) as what, r.failure from meshaudit_private.alert_rules r where r.enabled
      union all
      select 'forgetting fails', t.failure from meshaudit_private.alert_state t) f
    where f.failure is not null;
  ok := v_behind + v_given_up + v_failing = 0 and v_rules is null;
  detail := case when ok then 'no delivery is stuck' else pg_catalog.concat_ws('; ', v_rules,
    case when v_behind > 0 then pg_catalog.format('%s deliveries overdue: does meshaudit seal --follow run, with the extra alerts?', v_behind) end,
    case when v_failing > 0 then pg_catalog.format('%s failing', v_failing) end,
    case when v_given_up > 0 then pg_catalog.format('%s given up', v_given_up) end,
    'last error: ' || v_list, case when v_behind + v_given_up + v_failing > 0 then 'see meshaudit alerts webhooks' end) end;
  return next;
end
$$;
comment on function meshaudit_private.feed_status() is 'The feed''s checks for meshaudit.status().';
