-- The ledger: what happened, one row an access, hash-chained in lanes, partitioned by time.
--
-- Recording an access is one INSERT of (secret_id, operation, outcome, secret_table, scope). The defaults say who and
-- when; the trigger chain_entry (23_chain.sql) adds what the session says (21_caller.sql), and chains.
--
-- Invariants
--   * rows are only ever added, and only by the functions of this schema (24_append_only.sql);
--   * in a lane, seq runs 1, 2, 3 … without a gap, and each row holds the hash of the row before it;
--   * lane_heads holds, for each lane, the seq and hash of its last row, in the same transaction as that row;
--   * access_type is read or write; operation read, create, update or delete; outcome granted, denied or
--     rolled_back; identity_source jwt or database. No CHECK says so: each INSERT would parse it anew, at a tenth of
--     the cost of an access, and only this schema's functions write here.

create sequence meshaudit_private.ledger_id as bigint;

create table meshaudit_private.ledger (
  id bigint not null default nextval('meshaudit_private.ledger_id'),
  secret_id text not null,
  access_type text not null default 'read',
  "timestamp" timestamptz not null default clock_timestamp(),
  user_identity text not null default session_user,
  ip_address inet default inet_client_addr(),
  operation text not null,
  outcome text not null,
  secret_table text not null,
  scope text not null,
  identity_source text not null default 'database',
  claimed_identity text,
  db_user text not null default session_user,
  db_role text not null default coalesce(nullif(current_setting('role'), 'none'), session_user::text),
  application_name text default nullif(current_setting('application_name'), ''),
  user_agent text,
  request_id text,
  access_id uuid not null default gen_random_uuid(),
  -- 0: chain_entry() chains it
  lane int not null default 0,
  seq bigint not null default 0,
  prev_hash bytea not null default '',
  hash bytea not null default '',
  primary key (lane, seq, "timestamp")
) partition by range ("timestamp");

-- Entries of one microsecond are sorted by id as they come (incremental sort): no index holds it. What stands behind
-- "timestamp" is compared in the index, before the entry itself is fetched. How long secret_id may be: 19_secret_ids.sql.
create index ledger_time on meshaudit_private.ledger ("timestamp");
create index ledger_secret on meshaudit_private.ledger (secret_id, "timestamp", user_identity, scope);
create index ledger_identity on meshaudit_private.ledger (user_identity, "timestamp", scope);
-- an auditor of one scope asks for it in every query
create index ledger_scope on meshaudit_private.ledger (scope, "timestamp");
create index ledger_address on meshaudit_private.ledger (ip_address, "timestamp") where ip_address is not null;
-- what is rare; a granted read, which is most of what happens, is in neither
create index ledger_writes on meshaudit_private.ledger ("timestamp", scope) where access_type = 'write';
create index ledger_operation on meshaudit_private.ledger (operation, "timestamp", scope) where operation <> 'read';
create index ledger_outcome on meshaudit_private.ledger (outcome, "timestamp", scope) where outcome <> 'granted';

comment on table meshaudit_private.ledger is
  'Every access to a secret. Append-only, hash-chained; read it as meshaudit.audit_logs.';

alter table meshaudit_private.ledger enable row level security;

-- A transaction takes a lane by locking its row here, never waiting: a locked one is passed over.
-- Each lane has a page of its own (add_lane): sessions do not contend for it, and updates find room beside the row, so
-- that the index stays as it is and a SERIALIZABLE transaction that looks a lane up does not conflict with one that
-- moves another. (After some 60 single entries in one transaction the room is used up, and such conflicts can come.)
create table meshaudit_private.lane_heads (
  lane int primary key,
  seq bigint not null default 0,
  prev_hash bytea not null default '',
  hash bytea not null
) with (autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);
alter table meshaudit_private.lane_heads alter column hash set storage plain;
-- Without statistics a look-up costs one page, as it does. With them the planner sees that there are more pages than rows, and
-- takes a bitmap scan, which is slower.
alter table meshaudit_private.lane_heads alter column lane set statistics 0;

create sequence meshaudit_private.lane_number as int;

comment on table meshaudit_private.lane_heads is
  'Each lane''s last seq and hash; also the lock of the lane. Before the first entry: seq 0 and the genesis hash.';

alter table meshaudit_private.lane_heads enable row level security;
