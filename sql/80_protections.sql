-- Tables under audit. protect() moves the table to schema meshaudit_protected; a view takes its name.
--
-- Invariants
--   * saved says what unprotect() restores: where each relation of the table was, and who had which privilege;
--   * generated functions are named for protection_id (reveal_7_3: third column of protection 7), because a restored
--     database has other oids;
--   * a row without view is one that protect() is at work on: none is ever committed.

create table meshaudit_private.protections (
  protection_id int primary key generated always as identity,
  base regclass not null unique,
  view regclass unique,
  schema_name name not null,
  table_name name not null,
  key_columns name[] not null,
  secret_columns name[] not null,
  scope_column name,
  mode text not null check (mode in ('ledger', 'journal')),
  saved jsonb not null,
  protected_at timestamptz not null default clock_timestamp(),
  protected_by text not null default session_user
);
comment on table meshaudit_private.protections is 'Tables that meshaudit.protect() has put under audit.';
alter table meshaudit_private.protections enable row level security;

create table meshaudit_private.reveal_key (
  singleton boolean primary key default true check (singleton),
  key bytea not null
);
comment on table meshaudit_private.reveal_key is 'Signs what a session remembers of the row that it was shown last.';
alter table meshaudit_private.reveal_key enable row level security;
insert into meshaudit_private.reveal_key (key)
  values (sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())));
