-- How long entries are kept, and which archives were given up when their time was over.
--
-- Invariants
--   * a policy's row is never changed but for its end, and goes on counting for a week after that (57_retention.sql);
--   * an expiry's document is kept whole, and names the one before: the log's newest entry of an expiry speaks for all.

create table meshaudit_private.retention (
  number int primary key generated always as identity,
  scope text not null check (char_length(scope) <= 255),
  keep_in_database interval not null check (meshaudit_private.is_period(keep_in_database)),
  keep_in_archive interval check (meshaudit_private.is_period(keep_in_archive)),
  set_by text not null,
  set_at timestamptz not null default clock_timestamp(),
  ended_at timestamptz
);
create unique index retention_in_force on meshaudit_private.retention (scope) where ended_at is null;
comment on table meshaudit_private.retention is 'Retention policies by scope; ''*'' is for scopes without one.';
comment on column meshaudit_private.retention.keep_in_archive is 'Null: for ever.';
comment on column meshaudit_private.retention.ended_at is 'When it was replaced or removed; null: in force.';

create table meshaudit_private.expiries (
  number int primary key generated always as identity,
  partition text not null unique,
  document text not null,
  -- where the entry is that records it
  lane int not null,
  seq bigint not null,
  expired_at timestamptz not null default clock_timestamp()
);
comment on table meshaudit_private.expiries is 'Archives whose files may be deleted: their period is over.';
comment on column meshaudit_private.expiries.document is 'What meshaudit retain writes beside the manifest, byte for byte.';

alter table meshaudit_private.retention enable row level security;
alter table meshaudit_private.expiries enable row level security;
