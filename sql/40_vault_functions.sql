-- The vault's functions: authorize (EXECUTE, given to meshaudit_client), record, reveal; in that order.

create function meshaudit_private.no_such_secret(p_what text) returns void
language plpgsql volatile set search_path = ''
as $$
begin
  raise exception 'no such secret: %', pg_catalog."left"(p_what, 100)
    using errcode = 'MA004', hint = 'It was never written, or it has been deleted; ids and keys are exact.';
end
$$;

create function meshaudit_private.check_key(p_key text, p_scope text) returns void
language plpgsql volatile set search_path = ''
as $$
begin
  if p_key is null or pg_catalog.char_length(p_key) not between 1 and 512 then
    raise exception 'key must be 1 to 512 characters' using errcode = 'MA005',
      hint = pg_catalog.format('Got %s.', coalesce(pg_catalog.char_length(p_key) || ' characters', 'NULL'));
  elsif p_scope is null or pg_catalog.char_length(p_scope) > 512 then
    raise exception 'scope must be at most 512 characters, and not null' using errcode = 'MA005',
      hint = 'The empty scope is ''''.';
  end if;
end
$$;

create function meshaudit.write_secret(key text, value bytea, scope text default '') returns uuid
language plpgsql volatile security definer set search_path = ''
as $$
declare
  v_id pg_catalog.uuid;
  v_created pg_catalog.bool;
begin
  perform meshaudit_private.check_key(key, scope);
  if value is null or pg_catalog.octet_length(value) > 1048576 then
    raise exception 'value must be at most 1 MiB, and not null' using errcode = 'MA005',
      hint = pg_catalog.format('Got %s.', coalesce(pg_catalog.octet_length(value) || ' bytes', 'NULL'));
  end if;
  insert into meshaudit_private.secrets as s (scope, key, value)
    values (write_secret.scope, write_secret.key, write_secret.value)
    on conflict on constraint secrets_scope_key_key do update
      set value = excluded.value, updated_at = pg_catalog.clock_timestamp()
    returning s.id, s.xmax operator(pg_catalog.=) '0'::pg_catalog.xid into v_id, v_created;
  insert into meshaudit_private.ledger (secret_id, access_type, operation, outcome, secret_table, scope)
    values (v_id::pg_catalog.text, 'write', (case when v_created then 'create' else 'update' end), 'granted',
      'meshaudit.secrets', write_secret.scope);
  return v_id;
end
$$;
revoke all on function meshaudit.write_secret(text, bytea, text) from public;
grant execute on function meshaudit.write_secret(text, bytea, text) to meshaudit_client;

create function meshaudit.read_secret(id uuid) returns bytea
language plpgsql volatile security definer set search_path = ''
as $$
declare
  v_scope pg_catalog.text;
  v_value pg_catalog.bytea;
begin
  select s.scope, s.value into v_scope, v_value from meshaudit_private.secrets s where s.id = read_secret.id;
  if v_scope is null then
    perform meshaudit_private.no_such_secret(id::pg_catalog.text);
  end if;
  insert into meshaudit_private.ledger (secret_id, operation, outcome, secret_table, scope)
    values (id::pg_catalog.text, 'read', 'granted', 'meshaudit.secrets', v_scope);
  return v_value;
end
$$;
revoke all on function meshaudit.read_secret(uuid) from public;
grant execute on function meshaudit.read_secret(uuid) to meshaudit_client;

create function meshaudit.read_secret_by_key(key text, scope text default '') returns bytea
language plpgsql volatile security definer set search_path = ''
as $$
declare
  v_id pg_catalog.uuid;
  v_value pg_catalog.bytea;
begin
  perform meshaudit_private.check_key(key, scope);
  select s.id, s.value into v_id, v_value from meshaudit_private.secrets s
    where s.scope = read_secret_by_key.scope and s.key = read_secret_by_key.key;
  if v_id is null then
    perform meshaudit_private.no_such_secret(key);
  end if;
  insert into meshaudit_private.ledger (secret_id, operation, outcome, secret_table, scope)
    values (v_id::pg_catalog.text, 'read', 'granted', 'meshaudit.secrets', scope);
  return v_value;
end
$$;
revoke all on function meshaudit.read_secret_by_key(text, text) from public;
grant execute on function meshaudit.read_secret_by_key(text, text) to meshaudit_client;

create function meshaudit.read_secrets(ids uuid[]) returns table (id uuid, value bytea)
language plpgsql volatile security definer set search_path = ''
as $$
declare
  v_ids pg_catalog.uuid[];
  v_scopes pg_catalog.text[];
  v_values pg_catalog.bytea[];
begin
  if ids is null then
    raise exception 'ids must not be null' using errcode = 'MA005', hint = 'Pass an array of secret ids; it may be empty.';
  end if;
  -- one snapshot decides what is recorded and what is revealed
  select pg_catalog.array_agg(s.id), pg_catalog.array_agg(s.scope), pg_catalog.array_agg(s.value)
    into v_ids, v_scopes, v_values
    from meshaudit_private.secrets s
    where s.id = any (ids);
  if v_ids is null then
    return;
  end if;
  perform meshaudit_private.record_accesses('read', 'granted', v_ids::pg_catalog.text[], 'meshaudit.secrets', v_scopes);
  return query select * from unnest(v_ids, v_values);
end
$$;
revoke all on function meshaudit.read_secrets(uuid[]) from public;
grant execute on function meshaudit.read_secrets(uuid[]) to meshaudit_client;

create function meshaudit.delete_secret(id uuid) returns boolean
language plpgsql volatile security definer set search_path = ''
as $$
declare
  v_scope pg_catalog.text;
begin
  delete from meshaudit_private.secrets s where s.id = delete_secret.id returning s.scope into v_scope;
  if v_scope is null then
    return false;
  end if;
  insert into meshaudit_private.ledger (secret_id, access_type, operation, outcome, secret_table, scope)
    values (id::pg_catalog.text, 'write', 'delete', 'granted', 'meshaudit.secrets', v_scope);
  return true;
end
$$;
revoke all on function meshaudit.delete_secret(uuid) from public;
grant execute on function meshaudit.delete_secret(uuid) to meshaudit_client;

comment on function meshaudit_private.no_such_secret(text) is 'Raises MA004.';
comment on function meshaudit_private.check_key(text, text) is 'Raises MA005 unless key and scope are usable.';
comment on function meshaudit.write_secret(text, bytea, text) is
  'Creates or replaces a secret; returns its id, which stays when it is replaced. key: 1 to 512 characters, unique in its scope; value: up to 1 MiB, store ciphertext; scope: tenant or project, up to 512 characters. Recorded as create or update. Raises MA005 on a bad argument.';
comment on function meshaudit.read_secret(uuid) is
  'Reveals one secret''s value, after recording the read. Raises MA004 if there is none of that id.';
comment on function meshaudit.read_secret_by_key(text, text) is
  'Reveals one secret''s value by key and scope, after recording the read. Raises MA004 if there is none, MA005 on a bad argument.';
comment on function meshaudit.read_secrets(uuid[]) is
  'Reveals many secrets, each once and with an entry of its own; ids that do not exist are left out. Cost is linear. Raises MA005 if ids is null.';
comment on function meshaudit.delete_secret(uuid) is
  'Deletes a secret; false if there is none. Its entries stay in the log. Recorded as delete.';
