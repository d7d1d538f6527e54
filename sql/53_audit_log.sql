-- One entry by its number, recorded as a search is.

-- As the caller, who has no USAGE on this schema: it names nothing of it.
create function meshaudit_private.find(p_id bigint, p_token text) returns setof meshaudit.audit_logs
-- no plan shows its token to the client
language plpgsql volatile security invoker set search_path = '' set debug_print_plan = off
as $$
begin
  perform pg_catalog.set_config('meshaudit.search', p_token, true);
  return query select l.* from meshaudit.audit_logs l where l.id = p_id;
  perform pg_catalog.set_config('meshaudit.search', '', true);
end
$$;
revoke all on function meshaudit_private.find(bigint, text) from public;
grant execute on function meshaudit_private.find(bigint, text) to meshaudit_auditor;

create function meshaudit.audit_log(id bigint) returns setof meshaudit.audit_logs
language sql volatile security invoker
begin atomic
  with page as materialized (
    select r.* from meshaudit_private.begin_search(current_user, null) b, lateral meshaudit_private.find(audit_log.id, b.token) r
  )
  select p.* from page p
  where (select meshaudit_private.note_reading(
    'entry', coalesce(audit_log.id::text, ''), null, null, (select pg_catalog.count(*) from page), true, current_user));
end;
revoke all on function meshaudit.audit_log(bigint) from public;
grant execute on function meshaudit.audit_log(bigint) to meshaudit_auditor;

comment on function meshaudit_private.find(bigint, text) is 'The entry of audit_log(), for a token of begin_search().';
comment on function meshaudit.audit_log(bigint) is
  'The entry of that number, if the caller may see it; recorded, as a search is.';
