-- Who reads the log leaves a trace in it: one entry a search, which says for what and how many entries were seen, one
-- for each time that a query names the view, which says no more, and what programs note of their exports and streams.
--
-- Invariants
--   * a query of the view meets the policy's reading(), once, before it sees a row; meshaudit's own definer functions
--     (verify, checkpoint, sealing) are the owner's, meet no policy, and record nothing here;
--   * a search records itself when it knows the count. To reading() it shows a token that only these functions can make,
--     and that no code of the caller's runs beside: it is there for the search's own query alone;
--   * no secret is revealed here: where neither store takes the record (READ ONLY without a journal, a standby), the log
--     is read all the same, unless setting require_journal is on.

create function meshaudit_private.record_reading(p_what text, p_outcome text, p_role text) returns void
language plpgsql volatile set search_path = ''
as $$
declare
  v_recorded pg_catalog.bool := false;
begin
  if pg_catalog.current_setting('transaction_read_only') = 'off' then
    insert into meshaudit_private.ledger (secret_id, operation, outcome, secret_table, scope, db_role)
      values (meshaudit_private.bounded(p_what), 'read', p_outcome, 'meshaudit.audit_logs', '*', p_role);
    return;
  end if;
  if not meshaudit_private.journal_used() then
    return;
  end if;
  begin
    v_recorded := meshaudit_private.journal_access(
      'read', p_outcome, pg_catalog."left"(p_what, 512), 'meshaudit.audit_logs', '*', p_role);
  exception when sqlstate 'MA002' then
    null;
  end;
  if not v_recorded and (select j.required from meshaudit_private.journal j) then
    perform meshaudit_private.refuse_unrecorded();
  end if;
end
$$;

-- In the policy, as an InitPlan that gates the query. STABLE, so that the planner evaluates it once; what it calls is not.
create function meshaudit_private.reading(p_role text) returns boolean
language plpgsql stable security definer set search_path = ''
as $$
begin
  if coalesce(pg_catalog.current_setting('meshaudit.search', true), '') <> ''
     and meshaudit_private.is_search(pg_catalog.current_setting('meshaudit.search', true)) then
    return true;
  end if;
  perform meshaudit_private.record_reading('a query', meshaudit_private.reading_outcome(p_role), p_role);
  return true;
end
$$;
revoke all on function meshaudit_private.reading(text) from public;
grant execute on function meshaudit_private.reading(text) to meshaudit_auditor;

create function meshaudit_private.bypasses(p_role text) returns boolean
language sql stable set search_path = ''
as $$
  select exists (select from pg_catalog.pg_roles r where r.rolname = p_role and (r.rolsuper or r.rolbypassrls))
$$;

-- Who may see nothing is denied, though not by an error.
create function meshaudit_private.reading_outcome(p_role text) returns text
language plpgsql stable set search_path = ''
as $$
begin
  return case when not meshaudit_private.bypasses(p_role) and meshaudit_private.visible_scopes(p_role) = '{}'
    then 'denied' else 'granted' end;
end
$$;

create function meshaudit_private.search_token(p_nonce text) returns text
language sql stable set search_path = ''
as $$
  select p_nonce || pg_catalog.encode(pg_catalog.sha256(s.reading_key || pg_catalog.int4send(pg_catalog.pg_backend_pid())
    || pg_catalog.timestamptz_send(pg_catalog.statement_timestamp()) || pg_catalog.convert_to(p_nonce, 'UTF8')), 'hex')
  from meshaudit_private.settings s
$$;

-- Who can name the functions of this schema could make a token himself: his searches are recorded twice.
create function meshaudit_private.is_search(p_token text) returns boolean
language sql stable set search_path = ''
as $$
  select p_token = meshaudit_private.search_token(pg_catalog."left"(p_token, 36))
    and not pg_catalog.has_schema_privilege(session_user, 'meshaudit_private', 'USAGE')
    and not pg_catalog.pg_has_role(session_user, 'pg_read_all_data', 'MEMBER')
$$;

create type meshaudit_private.search_start as (token text, scopes text[], step interval, names text[]);

-- What a search needs to know; scopes is null where all are seen.
create function meshaudit_private.begin_search(p_role text, p_identity text) returns meshaudit_private.search_start
language plpgsql volatile security definer set search_path = ''
as $$
declare
  v_start meshaudit_private.search_start;
begin
  v_start.token := meshaudit_private.search_token(pg_catalog.gen_random_uuid()::pg_catalog.text);
  if not meshaudit_private.bypasses(p_role) then
    v_start.scopes := meshaudit_private.visible_scopes(p_role);
    if '*' = any (v_start.scopes) then
      v_start.scopes := null;
    end if;
  end if;
  v_start.names := meshaudit_private.names_of(p_identity);
  v_start.step := (select ('1 ' || s.partition_interval)::pg_catalog.interval from meshaudit_private.settings s);
  return v_start;
end
$$;
revoke all on function meshaudit_private.begin_search(text, text) from public;
grant execute on function meshaudit_private.begin_search(text, text) to meshaudit_auditor;

-- p_count is null while it is not known: the reading has only begun. p_what and p_more are what stands before and behind
-- the identity.
create function meshaudit_private.note_reading(
  p_kind text, p_what text, p_identity text, p_more text, p_count bigint, p_whole boolean, p_role text
) returns boolean
-- no plan shows what the identity is called elsewhere
language plpgsql volatile security definer set search_path = '' set debug_print_plan = off
as $$
begin
  if p_kind is null or p_count < 0 then
    raise exception 'kind must be export or stream, and entries not negative' using errcode = 'MA005',
      hint = 'entries is null for a reading that begins.';
  end if;
  perform meshaudit_private.record_reading(
    pg_catalog.format('%s (%s): %s', p_kind, pg_catalog."left"(pg_catalog.concat_ws(', ', nullif(p_what, ''),
        'user_identity ' || meshaudit_private.told_as(p_identity), nullif(p_more, '')), 440),
        coalesce(p_count || ' entries', 'begun'))
      || case when p_whole then '' else ', broken off' end,
    meshaudit_private.reading_outcome(p_role), p_role);
  return true;
end
$$;
revoke all on function meshaudit_private.note_reading(text, text, text, text, bigint, boolean, text) from public;
grant execute on function meshaudit_private.note_reading(text, text, text, text, bigint, boolean, text) to meshaudit_auditor;

-- For programs that read more than a page: what they say stands in their caller's name. It hides nothing: a query of the
-- view is recorded all the same.
create function meshaudit.note_reading(
  kind text, filters text default '', entries bigint default null, whole boolean default true, user_identity text default null
)
returns void
language sql volatile security invoker
begin atomic
  select meshaudit_private.note_reading(
    case when note_reading.kind in ('export', 'stream') then note_reading.kind end, coalesce(note_reading.filters, ''),
    note_reading.user_identity, null,
    note_reading.entries, coalesce(note_reading.whole, true), current_user);
end;
revoke all on function meshaudit.note_reading(text, text, bigint, boolean, text) from public;
grant execute on function meshaudit.note_reading(text, text, bigint, boolean, text) to meshaudit_auditor;

comment on type meshaudit_private.search_start is 'What a search needs to know of its caller and of the ledger.';
comment on function meshaudit_private.record_reading(text, text, text) is
  'Records that the log was read, in the ledger or the journal; where neither can, only if require_journal is on raises MA002.';
comment on function meshaudit_private.reading(text) is 'Records a query of the view audit_logs, unless it is a search''s own.';
comment on function meshaudit_private.bypasses(text) is 'Whether row security does not apply to a role.';
comment on function meshaudit_private.reading_outcome(text) is 'granted, or denied for a role that sees no scope.';
comment on function meshaudit_private.search_token(text) is 'What a search shows to reading(): a nonce, and a keyed hash of it for this statement.';
comment on function meshaudit_private.is_search(text) is 'Whether a token was made by begin_search() in this statement.';
comment on function meshaudit_private.begin_search(text, text) is 'A search''s token, the scopes that its caller sees (null is all), and what the identity that it asks for is called.';
comment on function meshaudit_private.note_reading(text, text, text, text, bigint, boolean, text) is 'Records a reading of a kind, and how many entries it showed.';
comment on function meshaudit.note_reading(text, text, bigint, boolean, text) is
  'Records that the caller begins to read more than a page of the log (kind: export or stream), or, with entries, how many it got; whole is false if it was broken off; user_identity is the identity that was filtered by, if any, told as its pseudonym where it has one. Raises MA005 on another kind.';
