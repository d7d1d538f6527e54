-- A record of the journal: one access (or a batch) as a WAL message, signed.
--
-- Message: prefix "meshaudit"; content 01, key_id (int4), HMAC-SHA256 of the payload (32 bytes), payload. The payload is
-- the text of a journal_record in UTF-8. Any role may emit messages: the signature tells ours from theirs.

create type meshaudit_private.journal_record as (
  access_id uuid,
  xid xid8,        -- the transaction; null if it had none
  lane int,        -- the entry in the ledger, if that transaction commits; null: there is none, seal() makes it
  seq bigint,
  at text,         -- hex of timestamptz_send()
  operation text,
  outcome text,
  secret_id text,
  secret_table text,
  scope text,
  user_identity text,
  identity_source text,
  claimed_identity text,
  db_user text,
  db_role text,
  ip_address inet,
  application_name text,
  user_agent text,
  request_id text,
  -- a batch: the entries after the first; seq is that of the first of them
  secret_ids text[],
  scopes text[],
  ats text[],
  access_ids uuid[]
);
comment on type meshaudit_private.journal_record is 'What a record of the journal says.';

-- From 17 on a message can be flushed at once. On 15 and 16 a transactional message makes the COMMIT flush, also in a
-- READ ONLY transaction; until then what was written is in memory.
do $$
begin
  execute format($f$
    create function meshaudit_private.emit(p_content bytea, p_flush boolean) returns void
    language plpgsql volatile set search_path = ''
    as $b$
    begin
      %s
    end
    $b$ $f$,
    case when current_setting('server_version_num')::int >= 170000 then
      'perform pg_catalog.pg_logical_emit_message(false, ''meshaudit'', p_content, p_flush);'
    else
      'perform pg_catalog.pg_logical_emit_message(false, ''meshaudit'', p_content);
      if p_flush and pg_catalog.pg_current_xact_id_if_assigned() is null then
        perform pg_catalog.pg_logical_emit_message(true, ''meshaudit-flush'', '''');
      end if;'
    end);
end
$$;
comment on function meshaudit_private.emit(bytea, boolean) is
  'Emits a message; on disk when it returns if p_flush (17 and later), else at the COMMIT.';

create function meshaudit_private.sign(p_key_id int, p_inner bytea, p_outer bytea, p_record meshaudit_private.journal_record)
returns bytea
language plpgsql stable set search_path = ''
as $$
declare
  v_payload constant pg_catalog.bytea := pg_catalog.convert_to(p_record::pg_catalog.text, 'UTF8');
begin
  return pg_catalog.decode('01', 'hex') || pg_catalog.int4send(p_key_id)
    || pg_catalog.sha256(p_outer || pg_catalog.sha256(p_inner || v_payload)) || v_payload;
end
$$;
comment on function meshaudit_private.sign(int, bytea, bytea, meshaudit_private.journal_record) is
  'A message''s content: version, key, HMAC-SHA256 (RFC 2104), payload.';

create function meshaudit_private.slot_works(p_slot text) returns boolean
language sql stable set search_path = ''
as $$
  select exists (
    select from pg_catalog.pg_replication_slots s
    where s.slot_name = p_slot and s.database = pg_catalog.current_database()
      and s.restart_lsn is not null and s.wal_status is distinct from 'lost')
$$;
comment on function meshaudit_private.slot_works(text) is 'Whether that slot is there and has lost nothing.';

-- Records an access in the journal alone: in READ ONLY transactions, in journal mode, and denials. False: the journal
-- is not armed. Raises MA002 if it is, but cannot be relied on.
create function meshaudit_private.journal_access(
  p_operation text, p_outcome text, p_secret_id text, p_secret_table text, p_scope text, p_role text
) returns boolean
language plpgsql volatile set search_path = ''
as $$
declare
  j meshaudit_private.journal;
  c meshaudit_private.caller;
begin
  if pg_catalog.pg_is_in_recovery() then
    raise exception 'a standby cannot record accesses' using errcode = 'MA002',
      hint = 'Read secrets on the primary; the standby takes no records.';
  end if;
  select * into j from meshaudit_private.journal;
  if not j.armed then
    return false;
  end if;
  if j.healthy_until < pg_catalog.clock_timestamp() and not meshaudit_private.slot_works(j.slot_name) then
    raise exception 'the journal''s slot "%" is gone or has lost records', j.slot_name using errcode = 'MA002',
      hint = 'Run select meshaudit.arm_journal(): it records the gap and makes a new slot.';
  end if;
  if pg_catalog.current_setting('request.jwt.claims', true) <> '' or pg_catalog.current_setting('request.headers', true) <> ''
     or pg_catalog.current_setting('meshaudit.actor', true) <> '' then
    c := meshaudit_private.session_caller();
  else
    c.user_identity := session_user;
    c.identity_source := 'database';
    c.ip_address := pg_catalog.inet_client_addr();
  end if;
  perform meshaudit_private.emit(
    meshaudit_private.sign(j.key_id, j.inner_key, j.outer_key, row(
      pg_catalog.gen_random_uuid(), pg_catalog.pg_current_xact_id_if_assigned(), null, null,
      pg_catalog.encode(pg_catalog.timestamptz_send(pg_catalog.clock_timestamp()), 'hex'),
      p_operation, p_outcome, p_secret_id, p_secret_table, p_scope, c.user_identity, c.identity_source,
      c.claimed_identity, session_user, p_role, c.ip_address,
      nullif(pg_catalog.current_setting('application_name'), ''), c.user_agent, c.request_id,
      null, null, null, null)::meshaudit_private.journal_record),
    j.flush);
  return true;
end
$$;
comment on function meshaudit_private.journal_access(text, text, text, text, text, text) is
  'Records an access in the journal alone; false if it is not armed. Raises MA002 if it cannot be relied on.';

-- For READ ONLY and journal mode: recorded, or refused.
create function meshaudit_private.must_journal(
  p_operation text, p_secret_id text, p_secret_table text, p_scope text, p_role text
) returns void
language plpgsql volatile set search_path = ''
as $$
begin
  if not meshaudit_private.journal_access(p_operation, 'granted', p_secret_id, p_secret_table, p_scope, p_role) then
    raise exception 'no store can record this access' using errcode = 'MA002',
      hint = 'The transaction is READ ONLY (or the vault in journal mode) and the journal is not armed: run select meshaudit.arm_journal() and keep meshaudit seal --follow running, or use a READ WRITE transaction.';
  end if;
end
$$;
comment on function meshaudit_private.must_journal(text, text, text, text, text) is
  'Records an access in the journal; raises MA002 if that cannot be done.';

-- A denial is recorded if the journal is armed, and never keeps the error from its caller.
create function meshaudit_private.journal_denial(p_operation text, p_secret_id text, p_scope text, p_role text) returns void
language plpgsql volatile set search_path = ''
as $$
begin
  perform meshaudit_private.journal_access(
    p_operation, 'denied', pg_catalog."left"(p_secret_id, 512), 'meshaudit.secrets', pg_catalog."left"(p_scope, 255), p_role);
exception
  when sqlstate 'MA002' then
    null;
end
$$;
comment on function meshaudit_private.journal_denial(text, text, text, text) is 'Records a denial in the journal, if there is one.';

-- An entry of the ledger is in the journal too, so that it comes back when its transaction is rolled back.
create function meshaudit_private.journal_entry(e meshaudit_private.ledger, j meshaudit_private.journal) returns void
language plpgsql volatile set search_path = ''
as $$
begin
  if not j.armed then
    raise exception 'no access without an armed journal' using errcode = 'MA002',
      hint = 'Setting require_journal is on: run select meshaudit.arm_journal() and keep meshaudit seal --follow running.';
  end if;
  perform meshaudit_private.emit(
    meshaudit_private.sign(j.key_id, j.inner_key, j.outer_key, row(
      e.access_id, pg_catalog.pg_current_xact_id(), e.lane, e.seq,
      pg_catalog.encode(pg_catalog.timestamptz_send(e."timestamp"), 'hex'),
      e.operation, e.outcome, e.secret_id, e.secret_table, e.scope, e.user_identity, e.identity_source,
      e.claimed_identity, e.db_user, e.db_role, e.ip_address, e.application_name, e.user_agent, e.request_id,
      null, null, null, null)::meshaudit_private.journal_record),
    j.flush);
end
$$;
comment on function meshaudit_private.journal_entry(meshaudit_private.ledger, meshaudit_private.journal) is
  'Records an entry of the ledger in the journal. Raises MA002 if the journal is required and not armed.';
