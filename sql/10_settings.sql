-- Settings: one row, typed, so that reading one is a single page and a wrong value cannot be stored.

create table meshaudit_private.settings (
  singleton boolean primary key default true check (singleton),
  ledger_id uuid not null default gen_random_uuid(),
  gateway_roles text[] not null default array['authenticator'],
  api_roles text[] not null default array['authenticated'],
  address_headers text[] not null default array['cf-connecting-ip', 'x-forwarded-for'],
  partition_interval text not null default 'month' check (partition_interval in ('month', 'week', 'day')),
  partitions_ahead int not null default 3 check (partitions_ahead between 1 and 400),
  keep_in_database interval not null default '1 day' check (meshaudit_private.is_period(keep_in_database)),
  erasable_identities boolean not null default false,
  reading_key bytea not null default sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())),
  feed_keep bigint not null default 100000 check (feed_keep between 1000 and 100000000),
  realtime_roles text[] not null default array['supabase_admin', 'supabase_realtime_admin'],
  installed_at timestamptz not null default clock_timestamp(),
  maintained_at timestamptz
);

comment on table meshaudit_private.settings is 'The one row of settings; change it with meshaudit.set_setting().';
comment on column meshaudit_private.settings.ledger_id is
  'Names this ledger. It is hashed into the first link of every lane, so that no chain can be passed off as another''s.';
comment on column meshaudit_private.settings.gateway_roles is
  'Logins whose request.jwt.claims and request.headers are believed (PostgREST''s login).';
comment on column meshaudit_private.settings.api_roles is
  'Roles a gateway switches to for logged-in users; they may query the log once a JWT subject is made auditor.';
comment on column meshaudit_private.settings.feed_keep is 'How many events the feed holds.';
comment on column meshaudit_private.settings.realtime_roles is
  'Logins that read the feed in the name of the subject in request.jwt.claims: Supabase''s Realtime. For entries their claims count for nothing.';
comment on column meshaudit_private.settings.address_headers is
  'Request headers to take the client''s address from, best first; of a list, the last (nearest) address counts.';
comment on column meshaudit_private.settings.keep_in_database is
  'How long a partition stays after its end before it may be retired.';

comment on column meshaudit_private.settings.erasable_identities is
  'Whether new entries hold pseudonyms of the identities that gateways and callers give.';
comment on column meshaudit_private.settings.reading_key is 'Key of the tokens that searches show (49_readings.sql).';

insert into meshaudit_private.settings default values;

alter table meshaudit_private.settings enable row level security;
