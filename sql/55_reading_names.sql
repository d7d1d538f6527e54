-- Whose entries they are, for programs that read more than a page: an identity is called in the log by its pseudonyms, where it
-- has any, and may be given one while they read.
--
-- Who asks for an identity's names has been recorded as a reader of its entries: the pass that says so is a MAC, which
-- nobody else's reading, and no other identity's, has. Names are told as far as the caller sees an entry under them, which
-- a search would show.

create function meshaudit_private.reading_pass(p_identity text, p_role text) returns text
language sql stable set search_path = ''
as $$
  select pg_catalog.encode(pg_catalog.sha256(s.reading_key || pg_catalog.convert_to(row('names', c.identity_source, c.user_identity,
    session_user, p_role, p_identity)::pg_catalog.text, 'UTF8')), 'hex')
  from meshaudit_private.settings s, meshaudit_private.session_caller() c
$$;

create function meshaudit_private.begin_reading(p_kind text, p_filters text, p_identity text, p_role text) returns text
language plpgsql volatile security definer set search_path = '' set debug_print_plan = off
as $$
begin
  perform meshaudit_private.note_reading(p_kind, p_filters, p_identity, null, null, true, p_role);
  return meshaudit_private.reading_pass(p_identity, p_role);
end
$$;
revoke all on function meshaudit_private.begin_reading(text, text, text, text) from public;
grant execute on function meshaudit_private.begin_reading(text, text, text, text) to meshaudit_auditor;

create function meshaudit_private.reading_names(p_identity text, p_pass text, p_role text) returns text[]
language plpgsql stable security definer set search_path = '' set debug_print_plan = off
as $$
declare
  v_scopes constant pg_catalog.text[] := meshaudit_private.visible_scopes(p_role);
  v_all constant pg_catalog.bool := meshaudit_private.bypasses(p_role) or '*' = any (v_scopes);
begin
  if p_pass is distinct from meshaudit_private.reading_pass(p_identity, p_role) then
    perform meshaudit_private.refuse('MA005', 'the pass is not for this identity and caller', 'Take it from meshaudit.begin_reading().');
  end if;
  return array(
    select n.name from unnest(meshaudit_private.names_of(p_identity)) with ordinality n (name, i)
    where n.name = p_identity or v_all or exists (
      select from meshaudit_private.ledger l where l.user_identity = n.name and l.scope = any (v_scopes))
    order by n.i);
end
$$;
revoke all on function meshaudit_private.reading_names(text, text, text) from public;
grant execute on function meshaudit_private.reading_names(text, text, text) to meshaudit_auditor;

create function meshaudit.begin_reading(kind text, filters text default '', user_identity text default null) returns text
language sql volatile security invoker
return meshaudit_private.begin_reading(
  case when kind in ('export', 'stream') then kind end, coalesce(filters, ''), user_identity, current_user);
revoke all on function meshaudit.begin_reading(text, text, text) from public;
grant execute on function meshaudit.begin_reading(text, text, text) to meshaudit_auditor;

create function meshaudit.reading_names(user_identity text, pass text) returns text[]
language sql stable security invoker
return meshaudit_private.reading_names(user_identity, pass, current_user);
revoke all on function meshaudit.reading_names(text, text) from public;
grant execute on function meshaudit.reading_names(text, text) to meshaudit_auditor;

comment on function meshaudit_private.reading_pass(text, text) is 'What shows that the caller was recorded as a reader of that identity''s entries.';
comment on function meshaudit_private.begin_reading(text, text, text, text) is 'meshaudit.begin_reading(), for a role.';
comment on function meshaudit_private.reading_names(text, text, text) is 'meshaudit.reading_names(), for a role.';
comment on function meshaudit.begin_reading(text, text, text) is
  'Records, as note_reading() does, that the caller begins to read more than a page of the log (kind: export or stream); returns a pass for reading_names(). Raises MA005 on another kind.';
comment on function meshaudit.reading_names(text, text) is
  'What that identity is called in the entries that the caller sees: itself, and its pseudonyms (setting erasable_identities); ask again in a while, new ones may come. pass is from begin_reading() with that identity. Raises MA005 on another.';
