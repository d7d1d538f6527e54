-- A record of the journal: one access (or a batch) as a WAL message, signed.
--
-- Message: prefix "meshaudit"; content 01, key_id (int4), HMAC-SHA256 of the payload (32 bytes), payload. The payload is
-- the text of a journal_record in UTF-8. Any role may emit messages: the signature tells ours from theirs.

create type meshaudit_private.journal_record as (
  written pg_lsn,  -- the end of the log before it: a record that turns up far behind is a replay
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
  -- a batch: seq and access_id are those of the first
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

-- Returns when the records of transactions that are over are on disk. Before 17 nothing in SQL flushes the log, but the
-- WAL writer does for every transaction that had an xid, within three rounds of its own.
do $$
begin
  execute format($f$
    create function meshaudit_private.flush_wal() returns void
    language plpgsql volatile set search_path = ''
    as $b$
    declare
      v_end constant pg_catalog.pg_lsn := pg_catalog.pg_current_wal_insert_lsn();
      v_until constant pg_catalog.timestamptz := pg_catalog.clock_timestamp() + '50 ms'::pg_catalog.interval
        + 3 * pg_catalog.current_setting('wal_writer_delay')::pg_catalog.interval;
    begin
      %s
      while pg_catalog.pg_current_wal_flush_lsn() < v_end and pg_catalog.clock_timestamp() < v_until loop
        perform pg_catalog.pg_sleep(0.01);
      end loop;
    end
    $b$ $f$,
    case when current_setting('server_version_num')::int >= 170000 then
      'perform pg_catalog.pg_logical_emit_message(false, ''meshaudit-flush'', '''', true);' else '' end);
end
$$;
comment on function meshaudit_private.flush_wal() is 'Waits until the records of transactions that are over are on disk.';
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

-- p_sealed: beyond it nobody but the sealer moves the slot. Who did, or made another slot of that name, has skipped
-- records. Left out where it may be of an older snapshot than the slot.
create function meshaudit_private.slot_works(p_slot text, p_sealed pg_lsn default null) returns boolean
language sql stable set search_path = ''
as $$
  select exists (
    select from pg_catalog.pg_replication_slots s
    where s.slot_name = p_slot and s.database = pg_catalog.current_database()
      and s.restart_lsn is not null and s.wal_status is distinct from 'lost'
      and (p_sealed is null or s.confirmed_flush_lsn <= p_sealed))
$$;
comment on function meshaudit_private.slot_works(text, pg_lsn) is 'Whether that slot is there and has lost nothing.';

-- An older snapshot may show a journal that has been disarmed since: then the slot itself is asked.
create function meshaudit_private.journal_works(j meshaudit_private.journal) returns boolean
language plpgsql stable set search_path = ''
as $$
begin
  if j.healthy_until > pg_catalog.clock_timestamp() and j.healthy_since = pg_catalog.pg_postmaster_start_time()
     and pg_catalog.current_setting('transaction_isolation') = 'read committed' then
    return true;
  end if;
  return meshaudit_private.slot_works(j.slot_name);
end
$$;
comment on function meshaudit_private.journal_works(meshaudit_private.journal) is 'Whether records of an armed journal will be sealed.';

-- The journal's state. Raises MA002 if it is armed, but cannot be relied on.
create function meshaudit_private.usable_journal() returns meshaudit_private.journal
language plpgsql volatile set search_path = ''
as $$
declare
  j meshaudit_private.journal;
begin
  if pg_catalog.pg_is_in_recovery() then
    raise exception 'a standby cannot record accesses' using errcode = 'MA002',
      hint = 'Read secrets on the primary; the standby takes no records.';
  end if;
  select * into j from meshaudit_private.journal;
  if j.armed and not meshaudit_private.journal_works(j) then
    raise exception 'the journal''s slot "%" is gone or has lost records', j.slot_name using errcode = 'MA002',
      hint = 'Run select meshaudit.arm_journal(): it records the gap and makes a new slot.';
  end if;
  return j;
end
$$;
comment on function meshaudit_private.usable_journal() is 'The journal''s state; MA002 if it is armed, but cannot be relied on.';

-- Whose end an access waits for, to be granted or rolled back. READ ONLY has nothing to undo, though on 15 and 16
-- emit() gives it an xid.
create function meshaudit_private.deciding_xid() returns xid8
language sql volatile parallel unsafe
return case when pg_catalog.current_setting('transaction_read_only') = 'off' then pg_catalog.pg_current_xact_id_if_assigned() end;
comment on function meshaudit_private.deciding_xid() is 'The transaction whose end decides an access''s outcome; null if none does.';

create function meshaudit_private.caller_now() returns meshaudit_private.caller
language plpgsql stable set search_path = ''
as $$
declare
  c meshaudit_private.caller;
begin
  if pg_catalog.current_setting('request.jwt.claims', true) <> '' or pg_catalog.current_setting('request.headers', true) <> ''
     or pg_catalog.current_setting('meshaudit.actor', true) <> '' then
    return meshaudit_private.session_caller();
  end if;
  c.user_identity := session_user;
  c.identity_source := 'database';
  c.ip_address := pg_catalog.inet_client_addr();
  return c;
end
$$;
comment on function meshaudit_private.caller_now() is 'session_caller(), the quick way where no setting has a say.';

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
  j := meshaudit_private.usable_journal();
  if not j.armed then
    return false;
  end if;
  c := meshaudit_private.caller_now();
  perform meshaudit_private.emit(
    meshaudit_private.sign(j.key_id, j.inner_key, j.outer_key, row(
      pg_catalog.pg_current_wal_insert_lsn(), pg_catalog.gen_random_uuid(), meshaudit_private.deciding_xid(),
      null, null,
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
create function meshaudit_private.refuse_unrecorded() returns void
language plpgsql volatile set search_path = ''
as $$
begin
  raise exception 'no store can record this access' using errcode = 'MA002',
    hint = 'The transaction is READ ONLY (or the vault in journal mode) and the journal is not armed: run select meshaudit.arm_journal() and keep meshaudit seal --follow running, or use a READ WRITE transaction.';
end
$$;
comment on function meshaudit_private.refuse_unrecorded() is 'Raises MA002.';

create function meshaudit_private.must_journal(
  p_operation text, p_secret_id text, p_secret_table text, p_scope text, p_role text
) returns void
language plpgsql volatile set search_path = ''
as $$
begin
  if not meshaudit_private.journal_access(p_operation, 'granted', p_secret_id, p_secret_table, p_scope, p_role) then
    perform meshaudit_private.refuse_unrecorded();
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
  if j.required and not meshaudit_private.journal_works(k) from meshaudit_private.journal k then
    raise exception 'the journal''s slot is gone or has lost records' using errcode = 'MA002',
      hint = 'Setting require_journal is on: run select meshaudit.arm_journal(), which records the gap and makes a new slot.';
  end if;
  perform meshaudit_private.emit(
    meshaudit_private.sign(j.key_id, j.inner_key, j.outer_key, row(
      pg_catalog.pg_current_wal_insert_lsn(), e.access_id, pg_catalog.pg_current_xact_id(), e.lane, e.seq,
      pg_catalog.encode(pg_catalog.timestamptz_send(e."timestamp"), 'hex'),
      e.operation, e.outcome, e.secret_id, e.secret_table, e.scope, e.user_identity, e.identity_source,
      e.claimed_identity, e.db_user, e.db_role, e.ip_address, e.application_name, e.user_agent, e.request_id,
      null, null, null, null)::meshaudit_private.journal_record),
    j.flush);
end
$$;
comment on function meshaudit_private.journal_entry(meshaudit_private.ledger, meshaudit_private.journal) is
  'Records an entry of the ledger in the journal. Raises MA002 if the journal is required and not armed.';
