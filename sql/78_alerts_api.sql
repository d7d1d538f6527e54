-- What people do with alerts: acknowledge, test, change rules; and the webhooks with their outbox.

create function meshaudit_private.acknowledge_alert(p_alert_id bigint, p_note text, p_role text) returns boolean
language plpgsql volatile security definer set search_path = ''
as $$
declare
  v_scopes constant pg_catalog.text[] := meshaudit_private.visible_scopes(p_role);
  v_caller constant meshaudit_private.caller := meshaudit_private.session_caller();
begin
  insert into meshaudit_private.alert_acknowledgements (alert_id, acknowledged_by, identity_source, note)
    select a.alert_id, v_caller.user_identity, v_caller.identity_source, meshaudit_private.clean(p_note, 1000)
    from meshaudit_private.alerts a
    where a.alert_id = p_alert_id and ('*' = any (v_scopes) or a.scope = any (v_scopes)
      -- who sees all, without a grant
      or exists (select from pg_catalog.pg_roles r where r.rolname = p_role and (r.rolsuper or r.rolbypassrls)));
  return found;
end
$$;
revoke all on function meshaudit_private.acknowledge_alert(bigint, text, text) from public;
grant execute on function meshaudit_private.acknowledge_alert(bigint, text, text) to meshaudit_auditor;

create function meshaudit.acknowledge_alert(alert_id bigint, note text default null) returns boolean
language sql volatile security invoker
return meshaudit_private.acknowledge_alert(alert_id, note, current_user);
revoke all on function meshaudit.acknowledge_alert(bigint, text) from public;
grant execute on function meshaudit.acknowledge_alert(bigint, text) to meshaudit_auditor;

create function meshaudit.test_alert() returns bigint
language plpgsql volatile security definer set search_path = ''
as $$
declare
  s meshaudit_private.feed_state;
  v_now constant pg_catalog.timestamptz := pg_catalog.clock_timestamp();
begin
  select * into s from meshaudit_private.feed_state for update;
  update meshaudit_private.feed_state set last_id = s.last_id + meshaudit_private.raise_alerts(array[row(
    'test', 'info', pg_catalog.gen_random_uuid()::pg_catalog.text, v_now, '*', session_user::pg_catalog.text, 'database',
    'a test', v_now, 1, 1, null, null, null, null)::meshaudit_private.alert_hit], s.last_id) where singleton;
  perform meshaudit_private.notify('meshaudit_feed', (s.last_id + 1)::pg_catalog.text);
  return (select a.last_alert_id from meshaudit_private.alert_state a);
end
$$;
revoke all on function meshaudit.test_alert() from public;
grant execute on function meshaudit.test_alert() to meshaudit_operator;

create function meshaudit.set_alert_rule(
  rule text, enabled boolean default null, threshold bigint default null, period interval default null,
  learns interval default null, severity text default null, time_zone text default null, opens time default null,
  closes time default null, days int[] default null
) returns void
language plpgsql volatile security definer set search_path = ''
as $$
declare
  v_found pg_catalog.bool;
begin
  begin
    perform pg_catalog.now() at time zone time_zone;
    update meshaudit_private.alert_rules r set
      enabled_at = case when set_alert_rule.enabled and not r.enabled or set_alert_rule.learns is not null
        then pg_catalog.clock_timestamp() else r.enabled_at end,
      enabled = coalesce(set_alert_rule.enabled, r.enabled), threshold = coalesce(set_alert_rule.threshold, r.threshold),
      period = coalesce(set_alert_rule.period, r.period), learns = coalesce(set_alert_rule.learns, r.learns),
      severity = coalesce(set_alert_rule.severity, r.severity), time_zone = coalesce(set_alert_rule.time_zone, r.time_zone),
      opens = coalesce(set_alert_rule.opens, r.opens), closes = coalesce(set_alert_rule.closes, r.closes),
      days = coalesce(set_alert_rule.days, r.days),
      failure = case when set_alert_rule.enabled is distinct from false then r.failure end,
      behind = case when set_alert_rule.enabled is distinct from false then r.behind end
      where r.rule = set_alert_rule.rule
        and (set_alert_rule.threshold is null or r.threshold is not null)
        and (set_alert_rule.learns is null or r.learns is not null)
        and (r.opens is not null or coalesce(set_alert_rule.time_zone, set_alert_rule.opens::pg_catalog.text,
          set_alert_rule.closes::pg_catalog.text, set_alert_rule.days::pg_catalog.text) is null);
    v_found := found;
  exception when check_violation or data_exception then
    raise exception 'bad value for alert rule "%"', rule using errcode = 'MA005',
      hint = 'severity: info, warning, critical; threshold from 1; period 10 seconds to 31 days, without months or years; learns 0 to 366 days; days 1 (Monday) to 7; time_zone as in pg_timezone_names.';
  end;
  if not v_found then
    raise exception 'no alert rule "%" that takes these values', pg_catalog."left"(rule, 100) using errcode = 'MA005',
      hint = 'Rules and what they take: select * from meshaudit.alert_rules; null is what a rule does not take.';
  end if;
  insert into meshaudit_private.ledger (secret_id, access_type, operation, outcome, secret_table, scope)
    values (rule, 'write', 'update', 'granted', 'meshaudit.alert_rules', '*');
end
$$;
revoke all on function meshaudit.set_alert_rule(text, boolean, bigint, interval, interval, text, text, time, time, int[]) from public;

create function meshaudit_private.is_webhook(p_url text) returns boolean
language sql immutable
return pg_catalog.char_length(p_url) <= 2000 and p_url !~ '[[:space:][:cntrl:]]'
  and p_url ~ '^(https://[^/]+|http://(localhost|127[.]0[.]0[.]1|\[::1\])(:[0-9]+)?)(/.*)?$';

-- As receivers decode it. An error would show the secret.
create function meshaudit_private.is_signing_secret(p_secret text) returns boolean
language plpgsql immutable set search_path = ''
as $$
begin
  return p_secret ~ '^whsec_[A-Za-z0-9+/]+={0,2}$' and pg_catalog.char_length(p_secret) <= 100
    and pg_catalog.octet_length(pg_catalog.decode(pg_catalog.substr(p_secret, 7), 'base64')) between 24 and 64;
exception when data_exception then
  return false;
end
$$;

create function meshaudit.add_webhook(url text, secret text default null, out webhook_id int, out signing_secret text)
language plpgsql volatile security definer set search_path = ''
as $$
begin
  signing_secret := coalesce(secret, 'whsec_' || pg_catalog.encode(pg_catalog.uuid_send(pg_catalog.gen_random_uuid())
    || pg_catalog.uuid_send(pg_catalog.gen_random_uuid()), 'base64'));
  if not coalesce(meshaudit_private.is_webhook(url) and meshaudit_private.is_signing_secret(signing_secret), false) then
    raise exception 'a webhook takes an https URL of at most 2000 characters and a secret of 24 to 64 bytes' using errcode = 'MA005',
      hint = 'http is for localhost alone; a secret is whsec_ and valid base64; without one it is made.';
  end if;
  insert into meshaudit_private.webhooks (url, secret, added_by) values (add_webhook.url, signing_secret, session_user)
    returning webhooks.webhook_id into add_webhook.webhook_id;
  insert into meshaudit_private.ledger (secret_id, access_type, operation, outcome, secret_table, scope)
    values (webhook_id::pg_catalog.text, 'write', 'create', 'granted', 'meshaudit.webhooks', '*');
end
$$;
revoke all on function meshaudit.add_webhook(text, text) from public;

create function meshaudit.remove_webhook(webhook_id int) returns boolean
language plpgsql volatile security definer set search_path = ''
as $$
begin
  delete from meshaudit_private.webhooks w where w.webhook_id = remove_webhook.webhook_id;
  if not found then
    return false;
  end if;
  insert into meshaudit_private.ledger (secret_id, access_type, operation, outcome, secret_table, scope)
    values (webhook_id::pg_catalog.text, 'write', 'delete', 'granted', 'meshaudit.webhooks', '*');
  return true;
end
$$;
revoke all on function meshaudit.remove_webhook(int) from public;

create function meshaudit.webhooks() returns table (webhook_id int, url text, added_at timestamptz, waiting bigint, last_error text)
language sql stable security definer set search_path = ''
as $$
  select w.webhook_id, w.url, w.added_at,
    (select pg_catalog.count(*) from meshaudit_private.alert_outbox o where o.webhook_id = w.webhook_id and o.next_at is not null),
    (select o.error from meshaudit_private.alert_outbox o where o.webhook_id = w.webhook_id and o.error is not null
      order by o.delivery_id desc limit 1)
  from meshaudit_private.webhooks w order by w.webhook_id
$$;
revoke all on function meshaudit.webhooks() from public;
grant execute on function meshaudit.webhooks() to meshaudit_operator;

-- What is due, leased for a minute: who takes it and dies leaves it to be taken again, with the same message_id. A sender
-- that names the webhooks where it is still sending is not kept from the others by one that hangs.
create function meshaudit.take_deliveries(most int default 20, per_webhook int default null, busy int[] default '{}')
returns table (delivery_id bigint, webhook_id int, url text, secret text, message_id text, body jsonb)
language sql volatile security definer set search_path = ''
as $$
  with taken as (
    update meshaudit_private.alert_outbox o
      set attempts = o.attempts + 1, next_at = pg_catalog.clock_timestamp() + '1 minute'::pg_catalog.interval
      where o.delivery_id in (
        select d.delivery_id from meshaudit_private.webhooks h,
          lateral (
            select b.delivery_id, b.next_at from meshaudit_private.alert_outbox b
            where b.webhook_id = h.webhook_id and b.next_at <= pg_catalog.clock_timestamp() order by b.next_at
            limit least(per_webhook, most, 100) for update skip locked) d
        where h.webhook_id <> all (busy) order by d.next_at limit least(greatest(most, 0), 100))
      returning o.delivery_id, o.webhook_id, o.alert_id, o.message_id
  )
  select t.delivery_id, t.webhook_id, w.url, w.secret, t.message_id, pg_catalog.jsonb_build_object('type', 'meshaudit.alert',
    'timestamp', a.raised_at, 'data', meshaudit_private.alert_json(a, r.count))
  from taken t
  join meshaudit_private.webhooks w on w.webhook_id = t.webhook_id
  join meshaudit_private.alerts a on a.alert_id = t.alert_id
  join meshaudit_private.alert_repeats r on r.alert_id = t.alert_id
$$;
revoke all on function meshaudit.take_deliveries(int, int, int[]) from public;
grant execute on function meshaudit.take_deliveries(int, int, int[]) to meshaudit_operator;

-- Null p_error: it was taken. Else again after 5 s, 10 s, 20 s … at most 6 h, 20 times: three days.
create function meshaudit.end_delivery(delivery_id bigint, error text default null) returns void
language sql volatile security definer set search_path = ''
as $$
  update meshaudit_private.alert_outbox o set
    error = pg_catalog."left"(end_delivery.error, 500),
    ended_at = case when end_delivery.error is null or o.attempts >= 20 then pg_catalog.clock_timestamp() end,
    next_at = case when end_delivery.error is not null and o.attempts < 20 then pg_catalog.clock_timestamp()
      + least('5 seconds'::pg_catalog.interval * pg_catalog.power(2, o.attempts - 1) * (0.75 + pg_catalog.random() / 2),
        '6 hours'::pg_catalog.interval) end
    where o.delivery_id = end_delivery.delivery_id and o.next_at is not null
$$;
revoke all on function meshaudit.end_delivery(bigint, text) from public;
grant execute on function meshaudit.end_delivery(bigint, text) to meshaudit_operator;

comment on function meshaudit_private.acknowledge_alert(bigint, text, text) is 'meshaudit.acknowledge_alert(), for a role.';
comment on function meshaudit.acknowledge_alert(bigint, text) is 'Notes that the caller has taken note of an alert; false if the caller sees no such alert.';
comment on function meshaudit.test_alert() is 'Raises an alert of rule test, which goes every way that alerts go; returns its id.';
comment on function meshaudit.set_alert_rule(text, boolean, bigint, interval, interval, text, text, time, time, int[]) is
  'Changes an alert rule; what is null stays. Recorded as an update of meshaudit.alert_rules. Raises MA005 on a bad rule or value.';
comment on function meshaudit_private.is_webhook(text) is 'Whether alerts can be sent to a URL: https, or http on this machine.';
comment on function meshaudit_private.is_signing_secret(text) is 'Whether a secret is whsec_ and base64 of 24 to 64 bytes.';
comment on function meshaudit.add_webhook(text, text) is 'Has alerts sent to a URL, signed by the Standard Webhooks scheme; returns the secret, made if none was given, for the receiver. Recorded.';
comment on function meshaudit.remove_webhook(int) is 'No more alerts to that webhook; what waits for it goes. Recorded. False if there is none.';
comment on function meshaudit.webhooks() is 'The webhooks, without their secrets: how many alerts wait, and the last error.';
comment on function meshaudit.take_deliveries(int, int, int[]) is
  'Alerts to be sent now, with the secret to sign with, for a sender: so many at most, so many a webhook, and none of webhooks that are busy; end_delivery() says how it went.';
comment on function meshaudit.end_delivery(bigint, text) is 'How a delivery went: null is well, else it comes again later, 20 times at most.';
