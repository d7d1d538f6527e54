-- Raising alerts in the worker's turn. Whoever raises holds the row of feed_state. No access takes part in it.

create trigger append_only before insert or update or delete or truncate on meshaudit_private.alerts
  for each statement execute function meshaudit_private.guard_feed();
create trigger append_only before insert or update or delete or truncate on meshaudit_private.alert_acknowledgements
  for each statement execute function meshaudit_private.guard_feed();
alter table meshaudit_private.alerts enable always trigger append_only;
alter table meshaudit_private.alert_acknowledgements enable always trigger append_only;

-- Makes alerts of hits: a row, an event of the feed, a NOTIFY, and one delivery a webhook; or counts one that is there.
-- Returns how many are new, which is how many events were added after p_last_id.
create function meshaudit_private.raise_alerts(p_hits meshaudit_private.alert_hit[], p_last_id bigint) returns bigint
language plpgsql volatile set search_path = ''
as $$
declare
  h meshaudit_private.alert_hit;
  a meshaudit_private.alerts;
  v_made pg_catalog.int8 := 0;
  v_last pg_catalog.int8 := (select s.last_alert_id from meshaudit_private.alert_state s);
begin
  foreach h in array coalesce(p_hits, '{}') loop
    insert into meshaudit_private.alerts (alert_id, rule, severity, scope, user_identity, identity_source, message,
        happened_at, entry_id, secret_id, secret_table, ip_address, dedupe, window_start)
      values (v_last + v_made + 1, h.rule, h.severity, h.scope, h.user_identity, h.identity_source, h.message,
        h.happened_at, h.entry_id, h.secret_id, h.secret_table, h.ip_address, h.dedupe, h.window_start)
      on conflict (rule, dedupe, window_start) do nothing
      returning * into a;
    if not found then
      update meshaudit_private.alert_repeats r set count = r.count + h.more, last_at = greatest(r.last_at, h.happened_at)
        where r.alert_id = (select o.alert_id from meshaudit_private.alerts o
          where o.rule = h.rule and o.dedupe = h.dedupe and o.window_start = h.window_start);
      continue;
    end if;
    v_made := v_made + 1;
    insert into meshaudit_private.alert_totals as t (rule, severity, raised) values (a.rule, a.severity, 1)
      on conflict (rule, severity) do update set raised = t.raised + 1;
    insert into meshaudit_private.alert_repeats (alert_id, count, last_at) values (a.alert_id, h.count, h.happened_at);
    insert into meshaudit.audit_feed (feed_id, kind, scope, "timestamp", user_identity, identity_source, secret_id,
        secret_table, ip_address, alert)
      values (p_last_id + v_made, 'alert', a.scope, a.raised_at, a.user_identity, a.identity_source, a.secret_id,
        a.secret_table, a.ip_address, meshaudit_private.alert_json(a, h.count));
    insert into meshaudit_private.alert_outbox (webhook_id, alert_id)
      select w.webhook_id, a.alert_id from meshaudit_private.webhooks w
      where 100000 > (select pg_catalog.count(*) from (select from meshaudit_private.alert_outbox limit 100000) o);
    perform meshaudit_private.notify('meshaudit_alert', a.alert_id::pg_catalog.text);
  end loop;
  if v_made > 0 then
    update meshaudit_private.alert_state set last_alert_id = v_last + v_made where singleton;
  end if;
  return v_made;
end
$$;
comment on function meshaudit_private.raise_alerts(meshaudit_private.alert_hit[], bigint) is
  'Makes alerts of what rules have found, as events after p_last_id; returns how many are new.';

create function meshaudit_private.alert_json(a meshaudit_private.alerts, p_count bigint) returns jsonb
language sql stable
return pg_catalog.jsonb_build_object('alert_id', a.alert_id, 'raised_at', a.raised_at, 'rule', a.rule,
  'severity', a.severity, 'message', a.message, 'scope', a.scope, 'user_identity', a.user_identity,
  'identity_source', a.identity_source, 'happened_at', a.happened_at, 'window_start', a.window_start, 'count', p_count,
  'entry_id', a.entry_id, 'secret_id', a.secret_id, 'secret_table', a.secret_table,
  'ip_address', pg_catalog.host(a.ip_address));
comment on function meshaudit_private.alert_json(meshaudit_private.alerts, bigint) is 'An alert as JSON.';

-- Bounds what rules remember.
create function meshaudit_private.forget() returns void
language plpgsql volatile set search_path = ''
as $$
declare
  v_gone pg_catalog.int8;
begin
  delete from meshaudit_private.alert_counts c where c.bucket < pg_catalog.clock_timestamp() - 2 * (
    select max(r.period) from meshaudit_private.alert_rules r where r.rule in ('reads', 'denials'));
  delete from meshaudit_private.alert_seen s where s.ctid = any (array(
    select o.ctid from meshaudit_private.alert_seen o order by o.seen_at
    limit (select greatest(t.seen - 500000, 0) from meshaudit_private.alert_state t)))
    or s.seen_at < pg_catalog.clock_timestamp() - '90 days'::pg_catalog.interval;
  get diagnostics v_gone = row_count;
  update meshaudit_private.alert_state set seen = greatest(seen - v_gone, 0), checked_at = pg_catalog.clock_timestamp()
    where singleton;
  delete from meshaudit_private.alert_outbox o where o.ended_at < pg_catalog.clock_timestamp() - '7 days'::pg_catalog.interval;
end
$$;
comment on function meshaudit_private.forget() is 'Drops what rules and the outbox need no more.';

-- Rules of one kind, in a transaction of their own. If one fails it is found out which, and noted; the others go on. Returns
-- how many alerts are new, null if a single rule has failed.
create function meshaudit_private.apply_rules(
  p_kind text, p_rules text[], p_after bigint, p_upto bigint, p_quiet interval, p_last_id bigint
) returns bigint
language plpgsql volatile set search_path = ''
as $$
declare
  v_made pg_catalog.int8;
  v_rule pg_catalog.text;
begin
  begin
    v_made := meshaudit_private.raise_alerts(
      meshaudit_private.hits_of(p_kind, p_rules, p_after, p_upto, p_quiet), p_last_id);
    update meshaudit_private.alert_rules r set failure = null where r.rule = any (p_rules) and r.failure is not null;
    return v_made;
  exception when others then
    if pg_catalog.cardinality(p_rules) = 1 then
      update meshaudit_private.alert_rules r set failure = pg_catalog."left"(sqlerrm, 200), behind = coalesce(r.behind, p_after)
        where r.rule = p_rules[1];
      return null;
    end if;
  end;
  v_made := 0;
  foreach v_rule in array p_rules loop
    v_made := v_made + coalesce(meshaudit_private.apply_rules(
      p_kind, array[v_rule], p_after, p_upto, p_quiet, p_last_id + v_made), 0);
  end loop;
  return v_made;
end
$$;
comment on function meshaudit_private.apply_rules(text, text[], bigint, bigint, interval, bigint) is
  'Raises what rules of one kind find; returns how many alerts are new. A rule that fails is noted, and holds up no other.';

-- The rules' turn over what is new in the feed, up to p_upto; returns how many alerts, and events, it added. A rule that
-- fails looks at the same again, some seconds later, as far as that is still in the feed.
create function meshaudit_private.evaluate(p_upto bigint, p_quiet interval) returns bigint
language plpgsql volatile set search_path = ''
as $$
declare
  c_most constant pg_catalog.int8 := 20000;
  s meshaudit_private.alert_state;
  r meshaudit_private.alert_rules;
  v_upto pg_catalog.int8;
  v_from pg_catalog.int8;
  v_new pg_catalog.int8;
  v_made pg_catalog.int8 := 0;
  v_kind pg_catalog.text;
  v_rules pg_catalog.text[];
  v_behind pg_catalog.text[];
  v_check pg_catalog.bool;
begin
  select * into s from meshaudit_private.alert_state;
  v_upto := least(p_upto, s.evaluated_id + c_most);
  v_check := p_quiet > '10 seconds'::pg_catalog.interval
    or s.checked_at < pg_catalog.clock_timestamp() - '10 seconds'::pg_catalog.interval;
  v_behind := array(select b.rule from meshaudit_private.alert_rules b where b.enabled and b.behind is not null);
  for r in
    select * from meshaudit_private.alert_rules b where b.rule = any (v_behind) and (v_check or b.failure is null)
  loop
    v_from := greatest(r.behind, (select min(f.feed_id) - 1 from meshaudit.audit_feed f));
    v_new := meshaudit_private.apply_rules(meshaudit_private.kind_of(r.rule), array[r.rule], v_from,
      least(v_upto, v_from + c_most), p_quiet, p_upto + v_made);
    if v_new is not null then
      v_made := v_made + v_new;
      update meshaudit_private.alert_rules b set behind = nullif(least(v_upto, v_from + c_most), v_upto) where b.rule = r.rule;
    end if;
  end loop;

  foreach v_kind in array array['entries', 'counts', 'news', 'system', 'verifications'] loop
    v_rules := array(select b.rule from meshaudit_private.alert_rules b
      where b.enabled and meshaudit_private.kind_of(b.rule) = v_kind and b.rule <> all (v_behind) order by b.rule);
    if v_rules <> '{}' and (v_kind in ('system', 'verifications') and v_check
       or v_kind not in ('system', 'verifications') and v_upto > s.evaluated_id) then
      v_made := v_made + coalesce(meshaudit_private.apply_rules(
        v_kind, v_rules, s.evaluated_id, v_upto, p_quiet, p_upto + v_made), 0);
    end if;
  end loop;
  if v_upto > s.evaluated_id then
    update meshaudit_private.alert_state set evaluated_id = v_upto where singleton;
  end if;
  if v_check then
    begin
      perform meshaudit_private.forget();
      update meshaudit_private.alert_state set failure = null where singleton and failure is not null;
    exception when others then
      update meshaudit_private.alert_state set failure = pg_catalog."left"(sqlerrm, 200), checked_at = pg_catalog.clock_timestamp()
        where singleton;
    end;
  end if;
  return v_made;
end
$$;
comment on function meshaudit_private.evaluate(bigint, interval) is 'Applies the rules to new events; returns how many alerts it raised.';

create policy auditors_read on meshaudit_private.alerts for select to meshaudit_auditor
  using ('*' = any ((select meshaudit_private.feed_scopes(current_user))::text[])
         or scope = any ((select meshaudit_private.feed_scopes(current_user))::text[]));
create policy auditors_read on meshaudit_private.alert_repeats for select to meshaudit_auditor
  using (exists (select from meshaudit_private.alerts a where a.alert_id = alert_repeats.alert_id));
create policy auditors_read on meshaudit_private.alert_acknowledgements for select to meshaudit_auditor
  using (exists (select from meshaudit_private.alerts a where a.alert_id = alert_acknowledgements.alert_id));
create policy auditors_read on meshaudit_private.alert_rules for select to meshaudit_auditor using (true);
grant select on meshaudit_private.alerts, meshaudit_private.alert_repeats, meshaudit_private.alert_acknowledgements,
  meshaudit_private.alert_rules to meshaudit_auditor;

create view meshaudit.alerts with (security_invoker = true) as
  select a.alert_id, a.raised_at, a.rule, a.severity, a.scope, a.user_identity, a.identity_source, a.message,
    a.happened_at, r.last_at, r.count, a.entry_id, a.secret_id, a.secret_table, a.ip_address, a.window_start,
    k.acknowledged_at, k.acknowledged_by, k.note
  from meshaudit_private.alerts a
  join meshaudit_private.alert_repeats r on r.alert_id = a.alert_id
  left join lateral (
    select c.acknowledged_at, c.acknowledged_by, c.note from meshaudit_private.alert_acknowledgements c
    where c.alert_id = a.alert_id order by c.acknowledgement_id limit 1) k on true;
grant select on meshaudit.alerts to meshaudit_auditor;
comment on view meshaudit.alerts is 'What the alert rules have raised, how often in the window, and who first acknowledged it.';

create view meshaudit.alert_rules with (security_invoker = true) as
  select r.rule, r.enabled, r.severity, r.threshold, r.period, r.learns, r.time_zone, r.opens, r.closes, r.days, r.about
  from meshaudit_private.alert_rules r;
grant select on meshaudit.alert_rules to meshaudit_auditor;
comment on view meshaudit.alert_rules is 'The alert rules; changed by meshaudit.set_alert_rule().';

comment on column meshaudit.alerts.alert_id is 'Number of the alert: 1, 2, 3 … in the order of visibility.';
comment on column meshaudit.alerts.raised_at is 'When it was raised, by the server''s clock.';
comment on column meshaudit.alerts.rule is 'The rule that raised it, as in alert_rules; test is a test_alert().';
comment on column meshaudit.alerts.severity is 'info, warning or critical, as the rule had it then.';
comment on column meshaudit.alerts.scope is 'The scope that it is about, and whose auditors see it; ''*'' is seen by who sees everything.';
comment on column meshaudit.alerts.user_identity is 'Whom it is about; null if it is about nobody.';
comment on column meshaudit.alerts.identity_source is 'Where user_identity comes from: jwt or database.';
comment on column meshaudit.alerts.message is 'What happened, in one line.';
comment on column meshaudit.alerts.happened_at is 'When it happened that raised it: of an entry, the time of its access.';
comment on column meshaudit.alerts.last_at is 'When it happened last in the window.';
comment on column meshaudit.alerts.count is 'How often it has happened in the window.';
comment on column meshaudit.alerts.entry_id is 'id in audit_logs of the entry that raised it, of several the last; null where the rule is about none.';
comment on column meshaudit.alerts.secret_id is 'Which secret that entry is about.';
comment on column meshaudit.alerts.secret_table is 'Which table that entry is about.';
comment on column meshaudit.alerts.ip_address is 'Where that access came from; of several, if all came from there.';
comment on column meshaudit.alerts.window_start is 'Start of the window: one alert a rule, whom it is about and window.';
comment on column meshaudit.alerts.acknowledged_at is 'When somebody first took note of it; null: nobody yet.';
comment on column meshaudit.alerts.acknowledged_by is 'Who did.';
comment on column meshaudit.alerts.note is 'What that person wrote.';
comment on column meshaudit.alert_rules.rule is 'Its name, which set_alert_rule() takes.';
comment on column meshaudit.alert_rules.enabled is 'Whether it is applied.';
comment on column meshaudit.alert_rules.severity is 'Of its alerts: info, warning or critical.';
comment on column meshaudit.alert_rules.threshold is 'The number that counts, as about says; null: it takes none.';
comment on column meshaudit.alert_rules.period is 'The window of counting; and one alert a window, identity and scope.';
comment on column meshaudit.alert_rules.learns is 'For so long after it is enabled, a rule about what is new only learns; null: it takes none.';
comment on column meshaudit.alert_rules.time_zone is 'Of opens, closes and days; null: it takes none, as those.';
comment on column meshaudit.alert_rules.opens is 'Start of the hours outside which an access raises an alert.';
comment on column meshaudit.alert_rules.closes is 'End of those hours, not within them; before opens: they go over midnight.';
comment on column meshaudit.alert_rules.days is 'Days with those hours: 1 is Monday, 7 Sunday.';
comment on column meshaudit.alert_rules.about is 'What it finds.';
