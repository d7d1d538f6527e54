-- Who stands behind a pseudonym, where the setting erasable_identities is on. Destroying a row is the erasure.
--
-- Invariants
--   * a pseudonym is a hash of a random salt and the identity: nobody can later say that it was somebody else, and without
--     the row nobody can say who it was;
--   * an identity may have several: nobody waits for a row that another transaction has not committed.

create table meshaudit_private.identities (
  pseudonym text primary key,
  identity text not null,
  salt bytea not null,
  made_at timestamptz not null default clock_timestamp()
);
create index identities_identity on meshaudit_private.identities (identity, made_at);
comment on table meshaudit_private.identities is 'Identities by pseudonym; meshaudit.erase_identity() destroys rows.';
alter table meshaudit_private.identities enable row level security;
