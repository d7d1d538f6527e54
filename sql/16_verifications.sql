-- Verifications of the whole log: how far the running ones are, and what the last ones found.
--
-- A result is the word of whoever verified, which is why it says who that was. Only auditors of the whole log and operators
-- give one (59_verifications.sql). The newest 1000 are kept.

create table meshaudit_private.verifications (
  verification_id bigint primary key generated always as identity,
  method text not null,
  begun_at timestamptz not null default clock_timestamp(),
  seen_at timestamptz not null default clock_timestamp(),
  ended_at timestamptz,
  verified_by text not null,
  db_user text not null default session_user,
  entries bigint,
  total bigint,
  problems bigint,
  first_problem text,
  told boolean not null default false
);

comment on table meshaudit_private.verifications is 'Verifications of the whole log, running and ended.';
comment on column meshaudit_private.verifications.method is 'database: meshaudit.verify(); outside: meshaudit verify.';
comment on column meshaudit_private.verifications.told is 'Whether the alert rules have looked at it.';

alter table meshaudit_private.verifications enable row level security;
