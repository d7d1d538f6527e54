-- Alerts: rules, what they have to remember, what they have raised, and where to send it.
--
-- Invariants
--   * alerts and their acknowledgements are only ever added; how often an alert came again in its window is kept beside it;
--   * alert_id runs 1, 2, 3 … in the order of visibility: whoever raises holds the row of feed_state;
--   * what rules remember is bounded: counts by time, what has been seen by time and by number, the outbox by number;
--   * the secrets of webhooks are for who sends: no grant and no policy shows them.

create table meshaudit_private.alert_rules (
  rule text primary key,
  enabled boolean not null,
  severity text not null check (severity in ('info', 'warning', 'critical')),
  threshold bigint check (threshold between 1 and 1000000000),
  period interval not null
    check (period between '10 seconds' and '31 days' and extract(year from period) = 0 and extract(month from period) = 0),
  learns interval check (learns between '0' and '366 days'),
  time_zone text,
  opens time,
  closes time,
  days int[] check (days <@ array[1, 2, 3, 4, 5, 6, 7]),
  enabled_at timestamptz not null default clock_timestamp(),
  about text not null,
  failure text,
  behind bigint
);
comment on table meshaudit_private.alert_rules is 'Rules of alerts; change them with meshaudit.set_alert_rule().';
comment on column meshaudit_private.alert_rules.period is 'The window of counting; and one alert a window, identity and scope.';
comment on column meshaudit_private.alert_rules.learns is 'For so long after it is enabled, a rule about what is new only learns.';
comment on column meshaudit_private.alert_rules.failure is 'Why it failed when it was last applied; the others go on.';
comment on column meshaudit_private.alert_rules.behind is 'Up to which event it has looked, if that is less than alert_state says.';

insert into meshaudit_private.alert_rules (rule, enabled, severity, threshold, period, learns, time_zone, opens, closes, days, about) values
  ('reads', true, 'warning', 1000, '5 minutes', null, null, null, null, null, 'so many reads of an identity in a window'),
  ('denials', true, 'warning', 10, '5 minutes', null, null, null, null, null, 'so many denials of an identity in a window'),
  ('new_secret', false, 'info', null, '1 hour', '1 day', null, null, null, null, 'an identity''s first access to a secret'),
  ('new_network', true, 'info', null, '1 hour', '1 day', null, null, null, null, 'an identity''s first access from a network (/24, /48)'),
  ('hours', false, 'warning', null, '1 hour', null, 'UTC', '07:00', '19:00', '{1,2,3,4,5}', 'an access outside hours'),
  ('rolled_back', true, 'warning', null, '1 hour', null, null, null, null, null, 'a read whose transaction was undone'),
  ('gap', true, 'critical', null, '1 minute', null, null, null, null, null, 'the journal has lost records'),
  ('verification', true, 'critical', null, '1 day', null, null, null, null, null, 'the last verify() found problems'),
  ('lag', true, 'warning', 120, '1 hour', null, null, null, null, null, 'nobody sealed or fed for so many seconds'),
  ('partitions', true, 'warning', 1, '1 day', null, null, null, null, null, 'fewer partitions ahead than that');

create table meshaudit_private.alert_state (
  singleton boolean primary key default true check (singleton),
  evaluated_id bigint not null default 0,
  last_alert_id bigint not null default 0,
  checked_at timestamptz not null default '-infinity',
  seen bigint not null default 0,
  failure text
);
insert into meshaudit_private.alert_state default values;
comment on table meshaudit_private.alert_state is 'Up to which event the rules have looked, and counters: one row.';

create table meshaudit_private.alert_counts (
  rule text not null,
  identity_source text not null,
  user_identity text not null,
  scope text not null,
  bucket timestamptz not null,
  count bigint not null,
  primary key (rule, identity_source, user_identity, scope, bucket)
);
create index alert_counts_bucket on meshaudit_private.alert_counts (bucket);
comment on table meshaudit_private.alert_counts is 'Events by rule, identity, scope and sixth of a window.';

create table meshaudit_private.alert_seen (
  rule text not null,
  identity_source text not null,
  user_identity text not null,
  what bytea not null,
  seen_at timestamptz not null,
  primary key (rule, identity_source, user_identity, what)
);
create index alert_seen_at on meshaudit_private.alert_seen (seen_at);
comment on table meshaudit_private.alert_seen is 'Which secrets (their digest) and networks an identity has used, of late.';

create table meshaudit_private.alerts (
  alert_id bigint primary key,
  raised_at timestamptz not null default clock_timestamp(),
  rule text not null,
  severity text not null,
  scope text not null,
  user_identity text,
  identity_source text,
  message text not null,
  happened_at timestamptz not null,
  entry_id bigint,
  secret_id text,
  secret_table text,
  ip_address inet,
  dedupe text not null,
  window_start timestamptz not null,
  unique (rule, dedupe, window_start)
);
comment on table meshaudit_private.alerts is 'What rules have raised; read it as meshaudit.alerts.';

-- kept, so that metrics need not count what only grows
create table meshaudit_private.alert_totals (
  rule text not null,
  severity text not null,
  raised bigint not null default 0,
  primary key (rule, severity)
);
insert into meshaudit_private.alert_totals (rule, severity) select r.rule, r.severity from meshaudit_private.alert_rules r;
comment on table meshaudit_private.alert_totals is 'How many alerts each rule has raised.';

create table meshaudit_private.alert_repeats (
  alert_id bigint primary key references meshaudit_private.alerts,
  count bigint not null,
  last_at timestamptz not null
);
comment on table meshaudit_private.alert_repeats is 'How often an alert''s cause came in its window.';

create table meshaudit_private.alert_acknowledgements (
  acknowledgement_id bigint primary key generated always as identity,
  alert_id bigint not null references meshaudit_private.alerts,
  acknowledged_at timestamptz not null default clock_timestamp(),
  acknowledged_by text not null,
  identity_source text not null,
  note text
);
create index alert_acknowledgements_alert on meshaudit_private.alert_acknowledgements (alert_id);
comment on table meshaudit_private.alert_acknowledgements is 'Who has taken note of an alert.';

create table meshaudit_private.webhooks (
  webhook_id int primary key generated always as identity,
  url text not null check (char_length(url) <= 2000),
  secret text not null,
  added_at timestamptz not null default clock_timestamp(),
  added_by text not null
);
comment on table meshaudit_private.webhooks is 'Where alerts are sent, and the key that signs them.';

create table meshaudit_private.alert_outbox (
  delivery_id bigint primary key generated always as identity,
  webhook_id int not null references meshaudit_private.webhooks on delete cascade,
  alert_id bigint not null references meshaudit_private.alerts,
  message_id text not null default 'msg_' || replace(gen_random_uuid()::text, '-', ''),
  attempts int not null default 0,
  next_at timestamptz default clock_timestamp(),
  ended_at timestamptz,
  error text
);
create index alert_outbox_next on meshaudit_private.alert_outbox (next_at) where next_at is not null;
create index alert_outbox_webhook on meshaudit_private.alert_outbox (webhook_id, next_at);
create index alert_outbox_alert on meshaudit_private.alert_outbox (alert_id);
comment on table meshaudit_private.alert_outbox is 'Alerts to be sent; next_at is null once it was sent or given up (then there is an error).';

alter table meshaudit_private.alert_rules enable row level security;
alter table meshaudit_private.alert_state enable row level security;
alter table meshaudit_private.alert_counts enable row level security;
alter table meshaudit_private.alert_seen enable row level security;
alter table meshaudit_private.alerts enable row level security;
alter table meshaudit_private.alert_totals enable row level security;
alter table meshaudit_private.alert_repeats enable row level security;
alter table meshaudit_private.alert_acknowledgements enable row level security;
alter table meshaudit_private.webhooks enable row level security;
alter table meshaudit_private.alert_outbox enable row level security;
