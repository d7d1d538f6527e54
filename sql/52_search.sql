-- Search, newest first, by keyset: page 100 costs what page 1 does.
--
-- Invariants
--   * row security decides: the query is the caller's own, of the view. What begin_search() says of its scopes only lets
--     the planner use the index on scope;
--   * a page is looked for in spans of time, the newest first, each longer than the one before: planning all partitions
--     would cost more than finding the page. In each, the query is planned for these very values;
--   * all operators are leakproof but <<=, which is why a network is looked for as a range too.

-- A body in standard SQL is inlined: called for each row of a page, it was a quarter of a search.
create function meshaudit.log_cursor("timestamp" timestamptz, id bigint) returns text
language sql immutable parallel safe
return pg_catalog.encode(
  pg_catalog.timestamptz_send("timestamp") || pg_catalog.int8send(id) || pg_catalog.substr(pg_catalog.sha256(
    pg_catalog.timestamptz_send("timestamp") || pg_catalog.int8send(id)), 1, 4), 'hex');
revoke all on function meshaudit.log_cursor(timestamptz, bigint) from public;
grant execute on function meshaudit.log_cursor(timestamptz, bigint) to meshaudit_auditor;

-- As the caller, who has no USAGE on this schema: it names nothing of it.
create function meshaudit_private.search(
  secret_id text, from_time timestamptz, to_time timestamptz, p_names text[], access_type text, operation text,
  outcome text, scope text, ip inet, after text, page_size int, p_token text, p_scopes text[], p_step interval
) returns setof meshaudit.audit_logs
-- What the policy leaves of rows cannot be estimated, nor anything of a partition that nobody has analyzed yet: without
-- this, reading all that match, or all there is, and sorting it looks cheaper than stopping after a page.
-- (Before 18 what is off counts as costly, and costly plans are compiled first, which takes a hundred times as long as a page.)
-- And no plan shows its token to the client.
language plpgsql volatile security invoker set search_path = '' set enable_bitmapscan = off set enable_seqscan = off set jit = off set debug_print_plan = off
as $$
declare
  v_time pg_catalog.timestamptz;
  v_id pg_catalog.int8;
  v_micros pg_catalog.int8;
  v_query pg_catalog.text;
  v_left pg_catalog.int4 := page_size;
  v_found pg_catalog.int4;
  v_upper pg_catalog.timestamptz := coalesce(to_time, 'infinity');
  v_lower pg_catalog.timestamptz;
  v_span pg_catalog.interval := p_step;
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
    if after ~ '^[0-9a-f]{40}$' and pg_catalog.substr(after, 33) = pg_catalog.encode(
        pg_catalog.substr(pg_catalog.sha256(pg_catalog.decode(pg_catalog.substr(after, 1, 32), 'hex')), 1, 4), 'hex') then
      v_micros := ('x' || pg_catalog.substr(after, 1, 16))::pg_catalog."bit"(64)::pg_catalog.int8;
      v_id := ('x' || pg_catalog.substr(after, 17, 16))::pg_catalog."bit"(64)::pg_catalog.int8;
    end if;
    -- more microseconds would not be exact, and no entry is that far
    if v_micros is null or v_micros not between -9007199254740992 and 9007199254740992 then
      raise exception 'after is not a cursor' using errcode = 'MA005', hint = 'Take it from meshaudit.log_cursor(timestamp, id) of the last row seen.';
    end if;
    v_time := '2000-01-01 00:00:00+00'::pg_catalog.timestamptz + v_micros * '1 microsecond'::pg_catalog.interval;
    v_upper := least(v_upper, v_time + '1 microsecond'::pg_catalog.interval);
  end if;
  if from_time >= v_upper then
    return;
  end if;

  v_query := 'select * from meshaudit.audit_logs l where l."timestamp" >= $2 and l."timestamp" < $3'
    || case when secret_id is not null then ' and l.secret_id = $1' else '' end
    || case when pg_catalog.cardinality(p_names) = 1 then ' and l.user_identity = ($4)[1]'
       when p_names is not null then ' and l.user_identity = any ($4)' else '' end
    || case when access_type is not null then ' and l.access_type = $5' else '' end
    || case when operation is not null then ' and l.operation = $6' else '' end
    || case when outcome is not null then ' and l.outcome = $7' else '' end
    || case when scope is not null then ' and l.scope = $8'
       when pg_catalog.cardinality(p_scopes) = 1 then ' and l.scope = ($13)[1]'
       when p_scopes is not null then ' and l.scope = any ($13)' else '' end
    || case when ip is null then ''
       when pg_catalog.masklen(ip) = (case pg_catalog.family(ip) when 4 then 32 else 128 end) then ' and l.ip_address = $9'
       else ' and l.ip_address <<= $9 and l.ip_address >= pg_catalog.network($9)::pg_catalog.inet
         and l.ip_address <= pg_catalog.set_masklen(pg_catalog.broadcast($9), case pg_catalog.family($9) when 4 then 32 else 128 end)' end
    || case when after is not null then ' and (l."timestamp", l.id) < ($10, $11)' else '' end
    || ' order by l."timestamp" desc, l.id desc limit $12';
  perform pg_catalog.set_config('meshaudit.search', p_token, true);
  -- the first span ends where a partition begins
  v_lower := pg_catalog.date_trunc(
    case p_step when '1 day' then 'day' when '7 days' then 'week' else 'month' end,
    least(v_upper - '1 microsecond'::pg_catalog.interval, pg_catalog.clock_timestamp()) at time zone 'UTC') at time zone 'UTC';
  for i in 1 .. 6 loop
    if i = 6 or v_lower < from_time then
      v_lower := coalesce(from_time, '-infinity');
    end if;
    return query execute v_query
      using secret_id, v_lower, v_upper, p_names, access_type, operation, outcome, scope, ip, v_time, v_id, v_left, p_scopes;
    get diagnostics v_found = row_count;
    v_left := v_left - v_found;
    exit when v_left = 0 or i = 6 or v_lower = from_time;
    v_upper := v_lower;
    v_lower := ((v_upper at time zone 'UTC') - v_span) at time zone 'UTC';
    v_span := v_span * 2;
  end loop;
  perform pg_catalog.set_config('meshaudit.search', '', true);
end
$$;
revoke all on function meshaudit_private.search(
  text, timestamptz, timestamptz, text[], text, text, text, text, inet, text, int, text, text[], interval) from public;
grant execute on function meshaudit_private.search(
  text, timestamptz, timestamptz, text[], text, text, text, text, inet, text, int, text, text[], interval) to meshaudit_auditor;

create function meshaudit.search_audit_logs(
  secret_id text default null, from_time timestamptz default null, to_time timestamptz default null,
  user_identity text default null, access_type text default null, operation text default null,
  outcome text default null, scope text default null, ip inet default null,
  after text default null, page_size int default 100
) returns setof meshaudit.audit_logs
language sql volatile security invoker
begin atomic
  with page as materialized (
    select r.*
    from meshaudit_private.begin_search(current_user, search_audit_logs.user_identity) b,
      lateral meshaudit_private.search(
        search_audit_logs.secret_id, search_audit_logs.from_time, search_audit_logs.to_time,
        b.names, search_audit_logs.access_type, search_audit_logs.operation,
        search_audit_logs.outcome, search_audit_logs.scope, search_audit_logs.ip, search_audit_logs.after,
        search_audit_logs.page_size, b.token, b.scopes, b.step) r
  )
  select p.* from page p
  where (select meshaudit_private.note_reading('search',
    pg_catalog.concat_ws(', ',
      'secret_id ' || search_audit_logs.secret_id,
      'from ' || pg_catalog.to_char(search_audit_logs.from_time at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
      'to ' || pg_catalog.to_char(search_audit_logs.to_time at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')),
    search_audit_logs.user_identity,
    pg_catalog.concat_ws(', ',
      'access_type ' || search_audit_logs.access_type,
      'operation ' || search_audit_logs.operation, 'outcome ' || search_audit_logs.outcome,
      'scope ' || search_audit_logs.scope, 'ip ' || search_audit_logs.ip::text,
      'after ' || search_audit_logs.after),
    (select pg_catalog.count(*) from page), true, current_user));
end;
revoke all on function meshaudit.search_audit_logs(
  text, timestamptz, timestamptz, text, text, text, text, text, inet, text, int) from public;
grant execute on function meshaudit.search_audit_logs(
  text, timestamptz, timestamptz, text, text, text, text, text, inet, text, int) to meshaudit_auditor;

comment on function meshaudit.log_cursor(timestamptz, bigint) is 'Cursor for search_audit_logs(after => …): the place behind the row of that timestamp and id.';
comment on function meshaudit.search_audit_logs(
  text, timestamptz, timestamptz, text, text, text, text, text, inet, text, int) is
  'Searches the log, newest first, under the caller''s row security; recorded, with the number of entries shown. All filters optional and combined; from_time <= timestamp < to_time; ip may be a network; after is a cursor (meshaudit.log_cursor); page_size 1 to 1000. Raises MA005 on a bad filter.';
comment on function meshaudit_private.search(
  text, timestamptz, timestamptz, text[], text, text, text, text, inet, text, int, text, text[], interval) is
  'A page of search_audit_logs(), for a token and scopes of begin_search().';
