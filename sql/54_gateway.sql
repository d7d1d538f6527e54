-- Whether claims are believed. A gateway asks, so as not to serve with a login that is none: there each caller would count
-- as the login, and see what that may see.

create function meshaudit.is_gateway() returns boolean
language plpgsql stable security definer set search_path = ''
as $$
begin
  return meshaudit_private.is_gateway();
end
$$;
revoke all on function meshaudit.is_gateway() from public;
grant execute on function meshaudit.is_gateway() to meshaudit_auditor, meshaudit_operator;

comment on function meshaudit.is_gateway() is
  'Whether this login is in the setting gateway_roles, so that its request.jwt.claims and request.headers are believed.';
