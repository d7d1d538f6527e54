-- Results of verifications: recorded by who may verify the whole log, shown by status(), metrics() and an alert.
--
-- Verifying needs no right to write: where nothing can be written (READ ONLY, a standby) it goes unrecorded, and works.

create function meshaudit_private.record_verification(
  p_id bigint, p_method text, p_entries bigint, p_total bigint, p_problems bigint, p_first text, p_role text
) returns bigint
language plpgsql volatile security definer set search_path = ''
as $$
declare
  v_id pg_catalog.int8;
begin
  perform meshaudit_private.require_whole_log(p_role);
  if least(p_entries, p_total, p_problems) < 0 then
    raise exception 'entries, total and problems must not be negative' using errcode = 'MA005',
      hint = 'problems is null while the verification runs.';
  end if;
  if pg_catalog.current_setting('transaction_read_only') = 'on' then
    return null;
  end if;
  if p_id is null then
    insert into meshaudit_private.verifications (method, verified_by, entries, total, problems, first_problem, ended_at)
      values (p_method, (meshaudit_private.session_caller()).user_identity, p_entries, p_total, p_problems,
        meshaudit_private.clean(p_first, 500), case when p_problems is not null then pg_catalog.clock_timestamp() end)
      returning verification_id into v_id;
    -- not one that the alert rules have yet to see
    delete from meshaudit_private.verifications v
      where v.verification_id <= v_id - 1000 and (v.told or v.problems > 0 is not true);
    return v_id;
  end if;
  update meshaudit_private.verifications v set
      entries = coalesce(p_entries, v.entries), total = coalesce(p_total, v.total), problems = p_problems,
      first_problem = meshaudit_private.clean(p_first, 500), seen_at = pg_catalog.clock_timestamp(),
      ended_at = case when p_problems is not null then pg_catalog.clock_timestamp() end
    where v.verification_id = p_id and v.ended_at is null and v.db_user = session_user and v.method = p_method
    returning v.verification_id into v_id;
  if v_id is null then
    raise exception 'you have no such verification that is running' using errcode = 'MA005',
      hint = 'Take its number from the first call, which leaves out "verification".';
  end if;
  return v_id;
end
$$;
revoke all on function meshaudit_private.record_verification(bigint, text, bigint, bigint, bigint, text, text) from public;
grant execute on function meshaudit_private.record_verification(bigint, text, bigint, bigint, bigint, text, text)
  to meshaudit_auditor, meshaudit_operator;

create function meshaudit.record_verification(
  problems bigint default null, entries bigint default null, total bigint default null, first_problem text default null,
  verification bigint default null
) returns bigint
language sql volatile security invoker
begin atomic
  select meshaudit_private.record_verification(record_verification.verification, 'outside', record_verification.entries,
    record_verification.total, record_verification.problems, record_verification.first_problem, current_user);
end;
revoke all on function meshaudit.record_verification(bigint, bigint, bigint, text, bigint) from public;
grant execute on function meshaudit.record_verification(bigint, bigint, bigint, text, bigint)
  to meshaudit_auditor, meshaudit_operator;

create function meshaudit_private.verification_status() returns table ("check" text, ok boolean, detail text)
language plpgsql stable set search_path = ''
as $$
declare
  v meshaudit_private.verifications;
  r meshaudit_private.verifications;
  v_now constant pg_catalog.timestamptz := pg_catalog.clock_timestamp();
begin
  select * into v from meshaudit_private.verifications e where e.ended_at is not null
    order by e.ended_at desc, e.verification_id desc limit 1;
  select * into r from meshaudit_private.verifications e
    where e.ended_at is null and e.seen_at > v_now - '1 minute'::pg_catalog.interval order by e.verification_id desc limit 1;
  "check" := 'verification';
  ok := coalesce(v.problems = 0 and v.ended_at > v_now - '8 days'::pg_catalog.interval, false);
  detail := case
      when v.ended_at is null then 'never recorded; run meshaudit verify, nightly and from elsewhere'
      else pg_catalog.format('last %s by %s (%s): %s', pg_catalog.to_char(v.ended_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI "UTC"'),
          v.verified_by, v.method, case v.problems when 0 then 'intact' else v.problems || ' problems' end)
        || coalesce(', first: ' || v.first_problem, '')
        || case when v.problems = 0 and not ok then '; run meshaudit verify nightly' else '' end
    end
    || case when r.total > 0 then pg_catalog.format('; running: %s of %s entries', r.entries, r.total)
       when r.begun_at is not null then '; running' else '' end;
  return next;
end
$$;

create function meshaudit_private.verification_metrics() returns table (name text, value float8)
language sql stable set search_path = ''
as $$
  select m.name, m.value from (
    select e.ended_at, e.problems, e.entries from meshaudit_private.verifications e where e.ended_at is not null
    order by e.ended_at desc, e.verification_id desc limit 1) v,
  lateral (values
    ('meshaudit_verified_timestamp_seconds', extract(epoch from v.ended_at)::pg_catalog.float8),
    ('meshaudit_verified_age_seconds', extract(epoch from pg_catalog.clock_timestamp() - v.ended_at)::pg_catalog.float8),
    ('meshaudit_verified_problems', v.problems::pg_catalog.float8),
    ('meshaudit_verified_entries', v.entries::pg_catalog.float8)) m (name, value)
  where m.value is not null
  union all
  select 'meshaudit_verify_progress_ratio', (
    select least(e.entries / nullif(e.total, 0)::pg_catalog.float8, 1) from meshaudit_private.verifications e
    where e.ended_at is null and e.seen_at > pg_catalog.clock_timestamp() - '1 minute'::pg_catalog.interval
    order by e.verification_id desc limit 1)
$$;

comment on function meshaudit_private.record_verification(bigint, text, bigint, bigint, bigint, text, text) is
  'meshaudit.record_verification(), for a role; null where nothing can be written.';
comment on function meshaudit.record_verification(bigint, bigint, bigint, text, bigint) is
  'Notes how far a verification of the whole log is (problems null), or what it found: the first call gives a number, to pass as "verification" to the next. Null where nothing can be written. Raises MA001 to an auditor of a part of the log, MA005 if that verification is not yours or has ended.';
comment on function meshaudit_private.verification_status() is 'The last verification, for meshaudit.status().';
comment on function meshaudit_private.verification_metrics() is 'The last verification and how far a running one is, for meshaudit.metrics().';
