-- Who may read the log, and how much of it. Nobody by default.

create table meshaudit_private.auditors (
  identity text not null check (char_length(identity) between 1 and 256),
  identity_source text not null check (identity_source in ('jwt', 'database')),
  scope text not null check (char_length(scope) <= 255),
  granted_at timestamptz not null default clock_timestamp(),
  granted_by text not null,
  primary key (identity, identity_source, scope)
);

comment on table meshaudit_private.auditors is
  'Grants made by meshaudit.grant_auditor(); scope ''*'' is all scopes.';

alter table meshaudit_private.auditors enable row level security;
