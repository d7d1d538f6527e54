-- The built-in vault. Values are opaque bytes: encrypt them in the application and store ciphertext.

create table meshaudit_private.secrets (
  id uuid primary key default gen_random_uuid(),
  scope text not null,
  key text not null,
  -- unique instead of (scope, key), which can be longer than an index row may be
  name_digest bytea not null unique,
  value bytea not null,
  created_at timestamptz not null default clock_timestamp(),
  updated_at timestamptz not null default clock_timestamp()
);

comment on table meshaudit_private.secrets is
  'Secrets of the built-in vault, reached only through meshaudit.read_secret() and its siblings.';

alter table meshaudit_private.secrets enable row level security;
