-- The installer steps back: the right to call what is not for clients, and no more membership in the owner.

do $$
declare
  v_installer text := current_setting('meshaudit.installer');
begin
  if v_installer <> 'meshaudit_owner' and not (select r.rolsuper from pg_catalog.pg_roles r where r.rolname = v_installer) then
    execute format('grant usage on schema meshaudit to %I', v_installer);
    execute format('grant execute on function meshaudit.grant_auditor(text, text), meshaudit.revoke_auditor(text, text),
      meshaudit.set_setting(text, text), meshaudit.publish_feed(),
      meshaudit.set_retention(text, interval, interval), meshaudit.remove_retention(text), meshaudit.erase_identity(text, text),
      meshaudit.add_webhook(text, text), meshaudit.remove_webhook(int),
      meshaudit.set_alert_rule(text, boolean, bigint, interval, interval, text, text, time, time, int[]) to %I', v_installer);
  end if;
end
$$;

-- what a database's default privileges gave away
do $$
declare
  v_role text;
begin
  foreach v_role in array array['anon', 'authenticated', 'service_role'] loop
    if exists (select from pg_catalog.pg_roles r where r.rolname = v_role) then
      execute format('revoke all on all tables in schema meshaudit, meshaudit_private from %I', v_role);
      execute format('revoke all on all sequences in schema meshaudit, meshaudit_private from %I', v_role);
      execute format('revoke all on all functions in schema meshaudit, meshaudit_private from %I', v_role);
    end if;
  end loop;
end
$$;

-- back to who installs, who may have come by SET ROLE
do $$
begin
  execute format('set local role %I', current_setting('meshaudit.installer'));
end
$$;

do $$
begin
  if not (select r.rolsuper from pg_catalog.pg_roles r where r.rolname = current_user) then
    execute format('revoke meshaudit_owner from %I', current_user);
  end if;
end
$$;
