-- The built-in vault. Values are opaque bytes: encrypt them in the application and store ciphertext.

create table meshaudit_private.secrets (
  id uuid primary key default gen_random_uuid(),
  scope text not null check (char_length(scope) <= 512),
  key text not null check (char_length(key) between 1 and 512),
  value bytea not null check (octet_length(value) <= 1048576),
  created_at timestamptz not null default clock_timestamp(),
  updated_at timestamptz not null default clock_timestamp(),
  unique (scope, key)
);

comment on table meshaudit_private.secrets is
  'Secrets of the built-in vault, reached only through meshaudit.read_secret() and its siblings.';

alter table meshaudit_private.secrets enable row level security;
