-- Granting and revoking the right to read the log; each is an entry itself.
--
-- Membership in meshaudit_auditor lets a role ask; what it is shown is decided by the rows of auditors, in each
-- database by its own. To a role with BYPASSRLS, membership shows everything: it is granted all scopes or none.
-- Roles are shared by all databases of a server: the last revocation ends a membership only where no other database
-- has meshaudit, whose grants cannot be seen from here.

create function meshaudit_private.identity_kind(p_identity text) returns text
language sql stable set search_path = ''
as $$
  select case when exists (select from pg_catalog.pg_roles r where r.rolname = p_identity) then 'database' else 'jwt' end
$$;

create function meshaudit_private.is_the_only_one() returns boolean
language sql stable set search_path = ''
as $$
  select not exists (
    select from pg_catalog.pg_shdepend d
    where d.refclassid = 'pg_catalog.pg_authid'::pg_catalog.regclass and d.refobjid = 'meshaudit_owner'::pg_catalog.regrole
      and d.dbid <> 0 and d.dbid <> (select b.oid from pg_catalog.pg_database b where b.datname = pg_catalog.current_database()))
$$;

-- Makes a role a member, unless it is one.
create function meshaudit_private.begin_auditing(p_role text) returns void
language plpgsql volatile set search_path = ''
as $$
begin
  if exists (select from pg_catalog.pg_roles r where r.rolname = p_role)
     and not pg_catalog.pg_has_role(p_role, 'meshaudit_auditor', 'MEMBER') then
    execute pg_catalog.format('grant meshaudit_auditor to %I', p_role);
  end if;
end
$$;

-- Ends a membership that begin_auditing() has made, once nothing is left that it was for.
create function meshaudit_private.end_auditing(p_role text) returns void
language plpgsql volatile set search_path = ''
as $$
begin
  if exists (
    select from pg_catalog.pg_auth_members m
    where m.roleid = 'meshaudit_auditor'::pg_catalog.regrole and m.grantor = 'meshaudit_owner'::pg_catalog.regrole
      and m.member = (select r.oid from pg_catalog.pg_roles r where r.rolname = p_role))
    and not exists (
      select from meshaudit_private.auditors a
      where case a.identity_source when 'database' then a.identity = p_role
        else p_role = any ((select s.api_roles from meshaudit_private.settings s)::pg_catalog.text[]) end)
    and meshaudit_private.is_the_only_one()
  then
    execute pg_catalog.format('revoke meshaudit_auditor from %I granted by meshaudit_owner', p_role);
  end if;
end
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
  if v_kind = 'database' and scope <> '*' and meshaudit_private.bypasses(identity) then
    perform meshaudit_private.refuse('MA005', pg_catalog.format('role "%s" bypasses row security: it would see every scope', identity),
      'Grant it ''*'', or let another role, without BYPASSRLS, read that scope.');
  end if;
  insert into meshaudit_private.auditors as a (identity, identity_source, scope, granted_by)
    values (grant_auditor.identity, v_kind, grant_auditor.scope, session_user)
    on conflict on constraint auditors_pkey do nothing;
  foreach v_role in array (
    case v_kind when 'database' then array[identity]
    else (select s.api_roles from meshaudit_private.settings s) end)
  loop
    if v_kind = 'jwt' and meshaudit_private.bypasses(v_role)
       and not pg_catalog.pg_has_role(v_role, 'meshaudit_auditor', 'MEMBER') then
      perform meshaudit_private.refuse('MA005',
        pg_catalog.format('api role "%s" bypasses row security: whoever comes as it would see every scope', v_role),
        'Take it out of the setting api_roles, or let it see everything first: grant_auditor(…, ''*'').');
    end if;
    perform meshaudit_private.begin_auditing(v_role);
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
  v_kinds pg_catalog.text[];
  v_role pg_catalog.text;
begin
  -- two where a role took the name of a subject
  with gone as (
    delete from meshaudit_private.auditors a
      where a.identity = revoke_auditor.identity and a.scope = revoke_auditor.scope
      returning a.identity_source
  )
  select pg_catalog.array_agg(g.identity_source) into v_kinds from gone g;
  if v_kinds is null then
    return false;
  end if;
  foreach v_role in array array[identity]
    || case when 'jwt' = any (v_kinds) then (select s.api_roles from meshaudit_private.settings s) end
  loop
    perform meshaudit_private.end_auditing(v_role);
  end loop;
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
comment on function meshaudit_private.is_the_only_one() is 'Whether no other database of this server has meshaudit.';
comment on function meshaudit_private.begin_auditing(text) is 'Makes a role a member of meshaudit_auditor, if there is such a role and it is none.';
comment on function meshaudit_private.end_auditing(text) is 'Ends a membership that grant_auditor() has made, if no grant is left.';
comment on function meshaudit.grant_auditor(text, text) is
  'Lets an identity (a database role, or else a JWT subject) read the log of one scope, or of all: ''*''. Recorded as a create in meshaudit.auditors. Raises MA005 on a bad argument, and on one scope for a role that bypasses row security.';
comment on function meshaudit.revoke_auditor(text, text) is
  'Takes back one grant of grant_auditor(); false if there is none. The last one also ends the membership in meshaudit_auditor that grant_auditor() made, unless another database of the server has meshaudit. Recorded as a delete in meshaudit.auditors.';
comment on function meshaudit_private.visible_scopes(text) is 'Scopes of the log that a role, or the request''s JWT subject, may read; ''*'' is all.';
comment on function meshaudit_private.require_whole_log(text) is 'Raises MA001 unless a role, or the request''s JWT subject, may see the whole log.';
