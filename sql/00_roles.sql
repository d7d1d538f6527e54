-- Who owns what, and who may do what. Runs as the installer: a superuser, or any role with CREATEROLE and
-- CREATE on the database (Supabase's "postgres").
--
-- Invariants: every object belongs to meshaudit_owner, a role nobody logs in as; the installer is a member of
-- it only while it installs (99_finish.sql takes it out again); roles are shared by all databases of a server.

set local search_path = pg_catalog, pg_temp;

do $$
begin
  if current_setting('server_version_num')::int < 150000 then
    raise exception 'meshaudit needs PostgreSQL 15 or later, this is %', current_setting('server_version')
      using errcode = 'MA005', hint = 'Upgrade the server first.';
  end if;
  if current_setting('server_encoding') <> 'UTF8' then
    raise exception 'meshaudit needs a database with encoding UTF8, this one has %', current_setting('server_encoding')
      using errcode = 'MA005', hint = 'Create the database with: create database NAME encoding ''UTF8'' template template0';
  end if;
end
$$;

do $$
declare
  v_role text;
begin
  foreach v_role in array array['meshaudit_owner', 'meshaudit_client', 'meshaudit_auditor', 'meshaudit_operator'] loop
    begin
      execute format('create role %I nologin', v_role);
    exception
      -- another database of this server has them already, or a concurrent install was faster
      when duplicate_object or unique_violation then null;
    end;
  end loop;

  -- somebody may have made the owner before us, to be let in later
  if exists (
    select from pg_catalog.pg_roles r
    where r.rolname = 'meshaudit_owner' and (r.rolcanlogin or r.rolsuper or r.rolbypassrls or r.rolcreaterole)
  ) or exists (
    select from pg_catalog.pg_roles r
    where r.rolname not in ('meshaudit_owner', current_user) and not r.rolsuper
      and pg_has_role(r.oid, 'meshaudit_owner', 'usage')
  ) then
    raise exception 'the role meshaudit_owner exists and is not fit: it has attributes or members' using errcode = '42501',
      hint = 'As a superuser: alter role meshaudit_owner nologin nosuperuser nobypassrls nocreaterole, and revoke it from its members.';
  end if;

  -- 16 and later refuse to grant back to oneself what one has already
  if not (select r.rolsuper from pg_catalog.pg_roles r where r.rolname = current_user) then
    begin
      execute format('grant meshaudit_owner to %I', current_user);
      foreach v_role in array array['meshaudit_client', 'meshaudit_auditor', 'meshaudit_operator'] loop
        if not pg_has_role(current_user, v_role, 'member with admin option') then
          execute format('grant %I to %I with admin option', v_role, current_user);
        end if;
        -- who makes a role there has it to give away, but not to use
        if not pg_has_role(current_user, v_role, 'usage') then
          execute format('grant %I to %I', v_role, current_user);
        end if;
      end loop;
    exception when insufficient_privilege then
      raise exception 'role "%" may not install meshaudit: the meshaudit roles exist and belong to somebody else', current_user
        using errcode = '42501', hint = format(
          case when current_setting('server_version_num')::int >= 160000 then
            'As a superuser: grant meshaudit_owner to %1$I with admin true, inherit false, set false; grant meshaudit_client, meshaudit_auditor, meshaudit_operator to %1$I with admin option'
          else
            'As a superuser: grant meshaudit_owner, meshaudit_client, meshaudit_auditor, meshaudit_operator to %1$I with admin option'
          end, current_user);
    end;
  end if;

  -- grant_auditor() hands out this role
  if not pg_has_role('meshaudit_owner', 'meshaudit_auditor', 'member with admin option') then
    grant meshaudit_auditor to meshaudit_owner with admin option;
  end if;
  perform set_config('meshaudit.installer', current_user, true);
end
$$;

create schema meshaudit authorization meshaudit_owner;
create schema meshaudit_private authorization meshaudit_owner;
create schema meshaudit_protected authorization meshaudit_owner;

-- The journal's slot is read through it. It has no tables: the messages are all there is to see. It must be there before
-- the slot, which looks it up as of each change.
set local client_min_messages = error;
create publication meshaudit_journal;
reset client_min_messages;

set local role meshaudit_owner;

comment on schema meshaudit is
  'Audit log for secrets: the public functions and the view audit_logs. Everything else lives in meshaudit_private.';
comment on schema meshaudit_private is
  'Inside of meshaudit. No user has USAGE; only the SECURITY DEFINER functions of schema meshaudit come here.';
comment on schema meshaudit_protected is
  'Tables under audit (meshaudit.protect). Open to name; what one may do with a table, its own privileges say.';

revoke all on schema meshaudit, meshaudit_private, meshaudit_protected from public;
-- the triggers of a protected table's view run as the caller, and name the table
grant usage on schema meshaudit_protected to public;
grant usage on schema meshaudit to meshaudit_client, meshaudit_auditor, meshaudit_operator;

-- A project's default privileges (Supabase sets some) must not leak into ours: what is created from here on
-- belongs to meshaudit_owner, and its own defaults are: nothing for PUBLIC.
alter default privileges for role meshaudit_owner revoke execute on functions from public;
