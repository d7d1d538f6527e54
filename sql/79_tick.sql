-- One turn of the worker: seal what the journal holds, then feed. Feeding does without a journal, and by itself.

create function meshaudit.feed() returns bigint
language sql volatile security invoker
return meshaudit_private.feed(10000);
revoke all on function meshaudit.feed() from public;
grant execute on function meshaudit.feed() to meshaudit_operator;

create function meshaudit.seal() returns bigint
language sql volatile security invoker
begin atomic
  with sealed as materialized (
    select meshaudit_private.seal(100000) as entries
  )
  select s.entries from sealed s where meshaudit_private.feed_after_seal(10000) is not null;
end;
revoke all on function meshaudit.seal() from public;
grant execute on function meshaudit.seal() to meshaudit_operator;

create function meshaudit.feed_range(out oldest bigint, out newest bigint)
language sql stable security invoker
begin atomic
  select r.oldest, r.newest from meshaudit_private.feed_range() r;
end;
revoke all on function meshaudit.feed_range() from public;
grant execute on function meshaudit.feed_range() to meshaudit_auditor;

create function meshaudit.feed_is_behind() returns boolean
language sql volatile security invoker
return meshaudit_private.feed_is_behind();
revoke all on function meshaudit.feed_is_behind() from public;
grant execute on function meshaudit.feed_is_behind() to meshaudit_auditor;
comment on function meshaudit.feed_is_behind() is
  'Whether there are entries to feed, whoever may see them, and nobody has fed for 10 seconds.';

comment on function meshaudit.feed() is
  'Feeds meshaudit.audit_feed: adds the entries committed since the last run, at most 10,000, and drops the oldest events beyond the setting feed_keep. Returns how many events it added: call it again while that is 10,000 or more. seal() does it too. One at a time: 0 if another runs.';
comment on function meshaudit.seal() is
  'Seals the journal: makes entries of its records that have none (rolled back, READ ONLY, denied, journal mode), then feeds meshaudit.audit_feed. Returns how many entries it made. Call it again until it returns 0. Needs meshaudit_operator and REPLICATION. One at a time: 0 if another runs. Raises MA002 if the journal is not armed or its slot is lost.';
comment on function meshaudit.feed_range() is
  'The oldest and the newest feed_id there is, whoever may see those events: who has seen less than oldest - 1 has missed events, and finds them in audit_logs.';
