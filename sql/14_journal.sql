-- The journal: records of accesses in the write-ahead log, which no ROLLBACK takes back.
--
-- Invariants
--   * one row says whether it is armed, and holds the key that records are signed with; only this schema reads it.
--     Every access reads it, so it changes seldom: under an old open transaction each change stays behind as a dead row.
--     How far the sealer is stands in a row of its own;
--   * armed means: a logical slot was made, and everything after sealed_lsn will still be seen by seal();
--   * sealed_lsn moves in the transaction that writes the entries of what it passes: nothing is sealed twice or skipped.

create table meshaudit_private.journal (
  singleton boolean primary key default true check (singleton),
  armed boolean not null default false,
  required boolean not null default false,
  vault_mode text not null default 'ledger' check (vault_mode in ('ledger', 'journal')),
  flush boolean not null default true,
  key_id int,
  message_head bytea,
  inner_key bytea,
  outer_key bytea,
  slot_name text,
  armed_at timestamptz,
  healthy_until timestamptz not null default '-infinity',
  healthy_since timestamptz,
  healthy_lsn pg_lsn not null default '0/0',
  -- who looks at healthy_until alone has a key then
  check (case when armed then message_head is not null and inner_key is not null and outer_key is not null
    else healthy_until = '-infinity' end)
);

comment on table meshaudit_private.journal is 'State of the journal: one row.';
comment on column meshaudit_private.journal.required is 'Setting require_journal: no access without an armed journal.';
comment on column meshaudit_private.journal.flush is 'Setting journal_flush: from PostgreSQL 17 on, a record is on disk before the value is returned.';
comment on column meshaudit_private.journal.message_head is 'What each message begins with: version and key_id; null when disarmed.';
comment on column meshaudit_private.journal.inner_key is 'HMAC-SHA256 key, padded and xored with 36; null when disarmed.';
comment on column meshaudit_private.journal.outer_key is 'The same key xored with 5c.';
comment on column meshaudit_private.journal.healthy_until is 'Until then the sealer has seen the slot at work; later, each access looks itself.';
comment on column meshaudit_private.journal.healthy_lsn is 'Up to there, whatever is written keeps the slot well within max_slot_wal_keep_size.';
comment on column meshaudit_private.journal.healthy_since is 'pg_postmaster_start_time() of the server where it saw that: a promoted standby has no slot.';

-- Locked by whoever seals, arms or disarms, before anything else.
create table meshaudit_private.journal_progress (
  singleton boolean primary key default true check (singleton),
  sealed_lsn pg_lsn,
  sealed_at timestamptz,
  forged bigint not null default 0,
  replayed bigint not null default 0,
  garbage bigint not null default 0
);
insert into meshaudit_private.journal_progress default values;
comment on table meshaudit_private.journal_progress is 'How far the sealer is: one row, and its lock.';
comment on column meshaudit_private.journal_progress.sealed_lsn is 'Every record that ends there or before has been sealed.';
comment on column meshaudit_private.journal_progress.forged is 'Records whose signature is wrong, seen so far.';

-- keys of records that may still be unsealed
create table meshaudit_private.journal_keys (
  key_id int primary key generated always as identity,
  inner_key bytea not null,
  outer_key bytea not null,
  made_at timestamptz not null default clock_timestamp()
);
comment on table meshaudit_private.journal_keys is 'Keys that records were signed with, the newest in use.';

-- records of transactions that were still open when their turn came
create table meshaudit_private.journal_pending (
  access_id uuid primary key,
  lsn pg_lsn not null,
  xid xid8 not null,
  payload text not null
);
-- one transaction may have a million of them, and each run asks which have ended
create index on meshaudit_private.journal_pending (xid);
comment on table meshaudit_private.journal_pending is 'Records that wait for the end of their transaction.';

-- what has been sealed of late, against replays: a row for each run that made entries
create table meshaudit_private.journal_seen (
  lsn pg_lsn primary key,
  access_ids uuid[] not null
);
comment on table meshaudit_private.journal_seen is 'Accesses sealed of late: a record of one of them is a replay.';
comment on column meshaudit_private.journal_seen.lsn is 'How far that run sealed; its records were all written before.';

-- denials of a minute, for the bound on their number
create table meshaudit_private.journal_denials (
  identity_source text not null,
  user_identity text not null,
  minute timestamptz not null,
  denials bigint not null,
  primary key (identity_source, user_identity, minute)
);
comment on table meshaudit_private.journal_denials is 'Denials by identity and minute; those over the bound are one entry.';

alter table meshaudit_private.journal enable row level security;
alter table meshaudit_private.journal_progress enable row level security;
alter table meshaudit_private.journal_keys enable row level security;
alter table meshaudit_private.journal_pending enable row level security;
alter table meshaudit_private.journal_seen enable row level security;
alter table meshaudit_private.journal_denials enable row level security;

insert into meshaudit_private.journal default values;

-- Whether an access must look at the row above at all: armed, required, or the vault in journal mode. The answers are the
-- bodies of functions, made anew whenever the row changes: they are inlined, so that a database without a journal pays
-- nothing for it (reading the row cost 6 % of an access). STABLE, not IMMUTABLE: only then do cached plans notice.
create function meshaudit_private.journal_used() returns boolean
language sql stable parallel safe
return false;

create function meshaudit_private.vault_in_journal() returns boolean
language sql stable parallel safe
return false;

create function meshaudit_private.note_journal_used() returns trigger
language plpgsql volatile set search_path = ''
as $$
begin
  execute pg_catalog.format(
    'create or replace function meshaudit_private.journal_used() returns boolean language sql stable parallel safe return %s',
    (new.armed or new.required or new.vault_mode = 'journal')::pg_catalog.text);
  execute pg_catalog.format(
    'create or replace function meshaudit_private.vault_in_journal() returns boolean language sql stable parallel safe return %s',
    (new.vault_mode = 'journal')::pg_catalog.text);
  return null;
end
$$;

create trigger note_journal_used after update of armed, required, vault_mode on meshaudit_private.journal
  for each row execute function meshaudit_private.note_journal_used();
alter table meshaudit_private.journal enable always trigger note_journal_used;

comment on function meshaudit_private.journal_used() is 'Whether the journal is armed or required, or the vault in journal mode.';
comment on function meshaudit_private.vault_in_journal() is 'Whether the vault is in journal mode.';
comment on function meshaudit_private.note_journal_used() is 'Keeps journal_used() and vault_in_journal() true to the row.';
