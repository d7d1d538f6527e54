-- A record of the journal: one access (or a batch) as a WAL message, signed.
--
-- Written for speed: a record costs a tenth of an INSERT, and each layer of functions or each composite handed on would
-- cost as much again as the signature. So what reads like a helper has a body in standard SQL, which is inlined, and
-- takes scalars; payloads are rows cast to text on the spot.
--
-- Message: prefix "meshaudit"; content 01, key_id (int4), HMAC-SHA256 of the payload (32 bytes), payload. The payload is
-- the text of a journal_record in UTF-8. Any role may emit messages: the signature tells ours from theirs.

create type meshaudit_private.journal_record as (
  written pg_lsn,  -- the end of the log before it: a record that turns up far behind is a replay
  writer text,     -- what the entry's access_id is, or a pid: with "written" it is unique, and the id is made of the HMAC
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
  execute
    'create function meshaudit_private.emit(p_content bytea, p_flush boolean) returns pg_lsn
     language sql volatile
     return '
    || case when current_setting('server_version_num')::int >= 170000 then
      'pg_catalog.pg_logical_emit_message(false, ''meshaudit'', p_content, p_flush)'
    else
      'greatest(pg_catalog.pg_logical_emit_message(false, ''meshaudit'', p_content),
        case when p_flush and pg_catalog.pg_current_xact_id_if_assigned() is null then
          pg_catalog.pg_logical_emit_message(true, ''meshaudit-flush'', '''') end)'
    end;
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

create function meshaudit_private.message(p_head bytea, p_inner bytea, p_outer bytea, p_payload bytea) returns bytea
language sql immutable parallel safe
return p_head || pg_catalog.sha256(p_outer || pg_catalog.sha256(p_inner || p_payload)) || p_payload;
comment on function meshaudit_private.message(bytea, bytea, bytea, bytea) is
  'A message''s content: version and key, HMAC-SHA256 (RFC 2104), payload.';

-- p_sealed: beyond it nobody but the sealer moves the slot. Who did, or made another slot of that name, has skipped
-- records. Left out where it may be of an older snapshot than the slot. While a slot is being made it shows nothing that is written,
-- and has no confirmed_flush_lsn.
create function meshaudit_private.slot_works(p_slot text, p_sealed pg_lsn default null) returns boolean
language sql stable set search_path = ''
as $$
  select exists (
    select from pg_catalog.pg_replication_slots s
    where s.slot_name = p_slot and s.database = pg_catalog.current_database() and s.plugin = 'pgoutput' and not s.temporary
      and s.restart_lsn is not null and s.confirmed_flush_lsn is not null and s.wal_status is distinct from 'lost'
      and (p_sealed is null or s.confirmed_flush_lsn <= p_sealed))
$$;
comment on function meshaudit_private.slot_works(text, pg_lsn) is 'Whether that slot is there and has lost nothing.';

-- Whether what is written now will be there for the sealer: a slot beyond max_slot_wal_keep_size can be lost at any moment,
-- and everybody can make the log long.
create function meshaudit_private.slot_keeps(p_slot text) returns boolean
language sql volatile set search_path = ''
as $$
  select meshaudit_private.slot_works(p_slot) and exists (
    select from pg_catalog.pg_replication_slots s
    where s.slot_name = p_slot and (s.safe_wal_size is null or s.safe_wal_size > 0))
$$;
comment on function meshaudit_private.slot_keeps(text) is 'Whether that slot works and will not be lost before the sealer has read it.';

-- Half of the way to where the slot can be lost: the other half is what may be written before the sealer comes.
create function meshaudit_private.safe_lsn(p_slot text) returns pg_lsn
language plpgsql volatile set search_path = ''
as $$
declare
  -- before the slot is looked at: never too far
  v_written constant pg_catalog.pg_lsn := pg_catalog.pg_current_wal_lsn();
begin
  return coalesce((
    select case when s.safe_wal_size is null then 'FFFFFFFF/FFFFFFFF'::pg_catalog.pg_lsn
      else v_written + pg_catalog.div(greatest(s.safe_wal_size, 0), 2) end
    from pg_catalog.pg_replication_slots s where s.slot_name = p_slot and s.wal_status is distinct from 'lost'), '0/0');
end
$$;
comment on function meshaudit_private.safe_lsn(text) is 'Up to where the log can grow without that slot coming near its loss.';

-- Whether the sealer has lately seen an armed journal's slot at work, on this very server (a standby, and one that was promoted,
-- started at another time), and not so much has been written since that the slot could be lost. An older snapshot may show a
-- journal that has been disarmed since. If not: require_working() looks.
create function meshaudit_private.journal_healthy(p_until timestamptz, p_since timestamptz, p_lsn pg_lsn) returns boolean
language sql volatile
return p_until > pg_catalog.clock_timestamp() and p_since = pg_catalog.pg_postmaster_start_time()
  and p_lsn > pg_catalog.pg_current_wal_insert_lsn() and pg_catalog.current_setting('transaction_isolation') = 'read committed';
comment on function meshaudit_private.journal_healthy(timestamptz, timestamptz, pg_lsn) is
  'Whether the journal is armed, and need not be looked at.';

-- Raises MA002 if the journal cannot be relied on.
create function meshaudit_private.require_working(p_armed boolean, p_slot text) returns void
language plpgsql volatile set search_path = ''
as $$
begin
  if pg_catalog.pg_is_in_recovery() then
    perform meshaudit_private.refuse('MA002', 'a standby cannot record accesses',
      'Read secrets on the primary; the standby takes no records.');
  elsif p_armed and not meshaudit_private.slot_works(p_slot) then
    perform meshaudit_private.refuse('MA002',
      pg_catalog.format('the journal''s slot "%s" is gone or has lost records', p_slot),
      'Run select meshaudit.arm_journal(): it records the gap and makes a new slot.');
  elsif p_armed and not meshaudit_private.slot_keeps(p_slot) then
    perform meshaudit_private.refuse('MA002',
      pg_catalog.format('the journal''s slot "%s" may be lost at any moment: it keeps more than max_slot_wal_keep_size', p_slot),
      'End the oldest open transaction, keep meshaudit seal --follow running, or raise max_slot_wal_keep_size.');
  end if;
end
$$;
comment on function meshaudit_private.require_working(boolean, text) is 'Raises MA002 on a standby, or if an armed journal''s slot is lost.';

-- Whose end an access waits for, to be granted or rolled back. READ ONLY has nothing to undo; on 15 and 16 emit() gives it an
-- xid all the same.
do $$
begin
  execute 'create function meshaudit_private.deciding_xid() returns xid8 language sql volatile parallel unsafe return '
    || case when current_setting('server_version_num')::int >= 170000 then 'pg_catalog.pg_current_xact_id_if_assigned()'
    else 'case when pg_catalog.current_setting(''transaction_read_only'') = ''off'' then pg_catalog.pg_current_xact_id_if_assigned() end' end;
end
$$;
comment on function meshaudit_private.deciding_xid() is 'The transaction whose end decides an access''s outcome; null if none does.';

-- Whether no setting of the session has a say in who calls.
create function meshaudit_private.is_plain_session() returns boolean
language sql stable
return pg_catalog.concat(pg_catalog.current_setting('request.jwt.claims', true),
  pg_catalog.current_setting('request.headers', true), pg_catalog.current_setting('meshaudit.actor', true)) = '';
comment on function meshaudit_private.is_plain_session() is 'Whether session_caller() would say nothing but the login and its address.';

-- The payload of a plain session's access that has no entry in the ledger.
create function meshaudit_private.plain_payload(
  p_operation text, p_outcome text, p_secret_id text, p_secret_table text, p_scope text, p_role text
) returns bytea
language sql volatile
return pg_catalog.convert_to(row(
  pg_catalog.pg_current_wal_insert_lsn(), pg_catalog.pg_backend_pid(), meshaudit_private.deciding_xid(), null, null,
  pg_catalog.encode(pg_catalog.timestamptz_send(pg_catalog.clock_timestamp()), 'hex'),
  p_operation, p_outcome, p_secret_id, p_secret_table, p_scope, session_user, 'database',
  null, session_user, p_role, pg_catalog.inet_client_addr(),
  pg_catalog.current_setting('application_name'), null, null, null, null, null, null)::pg_catalog.text, 'UTF8');
comment on function meshaudit_private.plain_payload(text, text, text, text, text, text) is
  'The payload of a record, where the login is all there is to say about the caller.';

-- Records an access in the journal alone: in READ ONLY transactions, in journal mode, and denials. A write reveals
-- nothing: its record is on disk when its COMMIT is. False: the journal is not armed. Raises MA002 if it is, but cannot be relied on.
create function meshaudit_private.journal_access(
  p_operation text, p_outcome text, p_secret_id text, p_secret_table text, p_scope text, p_role text
) returns boolean
language plpgsql volatile set search_path = ''
as $$
declare
  v_healthy pg_catalog.bool;
  v_armed pg_catalog.bool;
  v_slot pg_catalog.text;
  v_head pg_catalog.bytea;
  v_inner pg_catalog.bytea;
  v_outer pg_catalog.bytea;
  v_flush pg_catalog.bool;
  c meshaudit_private.caller;
  v_payload pg_catalog.bytea;
begin
  select meshaudit_private.journal_healthy(j.healthy_until, j.healthy_since, j.healthy_lsn), j.armed, j.slot_name, j.message_head, j.inner_key,
      j.outer_key, j.flush and p_operation = 'read'
    into v_healthy, v_armed, v_slot, v_head, v_inner, v_outer, v_flush
    from meshaudit_private.journal j;
  if v_healthy is not true then
    perform meshaudit_private.require_working(v_armed, v_slot);
    if not v_armed then
      return false;
    end if;
  end if;
  if meshaudit_private.is_plain_session() then
    v_payload := meshaudit_private.plain_payload(p_operation, p_outcome, p_secret_id, p_secret_table, p_scope, p_role);
  else
    c := meshaudit_private.session_caller();
    v_payload := pg_catalog.convert_to(row(
      pg_catalog.pg_current_wal_insert_lsn(), pg_catalog.pg_backend_pid(), meshaudit_private.deciding_xid(), null, null,
      pg_catalog.encode(pg_catalog.timestamptz_send(pg_catalog.clock_timestamp()), 'hex'),
      p_operation, p_outcome, p_secret_id, p_secret_table, p_scope, c.user_identity, c.identity_source,
      c.claimed_identity, session_user, p_role, c.ip_address, pg_catalog.current_setting('application_name'),
      c.user_agent, c.request_id, null, null, null, null)::pg_catalog.text, 'UTF8');
  end if;
  if meshaudit_private.emit(meshaudit_private.message(v_head, v_inner, v_outer, v_payload), v_flush) is null then
    perform meshaudit_private.refuse_unrecorded();
  end if;
  return true;
end
$$;
comment on function meshaudit_private.journal_access(text, text, text, text, text, text) is
  'Records an access in the journal alone; false if it is not armed. Raises MA002 if it cannot be relied on.';

create function meshaudit_private.refuse_unrecorded() returns void
language plpgsql volatile set search_path = ''
as $$
begin
  perform meshaudit_private.refuse('MA002', 'no store can record this access',
    'The transaction is READ ONLY (or the vault in journal mode) and the journal is not armed: run select meshaudit.arm_journal() and keep meshaudit seal --follow running, or use a READ WRITE transaction.');
end
$$;
comment on function meshaudit_private.refuse_unrecorded() is 'Raises MA002.';

-- A denial is recorded if the journal is armed, and never keeps the error from its caller.
create function meshaudit_private.journal_denial(p_operation text, p_secret_id text, p_scope text, p_role text) returns void
language plpgsql volatile set search_path = ''
as $$
begin
  perform meshaudit_private.journal_access(
    p_operation, 'denied', pg_catalog."left"(p_secret_id, 512), 'meshaudit.secrets', pg_catalog."left"(p_scope, 255), p_role);
exception
  when sqlstate 'MA002' or sqlstate 'PGRST' then
    null;
end
$$;
comment on function meshaudit_private.journal_denial(text, text, text, text) is 'Records a denial in the journal, if there is one.';

-- Setting require_journal: no access without an armed journal that works.
create function meshaudit_private.require_journal() returns void
language plpgsql volatile set search_path = ''
as $$
declare
  v_works pg_catalog.bool;
begin
  select meshaudit_private.journal_healthy(j.healthy_until, j.healthy_since, j.healthy_lsn)
      or j.armed and meshaudit_private.slot_keeps(j.slot_name) into v_works
    from meshaudit_private.journal j;
  if v_works is not true then
    perform meshaudit_private.refuse('MA002', 'no access without a journal that works',
      'Setting require_journal is on: run select meshaudit.arm_journal() and keep meshaudit seal --follow running.');
  end if;
end
$$;
comment on function meshaudit_private.require_journal() is 'Raises MA002 unless the journal is armed and works.';
