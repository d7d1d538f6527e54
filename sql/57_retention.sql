-- Retention policies: how long entries of a scope stay in the database, and then in the archive.
--
-- Invariants
--   * a partition stays for as long as the longest of its scopes', an archive likewise;
--   * shortening is an attack: what was in force within the last week goes on counting, so that who sees the entry of the
--     change has a week to place a hold. Lengthening counts at once;
--   * where no policy is, an archive stays for ever.

create function meshaudit_private.end_retention(p_scope text) returns boolean
language sql volatile set search_path = ''
as $$
  with ended as (
    update meshaudit_private.retention r set ended_at = pg_catalog.clock_timestamp()
      where r.scope = p_scope and r.ended_at is null returning r.number
  )
  select exists (select from ended)
$$;

create function meshaudit.set_retention(scope text, keep_in_database interval, keep_in_archive interval default null) returns void
language plpgsql volatile security definer set search_path = '' set intervalstyle = 'postgres'
as $$
declare
  v_operation pg_catalog.text;
begin
  if scope is null or pg_catalog.char_length(scope) > 255 or meshaudit_private.is_period(keep_in_database) is not true
      or meshaudit_private.is_period(keep_in_archive) is false then
    perform meshaudit_private.refuse('MA005', 'a retention policy has a scope of at most 255 characters, and periods of a day to 1000 years',
      'keep_in_archive may be null: for ever. Scope ''*'' is the default of all scopes.');
  end if;
  lock table meshaudit_private.retention in share row exclusive mode;
  v_operation := case when meshaudit_private.end_retention(scope) then 'update' else 'create' end;
  insert into meshaudit_private.retention (scope, keep_in_database, keep_in_archive, set_by)
    values (set_retention.scope, set_retention.keep_in_database, set_retention.keep_in_archive,
      (meshaudit_private.session_caller()).user_identity);
  insert into meshaudit_private.ledger (secret_id, access_type, operation, outcome, secret_table, scope)
    values (pg_catalog.format('%s: %s in the database, %s in the archive', scope, keep_in_database,
      coalesce(keep_in_archive::pg_catalog.text, 'for ever')), 'write', v_operation, 'granted', 'meshaudit.retention', scope);
end
$$;
revoke all on function meshaudit.set_retention(text, interval, interval) from public;

create function meshaudit.remove_retention(scope text) returns boolean
language plpgsql volatile security definer set search_path = ''
as $$
begin
  lock table meshaudit_private.retention in share row exclusive mode;
  if not meshaudit_private.end_retention(scope) then
    return false;
  end if;
  insert into meshaudit_private.ledger (secret_id, access_type, operation, outcome, secret_table, scope)
    values (scope, 'write', 'delete', 'granted', 'meshaudit.retention', scope);
  return true;
end
$$;
revoke all on function meshaudit.remove_retention(text) from public;

create function meshaudit_private.retention_policies(p_role text)
returns table (scope text, keep_in_database interval, keep_in_archive interval, set_by text, set_at timestamptz, ended_at timestamptz)
language plpgsql stable security definer set search_path = ''
as $$
declare
  v_scopes constant pg_catalog.text[] := meshaudit_private.visible_scopes(p_role);
begin
  return query
    select r.scope, r.keep_in_database, r.keep_in_archive, r.set_by, r.set_at, r.ended_at
    from meshaudit_private.retention r
    where (r.ended_at is null or r.ended_at > pg_catalog.clock_timestamp() - '7 days'::pg_catalog.interval)
      and (pg_catalog.pg_has_role(p_role, 'meshaudit_operator', 'USAGE') or '*' = any (v_scopes)
        or r.scope = any (v_scopes))
    order by r.scope, r.number;
end
$$;
revoke all on function meshaudit_private.retention_policies(text) from public;
grant execute on function meshaudit_private.retention_policies(text) to meshaudit_auditor, meshaudit_operator;

create function meshaudit.retention_policies()
returns table (scope text, keep_in_database interval, keep_in_archive interval, set_by text, set_at timestamptz, ended_at timestamptz)
language sql stable security invoker
begin atomic
  select r.scope, r.keep_in_database, r.keep_in_archive, r.set_by, r.set_at, r.ended_at
  from meshaudit_private.retention_policies(current_user) r;
end;
revoke all on function meshaudit.retention_policies() from public;
grant execute on function meshaudit.retention_policies() to meshaudit_auditor, meshaudit_operator;

-- Until when entries of a partition that ends at p_to are kept, counted from that end: in the database, and then in the
-- archive, whenever it was archived. For each scope that has a policy, and '*', the others.
-- covered: a policy is in force. Null in the database: none says so; infinity in the archive: for ever.
create function meshaudit_private.retention_of(p_to timestamptz)
returns table (scope text, covered boolean, database_until timestamptz, archive_until timestamptz)
language sql stable set search_path = ''
as $$
  with recent as (
    select r.*, r.ended_at is null as in_force,
      r.set_at <= week.ago and coalesce(r.ended_at > week.ago, true) as was_in_force
    from meshaudit_private.retention r,
      (select pg_catalog.clock_timestamp() - '7 days'::pg_catalog.interval as ago) week
    where coalesce(r.ended_at > week.ago, true)
  ), named as (
    select k.scope, coalesce(pg_catalog.bool_or(r.in_force), false) as in_force,
      coalesce(pg_catalog.bool_or(r.in_force) and pg_catalog.bool_or(r.was_in_force), false) as settled
    from (select r.scope from recent r union select '*') k
    left join recent r on r.scope = k.scope
    group by k.scope
  ), counting as (
    select n.scope, r.keep_in_database, r.keep_in_archive
    from named n
    join recent r on r.scope = n.scope or (r.scope = '*' and not n.settled)
    union all
    select n.scope, null, null
    from named n join named d on d.scope = '*'
    where not n.settled and not d.settled
  )
  select n.scope, n.in_force or d.in_force, pg_catalog.max(p_to + c.keep_in_database),
    pg_catalog.max(coalesce(p_to + c.keep_in_database + c.keep_in_archive, 'infinity'))
  from named n
  join named d on d.scope = '*'
  join counting c on c.scope = n.scope
  group by n.scope, n.in_force, d.in_force
$$;

comment on function meshaudit_private.end_retention(text) is 'Ends a scope''s policy; false if there is none.';
comment on function meshaudit.set_retention(text, interval, interval) is
  'Says how long entries of a scope stay in the database, counted from the end of their partition, and then in the archive (null: for ever); ''*'' is the default of all scopes. Recorded as a create or update of meshaudit.retention. A shorter period counts after a week, a longer one at once. Raises MA005 on a bad argument.';
comment on function meshaudit.remove_retention(text) is
  'Takes a scope''s policy away, after a week; false if there is none. Recorded as a delete of meshaudit.retention.';
comment on function meshaudit_private.retention_policies(text) is 'meshaudit.retention_policies(), for a role.';
comment on function meshaudit.retention_policies() is
  'The retention policies in force, and those that ended within a week (ended_at) and go on counting. An auditor sees those of its scopes.';
comment on function meshaudit_private.retention_of(timestamptz) is
  'By scope, until when entries of a partition that ends at a time are kept in the database and in the archive.';
