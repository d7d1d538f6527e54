-- An audited path to Supabase's Vault, for who has EXECUTE here; it records as the built-in vault does (40).
--
-- Schema vault is Supabase's: it may be absent, nobody there can put triggers on it, and what others were granted on it
-- stays. So all statements on it are dynamic, the path is opened by somebody who may give it away, and status() names
-- those who can still go around. It counts only where it belongs to a superuser, as Supabase's does: else anybody who may
-- create a schema could have his own code run as meshaudit_owner by that name.

create function meshaudit_private.supabase_vault() returns oid
language sql stable set search_path = ''
as $$
  -- not to_regclass(): that fails without USAGE on the schema
  select c.oid from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  join pg_catalog.pg_roles o on o.oid = c.relowner
  where n.nspname = 'vault' and c.relname = 'decrypted_secrets' and o.rolsuper and not exists (
    select from pg_catalog.pg_proc p join pg_catalog.pg_roles r on r.oid = p.proowner
    where p.pronamespace = n.oid and p.proname in ('create_secret', 'update_secret') and not r.rolsuper)
$$;

create function meshaudit_private.require_supabase_vault() returns void
language plpgsql volatile set search_path = ''
as $$
declare
  v_vault constant pg_catalog.oid := meshaudit_private.supabase_vault();
begin
  if v_vault is null then
    perform meshaudit_private.refuse('MA005', 'this database has no Supabase Vault',
      'Its view vault.decrypted_secrets is missing, or does not belong to a superuser: create extension supabase_vault, or use meshaudit.write_secret() and read_secret().');
  elsif not pg_catalog.has_schema_privilege('meshaudit_owner', 'vault', 'USAGE')
      or not pg_catalog.has_table_privilege('meshaudit_owner', v_vault, 'SELECT') then
    perform meshaudit_private.refuse('MA001', 'the path to Supabase''s Vault is not open',
      'Run select meshaudit.open_supabase_vault() as a role that may grant what is in schema vault (Supabase''s postgres).');
  end if;
end
$$;

-- A denial is recorded if the journal is armed, and never keeps the error from its caller.
create function meshaudit_private.no_such_vault_secret(p_operation text, p_id uuid, p_role text) returns void
language plpgsql volatile set search_path = ''
as $$
begin
  begin
    perform meshaudit_private.journal_access(p_operation, 'denied', coalesce(p_id::pg_catalog.text, 'NULL'), 'vault.secrets', '', p_role);
  exception when sqlstate 'MA002' or sqlstate 'PGRST' then
    null;
  end;
  perform meshaudit_private.refuse('MA004', 'no such secret: ' || coalesce(p_id::pg_catalog.text, 'NULL'),
    'Supabase''s Vault has none of that id.');
end
$$;

create function meshaudit_private.read_vault_secret(p_id uuid, p_role name) returns text
language plpgsql volatile security definer set search_path = ''
as $$
declare
  v_found pg_catalog.bool;
  v_value pg_catalog.text;
begin
  perform meshaudit_private.require_supabase_vault();
  execute 'select true, v.decrypted_secret from vault.decrypted_secrets v where v.id operator(pg_catalog.=) $1' into v_found, v_value using p_id;
  if v_found is null then
    perform meshaudit_private.no_such_vault_secret('read', p_id, p_role);
  end if;
  perform meshaudit_private.record_access('read', p_id::pg_catalog.text, 'vault.secrets', '', p_role, meshaudit_private.vault_in_journal());
  return v_value;
end
$$;
revoke all on function meshaudit_private.read_vault_secret(uuid, name) from public;
grant execute on function meshaudit_private.read_vault_secret(uuid, name) to meshaudit_client;

create function meshaudit_private.create_vault_secret(p_value text, p_name text, p_description text, p_role name) returns uuid
language plpgsql volatile security definer set search_path = ''
as $$
declare
  v_id pg_catalog.uuid;
begin
  perform meshaudit_private.require_supabase_vault();
  execute 'select vault.create_secret($1, $2, $3)' into v_id using p_value, p_name, p_description;
  insert into meshaudit_private.ledger (secret_id, access_type, operation, outcome, secret_table, scope, db_role)
    values (v_id, 'write', 'create', 'granted', 'vault.secrets', '', p_role);
  return v_id;
end
$$;
revoke all on function meshaudit_private.create_vault_secret(text, text, text, name) from public;
grant execute on function meshaudit_private.create_vault_secret(text, text, text, name) to meshaudit_client;

create function meshaudit_private.update_vault_secret(p_id uuid, p_value text, p_name text, p_description text, p_role name) returns void
language plpgsql volatile security definer set search_path = ''
as $$
declare
  v_found pg_catalog.bool;
begin
  perform meshaudit_private.require_supabase_vault();
  execute 'select exists (select from vault.decrypted_secrets v where v.id operator(pg_catalog.=) $1)' into v_found using p_id;
  if not v_found then
    perform meshaudit_private.no_such_vault_secret('update', p_id, p_role);
  end if;
  execute 'select vault.update_secret($1, $2, $3, $4)' using p_id, p_value, p_name, p_description;
  insert into meshaudit_private.ledger (secret_id, access_type, operation, outcome, secret_table, scope, db_role)
    values (p_id, 'write', 'update', 'granted', 'vault.secrets', '', p_role);
end
$$;
revoke all on function meshaudit_private.update_vault_secret(uuid, text, text, text, name) from public;
grant execute on function meshaudit_private.update_vault_secret(uuid, text, text, text, name) to meshaudit_client;

create function meshaudit.read_vault_secret(id uuid) returns text
language sql volatile security invoker
return meshaudit_private.read_vault_secret(id, current_user);
revoke all on function meshaudit.read_vault_secret(uuid) from public;
grant execute on function meshaudit.read_vault_secret(uuid) to meshaudit_client;

create function meshaudit.create_vault_secret(value text, name text default null, description text default '') returns uuid
language sql volatile security invoker
return meshaudit_private.create_vault_secret(value, name, description, current_user);
revoke all on function meshaudit.create_vault_secret(text, text, text) from public;
grant execute on function meshaudit.create_vault_secret(text, text, text) to meshaudit_client;

create function meshaudit.update_vault_secret(id uuid, value text default null, name text default null, description text default null) returns void
language sql volatile security invoker
return meshaudit_private.update_vault_secret(id, value, name, description, current_user);
revoke all on function meshaudit.update_vault_secret(uuid, text, text, text) from public;
grant execute on function meshaudit.update_vault_secret(uuid, text, text, text) to meshaudit_client;

-- As the caller, whose grants they are.
create function meshaudit_private.grant_supabase_vault(p_open boolean) returns void
language plpgsql volatile security invoker set search_path = ''
as $$
declare
  v_functions pg_catalog.text;
begin
  select pg_catalog.string_agg(p.oid::pg_catalog.regprocedure::pg_catalog.text, ', ') into v_functions
    from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace
    -- the last one is what the view calls in some versions
    where n.nspname = 'vault' and p.proname in ('create_secret', 'update_secret', '_crypto_aead_det_decrypt');
  if v_functions is null then
    return;  -- note_supabase_vault() says what is missing
  elsif p_open then
    execute 'grant usage on schema vault to meshaudit_owner';
    execute 'grant select on vault.decrypted_secrets to meshaudit_owner';
    execute pg_catalog.format('grant execute on function %s to meshaudit_owner', v_functions);
  else
    execute pg_catalog.format('revoke execute on function %s from meshaudit_owner', v_functions);
    execute 'revoke select on vault.decrypted_secrets from meshaudit_owner';
    execute 'revoke usage on schema vault from meshaudit_owner';
  end if;
exception when insufficient_privilege then
  raise exception 'you may not grant what is in schema vault' using errcode = 'MA001',
    hint = 'Run it as a role that has it WITH GRANT OPTION (Supabase''s postgres), or as its owner.';
end
$$;
revoke all on function meshaudit_private.grant_supabase_vault(boolean) from public;
grant execute on function meshaudit_private.grant_supabase_vault(boolean) to meshaudit_operator;

create function meshaudit_private.note_supabase_vault(p_open boolean, p_role name) returns void
language plpgsql volatile security definer set search_path = ''
as $$
begin
  if p_open then
    -- Postgres only warns who grants what it may not
    perform meshaudit_private.require_supabase_vault();
  end if;
  insert into meshaudit_private.ledger (secret_id, access_type, operation, outcome, secret_table, scope, db_role)
    values ('vault.secrets', 'write', (case when p_open then 'create' else 'delete' end), 'granted', 'meshaudit.supabase_vault', '*', p_role);
end
$$;
revoke all on function meshaudit_private.note_supabase_vault(boolean, name) from public;
grant execute on function meshaudit_private.note_supabase_vault(boolean, name) to meshaudit_operator;

create function meshaudit.open_supabase_vault() returns void
language sql volatile security invoker
begin atomic
  select meshaudit_private.grant_supabase_vault(true);
  select meshaudit_private.note_supabase_vault(true, current_user);
end;
revoke all on function meshaudit.open_supabase_vault() from public;
grant execute on function meshaudit.open_supabase_vault() to meshaudit_operator;

create function meshaudit.close_supabase_vault() returns void
language sql volatile security invoker
begin atomic
  select meshaudit_private.grant_supabase_vault(false);
  select meshaudit_private.note_supabase_vault(false, current_user);
end;
revoke all on function meshaudit.close_supabase_vault() from public;
grant execute on function meshaudit.close_supabase_vault() to meshaudit_operator;

-- Its part of status(); no line where there is no such vault.
create function meshaudit_private.supabase_vault_status() returns table ("check" text, ok boolean, detail text)
language sql stable set search_path = ''
as $$
  select 'ways around Supabase''s Vault', w.list is null,
    coalesce('can read vault.decrypted_secrets without an entry: ' || w.list
      || '; have them use meshaudit.read_vault_secret(), and revoke what is yours to revoke', 'nobody but superusers reads vault.decrypted_secrets directly')
  from (
    select pg_catalog.string_agg(r.rolname, ', ' order by r.rolname) as list
    from pg_catalog.pg_roles r
    where not r.rolsuper and r.rolname !~ '^pg_' and r.rolname <> 'meshaudit_owner'
      and pg_catalog.has_schema_privilege(r.oid, 'vault', 'USAGE')
      and pg_catalog.has_table_privilege(r.oid, meshaudit_private.supabase_vault(), 'SELECT')
  ) w
  where meshaudit_private.supabase_vault() is not null
$$;

comment on function meshaudit_private.supabase_vault() is 'The oid of vault.decrypted_secrets; null where there is none.';
comment on function meshaudit_private.require_supabase_vault() is 'Raises MA005 if there is no Supabase Vault, MA001 if the path to it is not open.';
comment on function meshaudit_private.no_such_vault_secret(text, uuid, text) is 'Records the denial in the journal and raises MA004.';
comment on function meshaudit_private.read_vault_secret(uuid, name) is 'meshaudit.read_vault_secret(), for a role.';
comment on function meshaudit_private.create_vault_secret(text, text, text, name) is 'meshaudit.create_vault_secret(), for a role.';
comment on function meshaudit_private.update_vault_secret(uuid, text, text, text, name) is 'meshaudit.update_vault_secret(), for a role.';
comment on function meshaudit_private.grant_supabase_vault(boolean) is 'Gives meshaudit_owner the path to Supabase''s Vault, or takes it back. Raises MA001.';
comment on function meshaudit_private.note_supabase_vault(boolean, name) is 'Records that the path was opened or closed. Raises MA001 or MA005 if it is not open.';
comment on function meshaudit_private.supabase_vault_status() is 'Who can read Supabase''s Vault past the audit.';
comment on function meshaudit.read_vault_secret(uuid) is
  'Reveals one secret of Supabase''s Vault, after recording the read. Raises MA004 if there is none of that id, MA001 if the path is not open, MA005 without such a vault.';
comment on function meshaudit.create_vault_secret(text, text, text) is 'Creates a secret in Supabase''s Vault; returns its id. Recorded. Raises MA001 and MA005 as read_vault_secret() does.';
comment on function meshaudit.update_vault_secret(uuid, text, text, text) is 'Changes a secret of Supabase''s Vault; null leaves as it is. Recorded. Raises MA004, and MA001 and MA005 as read_vault_secret() does.';
comment on function meshaudit.open_supabase_vault() is
  'Opens the audited path to Supabase''s Vault: from then on members of meshaudit_client reach all of its secrets by the functions here. Recorded. For an operator who may grant what is in schema vault. Raises MA001, MA005.';
comment on function meshaudit.close_supabase_vault() is 'Closes the audited path to Supabase''s Vault. Recorded. Raises MA001.';
