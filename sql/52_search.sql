-- Search, newest first, by keyset: page 100 costs what page 1 does.

create function meshaudit.log_cursor("timestamp" timestamptz, id bigint) returns text
language sql immutable set search_path = ''
as $$
  select pg_catalog.encode(pg_catalog.timestamptz_send("timestamp") operator(pg_catalog.||) pg_catalog.int8send(id), 'hex')
$$;
revoke all on function meshaudit.log_cursor(timestamptz, bigint) from public;
grant execute on function meshaudit.log_cursor(timestamptz, bigint) to meshaudit_auditor;

create function meshaudit.search_audit_logs(
  secret_id text default null, from_time timestamptz default null, to_time timestamptz default null,
  user_identity text default null, access_type text default null, operation text default null,
  outcome text default null, scope text default null, ip inet default null,
  after text default null, page_size int default 100
) returns setof meshaudit.audit_logs
language plpgsql stable security invoker set search_path = ''
as $$
declare
  v_time pg_catalog.timestamptz;
  v_id pg_catalog.int8;
begin
  if page_size is null or page_size not between 1 and 1000 then
    raise exception 'page_size must be 1 to 1000' using errcode = 'MA005', hint = 'For more, pass the last row''s cursor as "after".';
  elsif access_type not in ('read', 'write') then
    raise exception 'access_type must be read or write' using errcode = 'MA005', hint = 'Leave it out for both.';
  elsif operation not in ('read', 'create', 'update', 'delete') then
    raise exception 'operation must be read, create, update or delete' using errcode = 'MA005', hint = 'Leave it out for all.';
  elsif outcome not in ('granted', 'denied', 'rolled_back') then
    raise exception 'outcome must be granted, denied or rolled_back' using errcode = 'MA005', hint = 'Leave it out for all.';
  elsif from_time >= to_time then
    raise exception 'from_time must be before to_time' using errcode = 'MA005', hint = 'The range is half-open: from_time <= timestamp < to_time.';
  elsif after is not null then
    if after !~ '^[0-9a-f]{32}$' then
      raise exception 'after is not a cursor' using errcode = 'MA005', hint = 'Take it from meshaudit.log_cursor(timestamp, id) of the last row seen.';
    end if;
    v_time := '2000-01-01 00:00:00+00'::pg_catalog.timestamptz
      + pg_catalog.make_interval(secs => 0) + (('x' || pg_catalog.substr(after, 1, 16))::pg_catalog."bit"(64)::pg_catalog.int8) * '1 microsecond'::pg_catalog.interval;
    v_id := ('x' || pg_catalog.substr(after, 17, 16))::pg_catalog."bit"(64)::pg_catalog.int8;
  end if;
  return query execute 'select * from meshaudit.audit_logs l where true'
    || case when secret_id is not null then ' and l.secret_id = $1' else '' end
    || case when from_time is not null then ' and l."timestamp" >= $2' else '' end
    || case when to_time is not null then ' and l."timestamp" < $3' else '' end
    || case when user_identity is not null then ' and l.user_identity = $4' else '' end
    || case when access_type is not null then ' and l.access_type = $5' else '' end
    || case when operation is not null then ' and l.operation = $6' else '' end
    || case when outcome is not null then ' and l.outcome = $7' else '' end
    || case when scope is not null then ' and l.scope = $8' else '' end
    || case when ip is not null then ' and l.ip_address <<= $9' else '' end
    || case when after is not null then ' and l."timestamp" <= $10 and (l."timestamp", l.id) < ($10, $11)' else '' end
    || ' order by l."timestamp" desc, l.id desc limit $12'
    using secret_id, from_time, to_time, user_identity, access_type, operation, outcome, scope, ip, v_time, v_id, page_size;
end
$$;
revoke all on function meshaudit.search_audit_logs(
  text, timestamptz, timestamptz, text, text, text, text, text, inet, text, int) from public;
grant execute on function meshaudit.search_audit_logs(
  text, timestamptz, timestamptz, text, text, text, text, text, inet, text, int) to meshaudit_auditor;

comment on function meshaudit.log_cursor(timestamptz, bigint) is 'Cursor for search_audit_logs(after => …): the place behind the row of that timestamp and id.';
comment on function meshaudit.search_audit_logs(
  text, timestamptz, timestamptz, text, text, text, text, text, inet, text, int) is
  'Searches the log, newest first, under the caller''s row security. All filters optional and combined; from_time <= timestamp < to_time; ip may be a network; after is a cursor (meshaudit.log_cursor); page_size 1 to 1000. Raises MA005 on a bad filter.';
