-- The ledger: what happened, one row an access, hash-chained in lanes, partitioned by time.
--
-- Invariants
--   * rows are only ever added, and only by the functions of this schema (33_append_only.sql);
--   * in a lane, seq runs 1, 2, 3 … without a gap, and each row holds the hash of the row before it;
--   * lane_heads holds, for each lane, the seq and hash of its last row, in the same transaction as that row.

create sequence meshaudit_private.ledger_id as bigint;

create table meshaudit_private.ledger (
  id bigint not null default nextval('meshaudit_private.ledger_id'),
  secret_id text not null,
  access_type text not null check (access_type in ('read', 'write')),
  "timestamp" timestamptz not null,
  user_identity text not null,
  ip_address inet,
  operation text not null check (operation in ('read', 'create', 'update', 'delete')),
  outcome text not null check (outcome in ('granted', 'denied', 'rolled_back')),
  secret_table text not null,
  scope text not null,
  identity_source text not null check (identity_source in ('jwt', 'database')),
  claimed_identity text,
  db_user text not null,
  db_role text not null,
  application_name text,
  user_agent text,
  request_id text,
  access_id uuid not null,
  lane int not null,
  seq bigint not null,
  prev_hash bytea not null,
  hash bytea not null,
  primary key (lane, seq, "timestamp")
) partition by range ("timestamp");

create index ledger_time on meshaudit_private.ledger ("timestamp", id);
create index ledger_secret on meshaudit_private.ledger (secret_id, "timestamp", id);
create index ledger_identity on meshaudit_private.ledger (user_identity, "timestamp", id);

comment on table meshaudit_private.ledger is
  'Every access to a secret. Append-only, hash-chained; read it as meshaudit.audit_logs.';

alter table meshaudit_private.ledger enable row level security;

-- A transaction takes a lane by locking its row here, never waiting: a locked one is passed over.
-- fillfactor leaves room for updates in place, so that the index stays as it is: a SERIALIZABLE transaction
-- that looks a lane up never conflicts with one that moves another lane.
create table meshaudit_private.lane_heads (
  lane int primary key,
  seq bigint not null default 0,
  prev_hash bytea not null default '',
  hash bytea not null
) with (fillfactor = 10, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);

create sequence meshaudit_private.lane_number as int minvalue 0 start 0;

comment on table meshaudit_private.lane_heads is
  'Each lane''s last seq and hash; also the lock of the lane. Before the first entry: seq 0 and the genesis hash.';

alter table meshaudit_private.lane_heads enable row level security;
