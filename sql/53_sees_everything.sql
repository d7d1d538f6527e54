-- Whether the caller sees the whole log. Chains can be checked from outside only by one who does: to an auditor of
-- one scope, the other scopes' entries look deleted.
--
-- Not SECURITY DEFINER: row security is asked about as the caller. The body is parsed here, so that no search_path
-- reaches it and the caller needs no USAGE on the inner schema.

create function meshaudit.sees_everything() returns boolean
language sql stable parallel safe security invoker
return not pg_catalog.row_security_active('meshaudit_private.ledger'::pg_catalog.regclass)
  or '*' operator(pg_catalog.=) any (meshaudit_private.visible_scopes(current_user));
revoke all on function meshaudit.sees_everything() from public;
grant execute on function meshaudit.sees_everything() to meshaudit_auditor;

comment on function meshaudit.sees_everything() is
  'Whether the caller''s queries of audit_logs return all entries: an auditor of scope ''*'', or a role that bypasses row security.';
