-- Health: one row a check.

create function meshaudit_private.status(p_role text) returns table ("check" text, ok boolean, detail text)
language plpgsql stable security definer set search_path = ''
as $$
declare
  v_settings meshaudit_private.settings;
  v_count pg_catalog.int8;
  v_list pg_catalog.text;
  v_now constant pg_catalog.timestamptz := pg_catalog.clock_timestamp();
begin
  perform meshaudit_private.require_whole_log(p_role);
  select * into v_settings from meshaudit_private.settings;

  "check" := 'partitions ahead';
  select pg_catalog.count(*) into v_count
    from pg_catalog.pg_inherits i
    join pg_catalog.pg_class c on c.oid = i.inhrelid
    where i.inhparent = 'meshaudit_private.ledger'::pg_catalog.regclass
      and pg_catalog.substring(pg_catalog.pg_get_expr(c.relpartbound, c.oid), 'FROM [(]''([^'']+)''')::pg_catalog.timestamptz > v_now;
  ok := v_count > 0;
  detail := pg_catalog.format('%s partitions ahead of now', v_count)
    || case when ok then '' else '; run meshaudit.maintain()' end;
  return next;

  "check" := 'default partition';
  select pg_catalog.count(*) into v_count from (select from meshaudit_private.ledger_default limit 1) d;
  ok := v_count = 0;
  detail := case when ok then 'empty' else 'holds entries: at their time there was no partition; nothing is lost' end;
  return next;

  "check" := 'maintenance';
  ok := v_settings.maintained_at > v_now - '8 days'::pg_catalog.interval;
  detail := pg_catalog.format('last run %s', pg_catalog.to_char(v_settings.maintained_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI "UTC"'))
    || case when ok then '' else '; schedule meshaudit.maintain() nightly' end;
  return next;

  "check" := 'append-only';
  select pg_catalog.string_agg(t.relname, ', ' order by t.relname) into v_list
    from (
      select c.relname from pg_catalog.pg_class c
      where c.oid = 'meshaudit_private.ledger'::pg_catalog.regclass
        or c.oid in (select i.inhrelid from pg_catalog.pg_inherits i
                     where i.inhparent = 'meshaudit_private.ledger'::pg_catalog.regclass)
      group by c.oid, c.relname, c.relrowsecurity
      having not c.relrowsecurity or (
        select pg_catalog.count(*) from pg_catalog.pg_trigger g
        where g.tgrelid = c.oid and g.tgenabled = 'A'
          and g.tgfoid in ('meshaudit_private.refuse_change()'::pg_catalog.regprocedure,
                           'meshaudit_private.chain_entry()'::pg_catalog.regprocedure)) < 2
    ) t;
  ok := v_list is null;
  detail := coalesce('triggers missing or disabled, or row security off, on: ' || v_list, 'triggers and row security in place on every partition');
  return next;

  "check" := 'owner';
  select pg_catalog.string_agg(r.rolname, ', ' order by r.rolname) into v_list
    from pg_catalog.pg_roles r
    where r.rolname <> 'meshaudit_owner' and not r.rolsuper and pg_catalog.pg_has_role(r.oid, 'meshaudit_owner', 'USAGE');
  ok := v_list is null;
  detail := coalesce('act as the owner of the log and the vault: ' || v_list, 'nobody but superusers acts as meshaudit_owner');
  return next;

  -- who may grant can grant itself all, and superusers are in the next list
  "check" := 'auditors';
  select pg_catalog.string_agg(r.rolname, ', ' order by r.rolname) into v_list
    from pg_catalog.pg_roles r
    where r.rolbypassrls and not r.rolsuper and pg_catalog.pg_has_role(r.oid, 'meshaudit_auditor', 'USAGE')
      and not pg_catalog.has_function_privilege(r.oid, 'meshaudit.grant_auditor(text, text)', 'EXECUTE')
      and not exists (
        select from meshaudit_private.auditors a join pg_catalog.pg_roles g on g.rolname = a.identity
        where a.identity_source = 'database' and a.scope = '*' and pg_catalog.pg_has_role(r.oid, g.oid, 'USAGE'));
  ok := v_list is null;
  detail := coalesce('see every scope without a grant of all, being members of meshaudit_auditor with BYPASSRLS: ' || v_list
    || '; revoke meshaudit_auditor from them, or: select meshaudit.grant_auditor(…, ''*'')', 'nobody sees more than was granted');
  return next;

  "check" := 'ways around the vault';
  select pg_catalog.string_agg(r.rolname, ', ' order by r.rolname) into v_list
    from pg_catalog.pg_roles r
    where r.rolsuper or (r.rolbypassrls and pg_catalog.has_table_privilege(r.oid, 'meshaudit_private.secrets', 'SELECT'));
  ok := v_list is null;
  detail := coalesce('can read secrets without an entry (superusers, or BYPASSRLS with pg_read_all_data): ' || v_list, 'none');
  return next;

  "check" := 'lanes';
  v_count := pg_catalog.pg_stat_get_dead_tuples('meshaudit_private.lane_heads'::pg_catalog.regclass);
  ok := v_count < 100000;
  detail := pg_catalog.format('%s dead rows (bound: 100000)', v_count)
    || case when ok then '' else '; a transaction that stays open keeps them, and accesses walk over them: see pg_stat_activity.backend_xmin and pg_prepared_xacts' end;
  return next;

  return query select * from meshaudit_private.verification_status();
  return query select * from meshaudit_private.journal_status();
  return query select * from meshaudit_private.protection_status();
  return query select * from meshaudit_private.supabase_vault_status();
  return query select * from meshaudit_private.feed_status();
  return query select * from meshaudit_private.retention_status(p_role);
end
$$;
revoke all on function meshaudit_private.status(text) from public;
grant execute on function meshaudit_private.status(text) to meshaudit_auditor, meshaudit_operator;

create function meshaudit.status() returns table ("check" text, ok boolean, detail text)
language sql stable security invoker
begin atomic
  select s."check", s.ok, s.detail from meshaudit_private.status(current_user) s;
end;
revoke all on function meshaudit.status() from public;
grant execute on function meshaudit.status() to meshaudit_auditor, meshaudit_operator;

comment on function meshaudit_private.status(text) is 'meshaudit.status(), for a role.';
comment on function meshaudit.status() is 'Health of the audit log: one row a check, ok or not, and what to do. Raises MA001 to an auditor of a part of the log.';
