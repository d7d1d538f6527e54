-- The feed: what has happened, as a stream of events that may be subscribed to. One table, unpartitioned, because logical
-- replication and Supabase's Realtime know no others; bounded, because it is a copy and the ledger is the record.
--
-- Invariants
--   * feed_id runs 1, 2, 3 … without a gap, in the order in which events become visible: one transaction at a time adds
--     to it (it holds the row of feed_state until its commit), so that "feed_id > the last I saw" misses nothing;
--   * each entry that is committed after the installation comes once; feed_lanes says up to where each lane has been;
--   * only this schema's functions write here.

create table meshaudit.audit_feed (
  feed_id bigint primary key,
  id bigint,
  secret_id text,
  access_type text,
  "timestamp" timestamptz,
  user_identity text,
  ip_address inet,
  operation text,
  outcome text,
  secret_table text,
  scope text not null,
  identity_source text,
  claimed_identity text,
  db_user text,
  db_role text,
  application_name text,
  user_agent text,
  request_id text,
  access_id uuid,
  lane int,
  seq bigint,
  hash bytea,
  kind text not null,
  alert jsonb
);

alter table meshaudit.audit_feed enable row level security;

comment on table meshaudit.audit_feed is
  'The newest entries of the audit log, and alerts, as events in the order in which they became visible. A copy, bounded by the setting feed_keep.';
comment on column meshaudit.audit_feed.feed_id is 'Number of the event: 1, 2, 3 … in the order of visibility.';
comment on column meshaudit.audit_feed.id is 'As in audit_logs, like all columns up to hash. Null in an alert, where it tells nothing.';
comment on column meshaudit.audit_feed.secret_id is 'As in audit_logs. In an alert, of the entry that raised it, where the rule is about one.';
comment on column meshaudit.audit_feed.access_type is 'As in audit_logs; null in an alert.';
comment on column meshaudit.audit_feed."timestamp" is 'Of an entry as in audit_logs: the access. Of an alert: when it was raised.';
comment on column meshaudit.audit_feed.user_identity is 'As in audit_logs. In an alert, whom it is about; null if it is about nobody.';
comment on column meshaudit.audit_feed.ip_address is 'As in audit_logs. In an alert, of the entry that raised it, where the rule is about one.';
comment on column meshaudit.audit_feed.operation is 'As in audit_logs; null in an alert.';
comment on column meshaudit.audit_feed.outcome is 'As in audit_logs; null in an alert.';
comment on column meshaudit.audit_feed.secret_table is 'As in audit_logs. In an alert, of the entry that raised it, where the rule is about one.';
comment on column meshaudit.audit_feed.scope is 'As in audit_logs; it decides who sees the event. An alert with ''*'' is for who sees everything.';
comment on column meshaudit.audit_feed.identity_source is 'As in audit_logs: where user_identity comes from.';
comment on column meshaudit.audit_feed.claimed_identity is 'As in audit_logs, not verified; null in an alert.';
comment on column meshaudit.audit_feed.db_user is 'As in audit_logs; null in an alert.';
comment on column meshaudit.audit_feed.db_role is 'As in audit_logs; null in an alert.';
comment on column meshaudit.audit_feed.application_name is 'As in audit_logs, not verified; null in an alert.';
comment on column meshaudit.audit_feed.user_agent is 'As in audit_logs; null in an alert.';
comment on column meshaudit.audit_feed.request_id is 'As in audit_logs; null in an alert.';
comment on column meshaudit.audit_feed.access_id is 'As in audit_logs; null in an alert.';
comment on column meshaudit.audit_feed.lane is 'As in audit_logs; null in an alert.';
comment on column meshaudit.audit_feed.seq is 'As in audit_logs; null in an alert.';
comment on column meshaudit.audit_feed.hash is 'As in audit_logs; null in an alert. The feed itself is not chained.';
comment on column meshaudit.audit_feed.kind is 'entry or alert.';
comment on column meshaudit.audit_feed.alert is 'What an alert says; null in an entry.';

create table meshaudit_private.feed_state (
  singleton boolean primary key default true check (singleton),
  last_id bigint not null default 0,
  ran_at timestamptz,
  failed_at timestamptz,
  failure text
);
insert into meshaudit_private.feed_state default values;
comment on table meshaudit_private.feed_state is 'The last feed_id, and how the last run went: one row, and the lock of whoever feeds.';

create table meshaudit_private.feed_lanes (
  lane int primary key,
  seq bigint not null
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);
comment on table meshaudit_private.feed_lanes is 'Up to which seq each lane is in the feed; a lane without a row is not in it yet.';

alter table meshaudit_private.feed_state enable row level security;
alter table meshaudit_private.feed_lanes enable row level security;
