-- The vault's public functions. They run as the caller and only pass on who that is: somebody's function that another
-- login is led to run (a view, a trigger, an index expression) is then named in db_role, beside that login in db_user.
-- Their bodies were parsed when they were made, so no search_path reaches them; without a SET clause they are inlined.

create function meshaudit.write_secret(key text, value bytea, scope text default '') returns uuid
language sql volatile security invoker
return meshaudit_private.write_secret(key, value, scope, current_user);
revoke all on function meshaudit.write_secret(text, bytea, text) from public;
grant execute on function meshaudit.write_secret(text, bytea, text) to meshaudit_client;

create function meshaudit.read_secret(id uuid) returns bytea
language sql volatile security invoker
return meshaudit_private.read_secret(id, current_user);
revoke all on function meshaudit.read_secret(uuid) from public;
grant execute on function meshaudit.read_secret(uuid) to meshaudit_client;

create function meshaudit.read_secret_by_key(key text, scope text default '') returns bytea
language sql volatile security invoker
return meshaudit_private.read_secret_by_key(key, scope, current_user);
revoke all on function meshaudit.read_secret_by_key(text, text) from public;
grant execute on function meshaudit.read_secret_by_key(text, text) to meshaudit_client;

create function meshaudit.read_secrets(ids uuid[]) returns table (id uuid, value bytea)
language sql volatile security invoker
begin atomic
  select r.id, r.value from meshaudit_private.read_secrets(ids, current_user) r;
end;
revoke all on function meshaudit.read_secrets(uuid[]) from public;
grant execute on function meshaudit.read_secrets(uuid[]) to meshaudit_client;

create function meshaudit.delete_secret(id uuid) returns boolean
language sql volatile security invoker
return meshaudit_private.delete_secret(id, current_user);
revoke all on function meshaudit.delete_secret(uuid) from public;
grant execute on function meshaudit.delete_secret(uuid) to meshaudit_client;

comment on function meshaudit.write_secret(text, bytea, text) is
  'Creates or replaces a secret; returns its id, which stays when it is replaced. key: 1 to 512 characters, unique in its scope; value: up to 1 MiB, store ciphertext; scope: tenant or project, up to 255 characters. Recorded as create or update. Raises MA005 on a bad argument.';
comment on function meshaudit.read_secret(uuid) is
  'Reveals one secret''s value, after recording the read. Raises MA004 if there is none of that id.';
comment on function meshaudit.read_secret_by_key(text, text) is
  'Reveals one secret''s value by key and scope, after recording the read. Raises MA004 if there is none, MA005 on a bad argument.';
comment on function meshaudit.read_secrets(uuid[]) is
  'Reveals many secrets, each once and with an entry of its own; ids that do not exist are left out. Cost is linear. Raises MA005 if ids is null.';
comment on function meshaudit.delete_secret(uuid) is
  'Deletes a secret; false if there is none. Its entries stay in the log. Recorded as delete.';
