-- Verify ledger: raises unless the roles, the schemas, the public functions and the ledger's guards are there.
-- Reads nothing but the catalogue, so that any login can run it. Stays true under later migrations.

begin;

set local search_path = pg_catalog, pg_temp;

do $$
declare
  v_missing text;
begin
  select string_agg(n, ', ') into v_missing
    from unnest(array['meshaudit_owner', 'meshaudit_client', 'meshaudit_auditor', 'meshaudit_operator']) n
    where not exists (select from pg_roles r where r.rolname = n and not r.rolcanlogin and not r.rolsuper);
  if v_missing is not null then
    raise exception 'roles missing, or able to log in: %', v_missing;
  end if;

  select string_agg(n, ', ') into v_missing
    from unnest(array['meshaudit', 'meshaudit_private', 'meshaudit_protected']) n
    where not exists (select from pg_namespace s where s.nspname = n and s.nspowner = 'meshaudit_owner'::regrole);
  if v_missing is not null then
    raise exception 'schemas missing, or not owned by meshaudit_owner: %', v_missing;
  end if;

  select string_agg(n, ', ') into v_missing
    from unnest(array['write_secret', 'read_secret', 'read_secret_by_key', 'read_secrets', 'delete_secret',
      'search_audit_logs', 'log_cursor', 'grant_auditor', 'revoke_auditor', 'set_setting', 'get_setting', 'verify',
      'checkpoint', 'maintain', 'status', 'schema_version', 'protect', 'unprotect',
      'feed', 'feed_range', 'acknowledge_alert', 'set_alert_rule', 'retire_partition', 'restore_entries',
      'restore_partition', 'retirements', 'partitions', 'place_hold', 'lift_hold', 'holds',
      'set_retention', 'remove_retention', 'retention_policies', 'retention_plan', 'expire_archive', 'expiries',
      'identity_of', 'erase_identity']) n
    where not exists (
      select from pg_proc p
      where p.proname = n and p.pronamespace = (select s.oid from pg_namespace s where s.nspname = 'meshaudit')
        and p.proowner = 'meshaudit_owner'::regrole);
  if v_missing is not null then
    raise exception 'functions missing in schema meshaudit, or not owned by meshaudit_owner: %', v_missing;
  end if;

  if not exists (
    select from pg_class c join pg_namespace s on s.oid = c.relnamespace
    where s.nspname = 'meshaudit' and c.relname = 'audit_logs' and c.relkind = 'v'
      and 'security_invoker=true' = any (c.reloptions)
  ) then
    raise exception 'view meshaudit.audit_logs is missing, or does not act as its caller';
  end if;

  if not exists (
    select from pg_class c join pg_namespace s on s.oid = c.relnamespace
    where s.nspname = 'meshaudit_private' and c.relname = 'ledger' and c.relkind = 'p'
      and exists (select from pg_inherits i where i.inhparent = c.oid)
  ) then
    raise exception 'the ledger is missing, or has no partition';
  end if;

  -- the ledger and each partition: chained, append-only, closed
  with ledger as (
    select c.oid, c.relname, c.relrowsecurity
    from pg_class c join pg_namespace s on s.oid = c.relnamespace
    where s.nspname = 'meshaudit_private' and c.relkind in ('r', 'p')
      and (c.relname = 'ledger' or exists (
        select from pg_inherits i join pg_class p on p.oid = i.inhparent
        where i.inhrelid = c.oid and p.relnamespace = s.oid and p.relname = 'ledger'))
  )
  select string_agg(l.relname, ', ' order by l.relname) into v_missing
    from ledger l
    where not l.relrowsecurity or 2 > (
      select count(distinct t.tgname) from pg_trigger t
      where t.tgrelid = l.oid and t.tgname in ('chain_entry', 'append_only') and t.tgenabled = 'A');
  if v_missing is not null then
    raise exception 'row security or triggers missing or disabled on: %', v_missing;
  end if;
end
$$;

rollback;
