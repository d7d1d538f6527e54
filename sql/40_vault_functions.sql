-- The vault: authorize (EXECUTE, given to meshaudit_client), record, reveal; in that order.
--
-- The functions here take the role that called as their last argument, because inside of them current_user is the owner.
-- One read in the journal is written out here, with one look at secret and key, since calling journal_access() would cost as much again.
-- Only the public functions (42_vault_api.sql) call them: without USAGE on this schema nobody else can name them. (Members
-- of pg_read_all_data have USAGE everywhere: one who is also a client can give a false db_role, though not db_user.)

create function meshaudit_private.no_such_secret(p_operation text, p_what text, p_scope text, p_role text) returns void
language plpgsql volatile set search_path = ''
as $$
begin
  perform meshaudit_private.journal_denial(p_operation, p_what, p_scope, p_role);
  perform meshaudit_private.refuse('MA004', 'no such secret: ' || coalesce(pg_catalog."left"(p_what, 100), '<NULL>'),
    'It was never written, or it has been deleted; ids and keys are exact.');
end
$$;

create function meshaudit_private.check_name(p_key text, p_scope text) returns void
language plpgsql volatile set search_path = ''
as $$
begin
  if p_key is null or pg_catalog.char_length(p_key) not between 1 and 512 then
    perform meshaudit_private.refuse('MA005', 'key must be 1 to 512 characters',
      pg_catalog.format('Got %s.', coalesce(pg_catalog.char_length(p_key) || ' characters', 'NULL')));
  elsif p_scope is null or pg_catalog.char_length(p_scope) > 255 then
    perform meshaudit_private.refuse('MA005', 'scope must be at most 255 characters, and not null', 'The empty scope is ''''.');
  end if;
end
$$;

create function meshaudit_private.name_digest(p_key text, p_scope text) returns bytea
language sql stable parallel safe
return pg_catalog.sha256(
  pg_catalog.convert_to(p_scope, 'UTF8') || pg_catalog.decode('00', 'hex') || pg_catalog.convert_to(p_key, 'UTF8')
);

create function meshaudit_private.write_secret(p_key text, p_value bytea, p_scope text, p_role name) returns uuid
language plpgsql volatile security definer set search_path = ''
as $$
declare
  v_id pg_catalog.uuid;
  v_created pg_catalog.bool;
begin
  perform meshaudit_private.check_name(p_key, p_scope);
  if p_value is null or pg_catalog.octet_length(p_value) > 1048576 then
    perform meshaudit_private.refuse('MA005', 'value must be at most 1 MiB, and not null',
      pg_catalog.format('Got %s.', coalesce(pg_catalog.octet_length(p_value) || ' bytes', 'NULL')));
  end if;
  insert into meshaudit_private.secrets as s (scope, key, name_digest, value)
    values (p_scope, p_key, meshaudit_private.name_digest(p_key, p_scope), p_value)
    on conflict (name_digest) do update
      set value = excluded.value, updated_at = pg_catalog.clock_timestamp()
    returning s.id, s.xmax = '0'::pg_catalog.xid into v_id, v_created;
  insert into meshaudit_private.ledger (secret_id, access_type, operation, outcome, secret_table, scope, db_role)
    values (v_id, 'write', (case when v_created then 'create' else 'update' end), 'granted', 'meshaudit.secrets', p_scope,
      p_role);
  return v_id;
end
$$;
revoke all on function meshaudit_private.write_secret(text, bytea, text, name) from public;
grant execute on function meshaudit_private.write_secret(text, bytea, text, name) to meshaudit_client;

create function meshaudit_private.read_secret(p_id uuid, p_role name) returns bytea
language plpgsql volatile security definer set search_path = ''
as $$
declare
  v_journal constant pg_catalog.bool := meshaudit_private.vault_in_journal() or pg_catalog.current_setting('transaction_read_only') = 'on';
  v_scope pg_catalog.text;
  v_value pg_catalog.bytea;
  v_ready pg_catalog.bool;
  v_head pg_catalog.bytea;
  v_inner pg_catalog.bytea;
  v_outer pg_catalog.bytea;
  v_flush pg_catalog.bool;
  v_payload pg_catalog.bytea;
begin
  if v_journal then
    select s.scope, s.value, meshaudit_private.journal_healthy(j.healthy_until, j.healthy_since, j.healthy_lsn) and meshaudit_private.is_plain_session(),
        j.message_head, j.inner_key, j.outer_key, j.flush
      into v_scope, v_value, v_ready, v_head, v_inner, v_outer, v_flush
      from meshaudit_private.secrets s, meshaudit_private.journal j where s.id = p_id;
  else
    select s.scope, s.value into v_scope, v_value from meshaudit_private.secrets s where s.id = p_id;
  end if;
  if v_ready then
    v_payload := meshaudit_private.plain_payload(
      'read', 'granted', p_id::pg_catalog.text, 'meshaudit.secrets', v_scope, p_role);
    if meshaudit_private.emit(meshaudit_private.message(v_head, v_inner, v_outer, v_payload), v_flush) is null then
      perform meshaudit_private.refuse_unrecorded();
    end if;
  elsif v_scope is null then
    perform meshaudit_private.no_such_secret('read', p_id::pg_catalog.text, '', p_role);
  elsif not v_journal then
    insert into meshaudit_private.ledger (secret_id, operation, outcome, secret_table, scope, db_role)
      values (p_id, 'read', 'granted', 'meshaudit.secrets', v_scope, p_role);
  elsif not meshaudit_private.journal_access(
      'read', 'granted', p_id::pg_catalog.text, 'meshaudit.secrets', v_scope, p_role) then
    perform meshaudit_private.refuse_unrecorded();
  end if;
  return v_value;
end
$$;
revoke all on function meshaudit_private.read_secret(uuid, name) from public;
grant execute on function meshaudit_private.read_secret(uuid, name) to meshaudit_client;

create function meshaudit_private.read_secret_by_key(p_key text, p_scope text, p_role name) returns bytea
language plpgsql volatile security definer set search_path = ''
as $$
declare
  v_journal constant pg_catalog.bool := meshaudit_private.vault_in_journal() or pg_catalog.current_setting('transaction_read_only') = 'on';
  v_id pg_catalog.uuid;
  v_value pg_catalog.bytea;
  v_ready pg_catalog.bool;
  v_head pg_catalog.bytea;
  v_inner pg_catalog.bytea;
  v_outer pg_catalog.bytea;
  v_flush pg_catalog.bool;
  v_payload pg_catalog.bytea;
begin
  perform meshaudit_private.check_name(p_key, p_scope);
  if v_journal then
    select s.id, s.value, meshaudit_private.journal_healthy(j.healthy_until, j.healthy_since, j.healthy_lsn) and meshaudit_private.is_plain_session(),
        j.message_head, j.inner_key, j.outer_key, j.flush
      into v_id, v_value, v_ready, v_head, v_inner, v_outer, v_flush
      from meshaudit_private.secrets s, meshaudit_private.journal j
      where s.name_digest = meshaudit_private.name_digest(p_key, p_scope);
  else
    select s.id, s.value into v_id, v_value from meshaudit_private.secrets s
      where s.name_digest = meshaudit_private.name_digest(p_key, p_scope);
  end if;
  if v_ready then
    v_payload := meshaudit_private.plain_payload(
      'read', 'granted', v_id::pg_catalog.text, 'meshaudit.secrets', p_scope, p_role);
    if meshaudit_private.emit(meshaudit_private.message(v_head, v_inner, v_outer, v_payload), v_flush) is null then
      perform meshaudit_private.refuse_unrecorded();
    end if;
  elsif v_id is null then
    perform meshaudit_private.no_such_secret('read', p_key, p_scope, p_role);
  elsif not v_journal then
    insert into meshaudit_private.ledger (secret_id, operation, outcome, secret_table, scope, db_role)
      values (v_id, 'read', 'granted', 'meshaudit.secrets', p_scope, p_role);
  elsif not meshaudit_private.journal_access(
      'read', 'granted', v_id::pg_catalog.text, 'meshaudit.secrets', p_scope, p_role) then
    perform meshaudit_private.refuse_unrecorded();
  end if;
  return v_value;
end
$$;
revoke all on function meshaudit_private.read_secret_by_key(text, text, name) from public;
grant execute on function meshaudit_private.read_secret_by_key(text, text, name) to meshaudit_client;

create function meshaudit_private.read_secrets(p_ids uuid[], p_role name) returns table (id uuid, value bytea)
language plpgsql volatile security definer set search_path = ''
as $$
declare
  v_ids pg_catalog.uuid[];
  v_scopes pg_catalog.text[];
  v_values pg_catalog.bytea[];
  v_unknown pg_catalog.uuid;
begin
  if p_ids is null then
    perform meshaudit_private.refuse('MA005', 'ids must not be null', 'Pass an array of secret ids; it may be empty.');
  end if;
  -- one snapshot decides what is recorded and what is revealed
  select pg_catalog.array_agg(s.id), pg_catalog.array_agg(s.scope), pg_catalog.array_agg(s.value)
    into v_ids, v_scopes, v_values
    from meshaudit_private.secrets s
    where s.id = any (p_ids);
  if pg_catalog.current_setting('transaction_read_only') = 'on' or meshaudit_private.vault_in_journal() then
    if v_ids is not null then
      perform meshaudit_private.journal_accesses('read', v_ids::pg_catalog.text[], 'meshaudit.secrets', v_scopes, p_role);
    end if;
  else
    perform meshaudit_private.record_accesses(
      'read', 'granted', v_ids::pg_catalog.text[], 'meshaudit.secrets', v_scopes, p_role);
  end if;
  for v_unknown in select i from unnest(p_ids) i where i is not null except select k from unnest(v_ids) k limit 100 loop
    perform meshaudit_private.journal_denial('read', v_unknown::pg_catalog.text, '', p_role);
  end loop;
  return query select * from unnest(v_ids, v_values);
end
$$;
revoke all on function meshaudit_private.read_secrets(uuid[], name) from public;
grant execute on function meshaudit_private.read_secrets(uuid[], name) to meshaudit_client;

create function meshaudit_private.delete_secret(p_id uuid, p_role name) returns boolean
language plpgsql volatile security definer set search_path = ''
as $$
declare
  v_scope pg_catalog.text;
begin
  delete from meshaudit_private.secrets s where s.id = p_id returning s.scope into v_scope;
  if v_scope is null then
    return false;
  end if;
  insert into meshaudit_private.ledger (secret_id, access_type, operation, outcome, secret_table, scope, db_role)
    values (p_id, 'write', 'delete', 'granted', 'meshaudit.secrets', v_scope, p_role);
  return true;
end
$$;
revoke all on function meshaudit_private.delete_secret(uuid, name) from public;
grant execute on function meshaudit_private.delete_secret(uuid, name) to meshaudit_client;

comment on function meshaudit_private.no_such_secret(text, text, text, text) is 'Records the denial in the journal and raises MA004.';
comment on function meshaudit_private.check_name(text, text) is 'Raises MA005 unless key and scope are usable.';
comment on function meshaudit_private.name_digest(text, text) is 'What a secret is found by: a digest of scope and key.';
comment on function meshaudit_private.write_secret(text, bytea, text, name) is 'meshaudit.write_secret(), for a role.';
comment on function meshaudit_private.read_secret(uuid, name) is 'meshaudit.read_secret(), for a role.';
comment on function meshaudit_private.read_secret_by_key(text, text, name) is 'meshaudit.read_secret_by_key(), for a role.';
comment on function meshaudit_private.read_secrets(uuid[], name) is 'meshaudit.read_secrets(), for a role.';
comment on function meshaudit_private.delete_secret(uuid, name) is 'meshaudit.delete_secret(), for a role.';
