-- Canonical bytes, version 1: what is hashed. docs/canonical-bytes.md is the specification.
--
-- Each field is its length (int4, big-endian; -1 for NULL) and its bytes: the layout of one field in
-- COPY … (FORMAT BINARY). Nothing depends on a setting of the session. The bodies are parsed when they are
-- created, so that no search_path reaches them; having no SET clause, they are inlined.

create function meshaudit_private.field(p_value text) returns bytea
language sql immutable parallel safe
return coalesce(
  pg_catalog.int4send(pg_catalog.octet_length(p_value)) || pg_catalog.convert_to(p_value, 'UTF8'),
  pg_catalog.int4send(-1)
);

create function meshaudit_private.entry_tail(
  p_id bigint, p_secret_id text, p_access_type text, p_timestamp timestamptz, p_user_identity text,
  p_ip_address inet, p_operation text, p_outcome text, p_secret_table text, p_scope text,
  p_identity_source text, p_claimed_identity text, p_db_user text, p_db_role text, p_application_name text,
  p_user_agent text, p_request_id text, p_access_id uuid
) returns bytea
language sql immutable parallel safe
return
  pg_catalog.int4send(8) || pg_catalog.int8send(p_id)
  || meshaudit_private.field(p_secret_id)
  || meshaudit_private.field(p_access_type)
  || pg_catalog.int4send(8) || pg_catalog.timestamptz_send(p_timestamp)
  || meshaudit_private.field(p_user_identity)
  || coalesce(
    pg_catalog.int4send(pg_catalog.octet_length(pg_catalog.inet_send(p_ip_address))) || pg_catalog.inet_send(p_ip_address),
    pg_catalog.int4send(-1)
  )
  || meshaudit_private.field(p_operation)
  || meshaudit_private.field(p_outcome)
  || meshaudit_private.field(p_secret_table)
  || meshaudit_private.field(p_scope)
  || meshaudit_private.field(p_identity_source)
  || meshaudit_private.field(p_claimed_identity)
  || meshaudit_private.field(p_db_user)
  || meshaudit_private.field(p_db_role)
  || meshaudit_private.field(p_application_name)
  || meshaudit_private.field(p_user_agent)
  || meshaudit_private.field(p_request_id)
  || pg_catalog.int4send(16) || pg_catalog.uuid_send(p_access_id);

create function meshaudit_private.entry_hash(p_prev_hash bytea, p_lane int, p_seq bigint, p_tail bytea) returns bytea
language sql immutable parallel safe
return pg_catalog.sha256(
  p_prev_hash || pg_catalog.decode('01', 'hex')
  || pg_catalog.int4send(4) || pg_catalog.int4send(p_lane)
  || pg_catalog.int4send(8) || pg_catalog.int8send(p_seq)
  || p_tail
);

create function meshaudit_private.genesis_hash(p_ledger_id uuid, p_lane int) returns bytea
language sql immutable parallel safe
return pg_catalog.sha256(
  pg_catalog.convert_to('meshaudit ledger v1', 'UTF8') || pg_catalog.uuid_send(p_ledger_id) || pg_catalog.int4send(p_lane)
);

comment on function meshaudit_private.field(text) is 'A text field''s canonical bytes: length, then UTF-8.';
comment on function meshaudit_private.entry_tail(
  bigint, text, text, timestamptz, text, inet, text, text, text, text, text, text, text, text, text, text, text, uuid
) is 'Canonical bytes of an entry, version 1, from id on: everything but prev_hash, version, lane and seq.';
comment on function meshaudit_private.entry_hash(bytea, int, bigint, bytea) is
  'sha256(prev_hash, version 1, lane, seq, tail): an entry''s hash.';
comment on function meshaudit_private.genesis_hash(uuid, int) is 'What a lane''s first entry holds as prev_hash.';
