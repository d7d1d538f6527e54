-- Legal holds: what one matches is not retired, and its archive does not expire. Each is an entry when it is placed and when
-- it is lifted.
--
-- Invariants
--   * holds are auditors'. An auditor of one scope places, sees and lifts those of that scope; an operator sees them;
--   * retiring and expiring lock holds against change first: one that was placed before them stops them.

-- Raises MA001 unless the caller is an auditor of that scope (null: of all), or may appoint auditors.
create function meshaudit_private.require_scope(p_scope text, p_role text) returns void
language plpgsql stable set search_path = ''
as $$
declare
  v_scopes constant pg_catalog.text[] := meshaudit_private.visible_scopes(p_role);
begin
  if '*' = any (v_scopes) or p_scope = any (v_scopes)
      or pg_catalog.has_function_privilege(p_role, 'meshaudit.grant_auditor(text, text)', 'EXECUTE') then
    return;
  end if;
  perform meshaudit_private.refuse('MA001', 'this needs an auditor of the scope that the hold is on',
    'Name a scope that you were granted. Holds on all scopes take meshaudit.grant_auditor(…, ''*'').');
end
$$;

create function meshaudit_private.require_reason(p_reason text) returns void
language plpgsql immutable set search_path = ''
as $$
begin
  if coalesce(pg_catalog.btrim(p_reason), '') = '' or pg_catalog.char_length(p_reason) > 400 then
    perform meshaudit_private.refuse('MA005', 'a reason is missing, or has more than 400 characters',
      'It is recorded, for good.');
  end if;
end
$$;

create function meshaudit_private.place_hold(
  p_reason text, p_secret_id text, p_user_identity text, p_scope text, p_from timestamptz, p_to timestamptz, p_role text
) returns bigint
language plpgsql volatile security definer set search_path = ''
as $$
declare
  v_scope constant pg_catalog.text := nullif(p_scope, '*');
  v_hold pg_catalog.int8;
begin
  perform meshaudit_private.require_scope(v_scope, p_role);
  perform meshaudit_private.require_reason(p_reason);
  if pg_catalog.char_length(v_scope) > 255 then
    perform meshaudit_private.refuse('MA005', 'a scope has at most 255 characters', 'No entry has a longer one.');
  end if;
  if p_from >= p_to then
    perform meshaudit_private.refuse('MA005', 'the hold''s range of time is empty', 'It holds from_time <= timestamp < to_time; null is no bound.');
  end if;
  insert into meshaudit_private.holds (secret_id, user_identity, scope, from_time, to_time, reason, placed_by)
    values (p_secret_id, p_user_identity, v_scope, p_from, p_to, p_reason, (meshaudit_private.session_caller()).user_identity)
    returning hold into v_hold;
  insert into meshaudit_private.ledger (secret_id, access_type, operation, outcome, secret_table, scope)
    values (meshaudit_private.bounded(pg_catalog.concat(v_hold, ': ', p_reason)), 'write', 'create', 'granted', 'meshaudit.holds', coalesce(v_scope, '*'));
  return v_hold;
end
$$;
revoke all on function meshaudit_private.place_hold(text, text, text, text, timestamptz, timestamptz, text) from public;
grant execute on function meshaudit_private.place_hold(text, text, text, text, timestamptz, timestamptz, text) to meshaudit_auditor;

create function meshaudit.place_hold(
  reason text, secret_id text default null, user_identity text default null, scope text default null,
  from_time timestamptz default null, to_time timestamptz default null
) returns bigint
language sql volatile security invoker
return meshaudit_private.place_hold(reason, secret_id, user_identity, scope, from_time, to_time, current_user);
revoke all on function meshaudit.place_hold(text, text, text, text, timestamptz, timestamptz) from public;
grant execute on function meshaudit.place_hold(text, text, text, text, timestamptz, timestamptz) to meshaudit_auditor;

create function meshaudit_private.lift_hold(p_hold bigint, p_reason text, p_role text) returns boolean
-- no plan shows another scope's hold to the client
language plpgsql volatile security definer set search_path = '' set debug_print_plan = off
as $$
declare
  h meshaudit_private.holds;
begin
  perform meshaudit_private.require_reason(p_reason);
  select * into h from meshaudit_private.holds k where k.hold = p_hold for update;
  if h.hold is null then
    return false;
  end if;
  perform meshaudit_private.require_scope(h.scope, p_role);
  delete from meshaudit_private.holds k where k.hold = p_hold;
  insert into meshaudit_private.ledger (secret_id, access_type, operation, outcome, secret_table, scope)
    values (meshaudit_private.bounded(pg_catalog.concat(p_hold, ': ', p_reason)), 'write', 'delete', 'granted', 'meshaudit.holds', coalesce(h.scope, '*'));
  return true;
end
$$;
revoke all on function meshaudit_private.lift_hold(bigint, text, text) from public;
grant execute on function meshaudit_private.lift_hold(bigint, text, text) to meshaudit_auditor;

create function meshaudit.lift_hold(hold bigint, reason text) returns boolean
language sql volatile security invoker
return meshaudit_private.lift_hold(hold, reason, current_user);
revoke all on function meshaudit.lift_hold(bigint, text) from public;
grant execute on function meshaudit.lift_hold(bigint, text) to meshaudit_auditor;

create function meshaudit_private.holds(p_role text)
returns table (
  hold bigint, secret_id text, user_identity text, scope text, from_time timestamptz, to_time timestamptz, reason text,
  placed_by text, placed_at timestamptz
)
language plpgsql stable security definer set search_path = ''
as $$
declare
  v_scopes constant pg_catalog.text[] := meshaudit_private.visible_scopes(p_role);
begin
  return query
    select h.hold, h.secret_id, h.user_identity, h.scope, h.from_time, h.to_time, h.reason, h.placed_by, h.placed_at
    from meshaudit_private.holds h
    where pg_catalog.pg_has_role(p_role, 'meshaudit_operator', 'USAGE') or '*' = any (v_scopes) or h.scope = any (v_scopes)
    order by h.hold;
end
$$;
revoke all on function meshaudit_private.holds(text) from public;
grant execute on function meshaudit_private.holds(text) to meshaudit_auditor, meshaudit_operator;

create function meshaudit.holds()
returns table (
  hold bigint, secret_id text, user_identity text, scope text, from_time timestamptz, to_time timestamptz, reason text,
  placed_by text, placed_at timestamptz
)
language sql stable security invoker
begin atomic
  select h.hold, h.secret_id, h.user_identity, h.scope, h.from_time, h.to_time, h.reason, h.placed_by, h.placed_at
  from meshaudit_private.holds(current_user) h;
end;
revoke all on function meshaudit.holds() from public;
grant execute on function meshaudit.holds() to meshaudit_auditor, meshaudit_operator;

comment on function meshaudit_private.require_scope(text, text) is 'Raises MA001 unless a role, or the request''s JWT subject, is an auditor of a scope; null is all.';
comment on function meshaudit_private.require_reason(text) is 'Raises MA005 unless there is a reason, of at most 400 characters.';
comment on function meshaudit_private.place_hold(text, text, text, text, timestamptz, timestamptz, text) is 'meshaudit.place_hold(), for a role.';
comment on function meshaudit.place_hold(text, text, text, text, timestamptz, timestamptz) is
  'A legal hold: partitions with an entry that it matches are not retired, and archives that may have one do not expire. Returns its number. Recorded as a create of meshaudit.holds, with the reason. Raises MA001 to who is no auditor of that scope, MA005 on a bad argument.';
comment on function meshaudit_private.lift_hold(bigint, text, text) is 'meshaudit.lift_hold(), for a role.';
comment on function meshaudit.lift_hold(bigint, text) is
  'Takes a hold away; false if there is none of that number. Recorded as a delete of meshaudit.holds, with the reason. Raises MA001 to who is no auditor of its scope, MA005 on a bad argument.';
comment on function meshaudit_private.holds(text) is 'meshaudit.holds(), for a role.';
comment on function meshaudit.holds() is 'The legal holds; an auditor sees those of its scopes, an operator all.';
