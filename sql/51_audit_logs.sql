-- The log as auditors see it. The view acts as its caller, so that row security decides.

create view meshaudit.audit_logs with (security_invoker = true) as
  select
    l.id, l.secret_id, l.access_type, l."timestamp", l.user_identity, l.ip_address, l.operation, l.outcome,
    l.secret_table, l.scope, l.identity_source, l.claimed_identity, l.db_user, l.db_role, l.application_name,
    l.user_agent, l.request_id, l.access_id, l.lane, l.seq, l.prev_hash, l.hash
  from meshaudit_private.ledger l;

grant select on meshaudit.audit_logs to meshaudit_auditor;
-- the caller is checked against the table too; naming it takes USAGE on its schema, which nobody has
grant select on meshaudit_private.ledger to meshaudit_auditor;

comment on view meshaudit.audit_logs is 'The audit log: one row an access. Which rows: meshaudit.grant_auditor().';
comment on column meshaudit.audit_logs.id is 'Number of the entry.';
comment on column meshaudit.audit_logs.secret_id is 'Which secret: its id (the primary key of a protected row); it outlives the secret.';
comment on column meshaudit.audit_logs.access_type is 'read or write.';
comment on column meshaudit.audit_logs."timestamp" is 'When, by the server''s clock, at the access (not at the transaction''s start).';
comment on column meshaudit.audit_logs.user_identity is 'Who, as the server knows: the login, or behind a gateway the JWT''s subject.';
comment on column meshaudit.audit_logs.ip_address is 'From where; null for a local socket.';
comment on column meshaudit.audit_logs.operation is 'read, create, update or delete.';
comment on column meshaudit.audit_logs.outcome is 'granted, denied, or rolled_back: the value was seen, then the transaction was undone.';
comment on column meshaudit.audit_logs.secret_table is 'Which table: meshaudit.secrets is the vault; meshaudit.auditors and meshaudit.settings are changes of those.';
comment on column meshaudit.audit_logs.scope is 'Tenant or project of the secret.';
comment on column meshaudit.audit_logs.identity_source is 'Where user_identity comes from: jwt or database.';
comment on column meshaudit.audit_logs.claimed_identity is 'What the caller said about itself (meshaudit.actor, claims of a login that is no gateway). Not verified.';
comment on column meshaudit.audit_logs.db_user is 'session_user.';
comment on column meshaudit.audit_logs.db_role is 'The role that called: current_user, which is that set with SET ROLE, or the owner of the SECURITY DEFINER function that made the call.';
comment on column meshaudit.audit_logs.application_name is 'As the client set it. Not verified.';
comment on column meshaudit.audit_logs.user_agent is 'From the gateway''s request headers.';
comment on column meshaudit.audit_logs.request_id is 'From the gateway''s request headers (x-request-id).';
comment on column meshaudit.audit_logs.access_id is 'Unique to the access.';
comment on column meshaudit.audit_logs.lane is 'The chain that the entry is in.';
comment on column meshaudit.audit_logs.seq is 'Place in the lane: 1, 2, 3 …';
comment on column meshaudit.audit_logs.prev_hash is 'hash of the entry before it in the lane.';
comment on column meshaudit.audit_logs.hash is 'sha256 of prev_hash and the entry''s canonical bytes (docs/canonical-bytes.md).';
