-- Which migration the schema is at, as named in migrations/sqitch.plan. A new migration replaces this function.
--
-- Programs do not call it: they read its body from the catalogue (meshaudit/version.py), so that a login without
-- any right on the schema can also be told that one of the two is too old.

create function meshaudit.schema_version() returns text
language sql stable parallel safe security invoker set search_path = ''
as $$ select 'ledger' $$;
revoke all on function meshaudit.schema_version() from public;
grant execute on function meshaudit.schema_version() to meshaudit_client, meshaudit_auditor, meshaudit_operator;

comment on function meshaudit.schema_version() is
  'Name of the last migration in this schema: the version to compare with what a program expects.';
