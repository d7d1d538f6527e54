-- Canonical bytes, version 1: what is hashed. docs/canonical-bytes.md is the specification.
--
-- They are what record_send() makes of the row (version, lane, seq, id, …): one call in C instead of a hundred
-- expression nodes, 18 µs of an access. record_send() writes text in the client's encoding; when that is not UTF-8,
-- entry_tail_portable() builds the same bytes by hand. Nothing else of a session has any part in them.
--
-- The bodies are parsed when they are created, so that no search_path reaches them; having no SET clause, they are
-- inlined. They are STABLE because convert_to() and record_send() are: declared IMMUTABLE they would not be inlined.

create function meshaudit_private.field(p_value text) returns bytea
language sql stable parallel safe
return pg_catalog.int4send(25) || coalesce(
  pg_catalog.int4send(pg_catalog.octet_length(p_value)) || pg_catalog.convert_to(p_value, 'UTF8'),
  pg_catalog.int4send(-1)
);

create function meshaudit_private.entry_tail_portable(
  p_id bigint, p_secret_id text, p_access_type text, p_timestamp timestamptz, p_user_identity text,
  p_ip_address inet, p_operation text, p_outcome text, p_secret_table text, p_scope text,
  p_identity_source text, p_claimed_identity text, p_db_user text, p_db_role text, p_application_name text,
  p_user_agent text, p_request_id text, p_access_id uuid
) returns bytea
language sql stable parallel safe
return
  pg_catalog.int4send(20) || pg_catalog.int4send(8) || pg_catalog.int8send(p_id)
  || meshaudit_private.field(p_secret_id)
  || meshaudit_private.field(p_access_type)
  || pg_catalog.int4send(1184) || pg_catalog.int4send(8) || pg_catalog.timestamptz_send(p_timestamp)
  || meshaudit_private.field(p_user_identity)
  || pg_catalog.int4send(869) || coalesce(
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
  || pg_catalog.int4send(2950) || pg_catalog.int4send(16) || pg_catalog.uuid_send(p_access_id);

create function meshaudit_private.entry_tail(
  p_id bigint, p_secret_id text, p_access_type text, p_timestamp timestamptz, p_user_identity text,
  p_ip_address inet, p_operation text, p_outcome text, p_secret_table text, p_scope text,
  p_identity_source text, p_claimed_identity text, p_db_user text, p_db_role text, p_application_name text,
  p_user_agent text, p_request_id text, p_access_id uuid
) returns bytea
language sql stable parallel safe
return case
  when pg_catalog.pg_client_encoding() = 'UTF8' then
    pg_catalog.substr(pg_catalog.record_send(row(
      p_id, p_secret_id, p_access_type, p_timestamp, p_user_identity, p_ip_address, p_operation, p_outcome,
      p_secret_table, p_scope, p_identity_source, p_claimed_identity, p_db_user, p_db_role, p_application_name,
      p_user_agent, p_request_id, p_access_id)), 5)
  else
    meshaudit_private.entry_tail_portable(
      p_id, p_secret_id, p_access_type, p_timestamp, p_user_identity, p_ip_address, p_operation, p_outcome,
      p_secret_table, p_scope, p_identity_source, p_claimed_identity, p_db_user, p_db_role, p_application_name,
      p_user_agent, p_request_id, p_access_id)
end;

create function meshaudit_private.entry_head(p_lane int, p_seq bigint) returns bytea
language sql stable parallel safe
return pg_catalog.substr(pg_catalog.record_send(row(1, p_lane, p_seq)), 5);

create function meshaudit_private.entry_hash(p_prev_hash bytea, p_lane int, p_seq bigint, p_tail bytea) returns bytea
language sql stable parallel safe
return pg_catalog.sha256(p_prev_hash || meshaudit_private.entry_head(p_lane, p_seq) || p_tail);

-- The hashes of entries that follow each other, p_prev_hash in front: links[i] is the prev_hash of the i-th, links[i + 1]
-- its hash. p_bytes: each one's head and tail. A bare loop, since nothing else can be done in sets about a chain.
create function meshaudit_private.links(p_prev_hash bytea, p_bytes bytea[]) returns bytea[]
language plpgsql immutable parallel safe set search_path = ''
as $$
declare
  v_links pg_catalog.bytea[] := array[p_prev_hash];
  v_bytes pg_catalog.bytea;
  v_hash pg_catalog.bytea := p_prev_hash;
begin
  foreach v_bytes in array p_bytes loop
    v_hash := pg_catalog.sha256(v_hash || v_bytes);
    v_links := pg_catalog.array_append(v_links, v_hash);
  end loop;
  return v_links;
end
$$;

create function meshaudit_private.genesis_hash(p_ledger_id uuid, p_lane int) returns bytea
language sql stable parallel safe
return pg_catalog.sha256(
  pg_catalog.convert_to('meshaudit ledger v1', 'UTF8') || pg_catalog.uuid_send(p_ledger_id) || pg_catalog.int4send(p_lane)
);

comment on function meshaudit_private.field(text) is 'A text field''s canonical bytes: type, length, UTF-8.';
comment on function meshaudit_private.entry_tail_portable(
  bigint, text, text, timestamptz, text, inet, text, text, text, text, text, text, text, text, text, text, text, uuid
) is 'entry_tail() whatever the client''s encoding.';
comment on function meshaudit_private.entry_tail(
  bigint, text, text, timestamptz, text, inet, text, text, text, text, text, text, text, text, text, text, text, uuid
) is 'Canonical bytes of an entry, version 1, from id on.';
comment on function meshaudit_private.entry_head(int, bigint) is 'Canonical bytes of an entry, version 1, before its id.';
comment on function meshaudit_private.links(bytea, bytea[]) is
  'The hashes of entries that follow each other, the one before them in front.';
comment on function meshaudit_private.entry_hash(bytea, int, bigint, bytea) is
  'sha256(prev_hash, version 1, lane, seq, tail): an entry''s hash.';
comment on function meshaudit_private.genesis_hash(uuid, int) is 'What a lane''s first entry holds as prev_hash.';
