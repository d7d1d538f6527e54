-- Looking behind a pseudonym, and destroying what is there.

-- An identity as an entry about a search may have it.
create function meshaudit_private.told_as(p_identity text) returns text
language sql stable set search_path = ''
as $$
  select case
    when p_identity is null then null
    when not meshaudit_private.erasable() or p_identity ~ '^erasable:' or meshaudit_private.identity_kind(p_identity) = 'database'
      then p_identity
    else coalesce(nullif(pg_catalog.array_to_string((meshaudit_private.names_of(p_identity))[2:], ' '), ''), '(without a pseudonym)') end
$$;

create function meshaudit_private.identity_of(p_pseudonym text, p_role text) returns text
language plpgsql volatile security definer set search_path = ''
as $$
declare
  v_scopes constant pg_catalog.text[] := meshaudit_private.visible_scopes(p_role);
  v_seen constant pg_catalog.bool := meshaudit_private.bypasses(p_role) or '*' = any (v_scopes) or exists (
    select from meshaudit_private.ledger l where l.user_identity = p_pseudonym and l.scope = any (v_scopes));
begin
  perform meshaudit_private.record_reading(pg_catalog.concat('identity of ', p_pseudonym),
    case when v_seen then 'granted' else 'denied' end, p_role);
  return (
    select i.identity from meshaudit_private.identities i
    where v_seen and i.pseudonym = p_pseudonym and meshaudit_private.pseudonym(i.salt, i.identity) = i.pseudonym);
end
$$;
revoke all on function meshaudit_private.identity_of(text, text) from public;
grant execute on function meshaudit_private.identity_of(text, text) to meshaudit_auditor;

create function meshaudit.identity_of(pseudonym text) returns text
language sql volatile security invoker
return meshaudit_private.identity_of(pseudonym, current_user);
revoke all on function meshaudit.identity_of(text) from public;
grant execute on function meshaudit.identity_of(text) to meshaudit_auditor;

create function meshaudit.erase_identity(identity text, reason text) returns int
language plpgsql volatile security definer set search_path = ''
as $$
declare
  v_names constant pg_catalog.text[] := meshaudit_private.names_of(identity);
  v_hold pg_catalog.int8;
  v_pseudonym pg_catalog.text;
  v_count pg_catalog.int4 := 0;
begin
  perform meshaudit_private.require_reason(reason);
  if pg_catalog.strpos(reason, identity) > 0 then
    perform meshaudit_private.refuse('MA005', 'the reason names the identity', 'It is recorded for good: give the number of the request.');
  end if;
  -- waits for no auditor whose hold is not committed
  lock table meshaudit_private.holds in share mode nowait;
  -- what a hold matches otherwise may be this identity's
  select h.hold into v_hold from meshaudit_private.holds h
    where h.user_identity is null or h.user_identity = any (v_names) order by h.hold limit 1;
  if v_hold is not null then
    perform meshaudit_private.refuse('MA005', pg_catalog.format('legal hold %s may be on entries of this identity', v_hold),
      'An auditor lifts it: select meshaudit.lift_hold(…).');
  end if;
  for v_pseudonym in
    delete from meshaudit_private.identities i where i.identity = erase_identity.identity returning i.pseudonym
  loop
    insert into meshaudit_private.ledger (secret_id, access_type, operation, outcome, secret_table, scope)
      values (pg_catalog.concat(v_pseudonym, ': ', reason), 'write', 'delete', 'granted', 'meshaudit.identities', '*');
    v_count := v_count + 1;
  end loop;
  return v_count;
exception when lock_not_available then
  raise exception 'a hold is being changed just now' using errcode = '55P03', hint = 'Try again in a moment; nothing was done.';
end
$$;
revoke all on function meshaudit.erase_identity(text, text) from public;

comment on function meshaudit_private.told_as(text) is 'An identity as an entry about a search may have it.';
comment on function meshaudit_private.identity_of(text, text) is 'meshaudit.identity_of(), for a role.';
comment on function meshaudit.identity_of(text) is
  'The identity behind a pseudonym, to an auditor who may see one of its entries; null if it was erased, or is none. Recorded as a read of meshaudit.audit_logs.';
comment on function meshaudit.erase_identity(text, text) is
  'Destroys what joins an identity with its pseudonyms; returns how many there were. Recorded as a delete of meshaudit.identities for each, which names the pseudonym and the reason, not the identity. Raises MA005 under a legal hold that may be on its entries, and if the reason names it; 55P03 while holds are being changed.';
