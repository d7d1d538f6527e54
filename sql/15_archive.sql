-- What has left the database for the archive, and what may not.
--
-- Invariants
--   * a retirement's manifest is kept whole: its digest is in an entry of the log, or in the next manifest, so that it
--     cannot be changed unseen; what verify() accepts as retired follows from manifests alone;
--   * retired_runs repeats what the manifests say, for look-ups; verify() compares the two.

create table meshaudit_private.retirements (
  number int primary key generated always as identity,
  partition text not null unique,
  manifest text not null,
  from_time timestamptz not null,
  to_time timestamptz not null,
  entries bigint not null,
  -- where the entry is that records it, the last one if it was restored in between
  lane int not null,
  seq bigint not null,
  restored boolean not null default false,
  scopes text[] not null default '{}',
  retired_at timestamptz not null default clock_timestamp()
);
comment on table meshaudit_private.retirements is 'Partitions that were archived, verified and emptied.';
comment on column meshaudit_private.retirements.manifest is 'The archive''s manifest, byte for byte.';
comment on column meshaudit_private.retirements.scopes is 'The scopes of its entries, for policies and holds.';
comment on column meshaudit_private.retirements.restored is 'Whether its entries are back in the database.';

-- Stretches of lanes that are in an archive instead of the ledger.
create table meshaudit_private.retired_runs (
  lane int not null,
  first_seq bigint not null,
  last_seq bigint not null,
  prev_hash bytea not null,
  hash bytea not null,
  partition text not null,
  primary key (lane, first_seq)
);
comment on table meshaudit_private.retired_runs is 'Stretches of lanes that are in an archive instead of the ledger.';

create table meshaudit_private.holds (
  hold bigint primary key generated always as identity,
  secret_id text,
  user_identity text,
  scope text,
  from_time timestamptz,
  to_time timestamptz,
  reason text not null,
  placed_by text not null,
  placed_at timestamptz not null default clock_timestamp()
);
comment on table meshaudit_private.holds is 'Legal holds: what they match is not retired, nor does its archive expire. Null matches everything.';

alter table meshaudit_private.retirements enable row level security;
alter table meshaudit_private.retired_runs enable row level security;
alter table meshaudit_private.holds enable row level security;
