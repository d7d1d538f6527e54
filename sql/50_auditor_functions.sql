-- Granting and revoking the right to read the log; each is an entry itself.
--
-- Membership in meshaudit_auditor lets a role ask; what it is shown is decided by the rows of auditors, in each
-- database by its own. Roles are shared by all databases of a server, so revoking leaves the membership.

create function meshaudit_private.identity_kind(p_identity text) returns text
language sql stable set search_path = ''
as $$
  select case when exists (select from pg_catalog.pg_roles r where r.rolname = p_identity) then 'database' else 'jwt' end
$$;

create function meshaudit.grant_auditor(identity text, scope text default '*') returns void
language plpgsql volatile security definer set search_path = ''
as $$
declare
  v_kind pg_catalog.text;
  v_role pg_catalog.text;
begin
  if identity is null or pg_catalog.char_length(identity) not between 1 and 256
     or scope is null or pg_catalog.char_length(scope) > 255 then
    perform meshaudit_private.refuse('MA005', 'identity must be 1 to 256 characters, scope at most 255, neither null',
      'identity is a database role or a JWT subject; scope ''*'' is all scopes.');
  end if;
  v_kind := meshaudit_private.identity_kind(identity);
  insert into meshaudit_private.auditors as a (identity, identity_source, scope, granted_by)
    values (grant_auditor.identity, v_kind, grant_auditor.scope, session_user)
    on conflict on constraint auditors_pkey do nothing;
  foreach v_role in array (
    case v_kind when 'database' then array[identity]
    else (select s.api_roles from meshaudit_private.settings s) end)
  loop
    if exists (select from pg_catalog.pg_roles r where r.rolname = v_role)
       and not pg_catalog.pg_has_role(v_role, 'meshaudit_auditor', 'MEMBER') then
      execute pg_catalog.format('grant meshaudit_auditor to %I', v_role);
    end if;
  end loop;
  insert into meshaudit_private.ledger (secret_id, access_type, operation, outcome, secret_table, scope)
    values (identity, 'write', 'create', 'granted', 'meshaudit.auditors', scope);
end
$$;
revoke all on function meshaudit.grant_auditor(text, text) from public;

create function meshaudit.revoke_auditor(identity text, scope text default '*') returns boolean
language plpgsql volatile security definer set search_path = ''
as $$
declare
  v_kind pg_catalog.text;
begin
  delete from meshaudit_private.auditors a
    where a.identity = revoke_auditor.identity and a.scope = revoke_auditor.scope
    returning a.identity_source into v_kind;
  if v_kind is null then
    return false;
  end if;
  insert into meshaudit_private.ledger (secret_id, access_type, operation, outcome, secret_table, scope)
    values (identity, 'write', 'delete', 'granted', 'meshaudit.auditors', scope);
  return true;
end
$$;
revoke all on function meshaudit.revoke_auditor(text, text) from public;

-- The scopes that the caller may see. Runs once a query, as an InitPlan of the policy, after reading() (49_readings.sql).
create function meshaudit_private.visible_scopes(p_role text) returns text[]
language plpgsql stable security definer set search_path = ''
as $$
declare
  v_caller constant meshaudit_private.caller := meshaudit_private.session_caller();
begin
  return (
    select coalesce(pg_catalog.array_agg(a.scope), '{}') from meshaudit_private.auditors a
    where case
      when v_caller.identity_source = 'jwt' then
        a.identity_source = 'jwt' and a.identity = v_caller.user_identity
      else
        a.identity_source = 'database'
        and exists (select from pg_catalog.pg_roles r where r.rolname = a.identity
                    and pg_catalog.pg_has_role(p_role, r.oid, 'USAGE'))
      end
  );
end
$$;
revoke all on function meshaudit_private.visible_scopes(text) from public;
grant execute on function meshaudit_private.visible_scopes(text) to meshaudit_auditor;

create policy auditors_read on meshaudit_private.ledger for select to meshaudit_auditor
  using ((select meshaudit_private.reading(current_user))
         and ('*' = any ((select meshaudit_private.visible_scopes(current_user))::text[])
              or scope = any ((select meshaudit_private.visible_scopes(current_user))::text[])));

-- For what tells about the whole log: raises MA001 unless the caller may see all of it, or operates it.
create function meshaudit_private.require_whole_log(p_role text) returns void
language plpgsql stable set search_path = ''
as $$
begin
  if not pg_catalog.pg_has_role(p_role, 'meshaudit_operator', 'USAGE')
     and '*' <> all (meshaudit_private.visible_scopes(p_role)) then
    perform meshaudit_private.refuse('MA001', 'this needs the whole log, and you may see only a part of it',
      'Ask for meshaudit.grant_auditor(…, ''*''), or for membership in meshaudit_operator.');
  end if;
end
$$;

comment on function meshaudit_private.identity_kind(text) is '''database'' if a role has that name, else ''jwt''.';
comment on function meshaudit.grant_auditor(text, text) is
  'Lets an identity (a database role, or else a JWT subject) read the log of one scope, or of all: ''*''. Recorded as a create in meshaudit.auditors. Raises MA005 on a bad argument.';
comment on function meshaudit.revoke_auditor(text, text) is
  'Takes back one grant of grant_auditor(); false if there is none. Recorded as a delete in meshaudit.auditors.';
comment on function meshaudit_private.visible_scopes(text) is 'Scopes of the log that a role, or the request''s JWT subject, may read; ''*'' is all.';
comment on function meshaudit_private.require_whole_log(text) is 'Raises MA001 unless a role, or the request''s JWT subject, may see the whole log.';
