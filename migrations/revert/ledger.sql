-- Revert ledger: drops the log, the vault and all else that belongs to meshaudit in this database, and the roles
-- where nothing depends on them any more. A log that holds entries is dropped only when told to:
--   PGOPTIONS="-c meshaudit.destroy_audit_log=yes" sqitch revert

begin;

set local search_path = pg_catalog, pg_temp;
-- An open access would make us wait, and everybody else behind us.
set local lock_timeout = '10s';

do $$
declare
  v_installer constant name := current_user;
  v_joined boolean := false;
begin
  -- Whoever has installed is no member of the owner since then.
  begin
    set local role meshaudit_owner;
  exception when insufficient_privilege then
    execute format('grant meshaudit_owner to %I', v_installer);
    v_joined := true;
    set local role meshaudit_owner;
  end;

  if exists (
    select from pg_replication_slots s join meshaudit_private.journal j on j.slot_name = s.slot_name
    where s.database = current_database()
  ) then
    raise exception 'the journal is armed: its slot would stay behind and keep WAL for ever'
      using errcode = 'MA002', hint = 'Run select meshaudit.disarm_journal() first.';
  end if;
  lock table meshaudit_private.ledger in access exclusive mode;
  if exists (select from meshaudit_private.ledger)
     and current_setting('meshaudit.destroy_audit_log', true) is distinct from 'yes' then
    raise exception 'the audit log holds entries; dropping it destroys them'
      using errcode = 'MA003',
            hint = 'If that is meant: meshaudit migrate --down --destroy-audit-log, or set meshaudit.destroy_audit_log = ''yes''.';
  end if;

  if exists (select from meshaudit_private.protections) then
    raise exception 'tables are still protected: %', (select string_agg(p.view::text, ', ') from meshaudit_private.protections p)
      using errcode = 'MA005', hint = 'Take each out first: select meshaudit.unprotect(''…'').';
  end if;

  if exists (select from pg_class c where c.relnamespace = 'meshaudit_protected'::regnamespace and c.relkind in ('r', 'p', 'f', 'm')) then
    raise exception 'schema meshaudit_protected holds tables that are not ours: %', (
        select string_agg(c.relname, ', ') from pg_class c
        where c.relnamespace = 'meshaudit_protected'::regnamespace and c.relkind in ('r', 'p', 'f', 'm'))
      using errcode = 'MA005', hint = 'Move them to a schema of yours first: alter table … set schema ….';
  end if;

  -- the path to Supabase's Vault, if it is open: as who has opened it, or as another who may
  execute format('set local role %I', v_installer);
  begin
    perform from pg_namespace where nspname = 'vault';
    if found and has_schema_privilege('meshaudit_owner', 'vault', 'usage') then
      revoke all on all tables in schema vault from meshaudit_owner;
      revoke all on all functions in schema vault from meshaudit_owner;
      revoke all on schema vault from meshaudit_owner;
    end if;
  exception when insufficient_privilege then
    null;  -- the role stays then, and a notice says so
  end;
  set local role meshaudit_owner;

  drop schema meshaudit, meshaudit_private, meshaudit_protected cascade;
  -- back to what Postgres has by itself, which leaves no row in pg_default_acl
  alter default privileges for role meshaudit_owner grant execute on functions to public;

  -- not "reset role": the installer may have got here by SET ROLE
  execute format('set local role %I', v_installer);
  drop publication if exists meshaudit_journal;
  begin
    drop role meshaudit_client, meshaudit_auditor, meshaudit_operator, meshaudit_owner;
  -- a lock: another database is installing just now
  exception when dependent_objects_still_exist or insufficient_privilege or lock_not_available then
    raise notice 'the meshaudit roles stay: other databases or objects depend on them, or "%" may not drop them', v_installer;
    if v_joined then
      execute format('revoke meshaudit_owner from %I', v_installer);
    end if;
  end;
end
$$;

commit;
