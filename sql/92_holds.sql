-- Legal holds: what one matches is not retired. Each is an entry when it is placed and when it is lifted.

create function meshaudit_private.place_hold(
  p_reason text, p_secret_id text, p_user_identity text, p_scope text, p_from timestamptz, p_to timestamptz, p_role text
) returns bigint
language plpgsql volatile security definer set search_path = ''
as $$
declare
  v_hold pg_catalog.int8;
begin
  perform meshaudit_private.require_whole_log(p_role);
  if coalesce(pg_catalog.btrim(p_reason), '') = '' or pg_catalog.char_length(p_reason) > 400 or p_from >= p_to then
    raise exception 'a hold has a reason of at most 400 characters, and a range of time that is not empty' using errcode = 'MA005',
      hint = 'secret_id, user_identity, scope and times narrow it down; without any, it is on the whole log.';
  end if;
  insert into meshaudit_private.holds (secret_id, user_identity, scope, from_time, to_time, reason, placed_by)
    values (p_secret_id, p_user_identity, p_scope, p_from, p_to, p_reason, session_user)
    returning hold into v_hold;
  insert into meshaudit_private.ledger (secret_id, access_type, operation, outcome, secret_table, scope)
    values (pg_catalog.concat(v_hold, ': ', p_reason), 'write', 'create', 'granted', 'meshaudit.holds', coalesce(p_scope, '*'));
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
language plpgsql volatile security definer set search_path = ''
as $$
declare
  v_scope pg_catalog.text;
begin
  perform meshaudit_private.require_whole_log(p_role);
  if coalesce(pg_catalog.btrim(p_reason), '') = '' or pg_catalog.char_length(p_reason) > 400 then
    raise exception 'lifting a hold takes a reason of at most 400 characters' using errcode = 'MA005',
      hint = 'It is recorded with the hold''s number.';
  end if;
  delete from meshaudit_private.holds h where h.hold = p_hold returning coalesce(h.scope, '*') into v_scope;
  if v_scope is null then
    return false;
  end if;
  insert into meshaudit_private.ledger (secret_id, access_type, operation, outcome, secret_table, scope)
    values (pg_catalog.concat(p_hold, ': ', p_reason), 'write', 'delete', 'granted', 'meshaudit.holds', v_scope);
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

comment on function meshaudit_private.place_hold(text, text, text, text, timestamptz, timestamptz, text) is 'meshaudit.place_hold(), for a role.';
comment on function meshaudit.place_hold(text, text, text, text, timestamptz, timestamptz) is
  'A legal hold: partitions with an entry that it matches are not retired. Returns its number. Recorded as a create of meshaudit.holds, with the reason. Raises MA001 to an auditor of a part of the log, MA005 on a bad argument.';
comment on function meshaudit_private.lift_hold(bigint, text, text) is 'meshaudit.lift_hold(), for a role.';
comment on function meshaudit.lift_hold(bigint, text) is
  'Takes a hold away; false if there is none of that number. Recorded as a delete of meshaudit.holds, with the reason. Raises MA001 to an auditor of a part of the log, MA005 on a bad argument.';
