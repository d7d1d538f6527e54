-- A checkpoint: the lanes' heads, to be kept outside the database. Whoever holds one can tell later that nothing
-- recorded before it has gone or changed (meshaudit verify --checkpoint).

create function meshaudit_private.checkpoint(p_role text) returns jsonb
language plpgsql stable security definer set search_path = ''
as $$
begin
  perform meshaudit_private.require_whole_log(p_role);
  return (
  select pg_catalog.jsonb_build_object(
    'format', 'meshaudit checkpoint v1',
    'ledger_id', (select s.ledger_id from meshaudit_private.settings s),
    'time', pg_catalog.to_char(pg_catalog.clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
    'entries', coalesce(pg_catalog.sum(h.seq), 0),
    'lanes', coalesce(pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object(
      'lane', h.lane, 'seq', h.seq, 'hash', pg_catalog.encode(h.hash, 'hex')) order by h.lane), '[]'))
  from meshaudit_private.lane_heads h
  where h.seq > 0
  );
end
$$;
revoke all on function meshaudit_private.checkpoint(text) from public;
grant execute on function meshaudit_private.checkpoint(text) to meshaudit_auditor, meshaudit_operator;

create function meshaudit.checkpoint() returns jsonb
language sql stable security invoker
return meshaudit_private.checkpoint(current_user);
revoke all on function meshaudit.checkpoint() from public;
grant execute on function meshaudit.checkpoint() to meshaudit_auditor, meshaudit_operator;

comment on function meshaudit_private.checkpoint(text) is 'meshaudit.checkpoint(), for a role.';
comment on function meshaudit.checkpoint() is
  'The ledger''s id and each lane''s last seq and hash (hex), as JSON, in one snapshot. Keep it outside the database. Raises MA001 to an auditor of a part of the log.';
