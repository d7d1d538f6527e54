-- Pseudonyms in place of identities that a gateway or the caller itself gives (docs/adr/0013-erasure.md).
--
-- Invariants
--   * off: erasable() is a constant in the plans of those who ask it, and logins without claims never do;
--   * the journal has the plain identity, so that a ROLLBACK, which takes the mapping's row with it, hides nobody: the
--     sealer maps it;
--   * who may do what is decided by the plain identity.

create function meshaudit_private.erasable() returns boolean
language sql stable parallel safe
return false;

create function meshaudit_private.note_erasable() returns trigger
language plpgsql volatile set search_path = ''
as $$
begin
  execute pg_catalog.format(
    'create or replace function meshaudit_private.erasable() returns boolean language sql stable parallel safe return %s',
    new.erasable_identities::pg_catalog.text);
  return null;
end
$$;
create trigger note_erasable after update of erasable_identities on meshaudit_private.settings
  for each row execute function meshaudit_private.note_erasable();
alter table meshaudit_private.settings enable always trigger note_erasable;

create function meshaudit_private.pseudonym(p_salt bytea, p_identity text) returns text
language sql immutable parallel safe
return 'erasable:' || pg_catalog.encode(pg_catalog.substr(
  pg_catalog.sha256(p_salt || pg_catalog.convert_to(p_identity, 'UTF8')), 1, 20), 'hex');

-- SERIALIZABLE: to look first would conflict with whoever adds one.
create function meshaudit_private.pseudonym_of(p_identity text) returns text
language plpgsql volatile set search_path = ''
as $$
declare
  v_pseudonym pg_catalog.text;
  v_salt pg_catalog.bytea;
begin
  if p_identity is null then
    return null;
  end if;
  if pg_catalog.current_setting('transaction_isolation') <> 'serializable' then
    select i.pseudonym into v_pseudonym from meshaudit_private.identities i where i.identity = p_identity
      order by i.made_at limit 1;
  end if;
  if v_pseudonym is null then
    v_salt := pg_catalog.sha256(pg_catalog.uuid_send(pg_catalog.gen_random_uuid()) || pg_catalog.uuid_send(pg_catalog.gen_random_uuid()));
    v_pseudonym := meshaudit_private.pseudonym(v_salt, p_identity);
    insert into meshaudit_private.identities (pseudonym, identity, salt) values (v_pseudonym, p_identity, v_salt);
  end if;
  return v_pseudonym;
end
$$;

-- The first of the names that an identity has: SERIALIZABLE transactions make one an entry, and what counts must not be
-- misled by that. Looks no further than the first, however many there are.
create function meshaudit_private.first_pseudonym(p_pseudonym text) returns text
language sql stable
return coalesce((
  select (select o.pseudonym from meshaudit_private.identities o where o.identity = i.identity order by o.made_at limit 1)
  from meshaudit_private.identities i where i.pseudonym = p_pseudonym), p_pseudonym);

-- Without a subquery it is inlined: other names, which most are, cost no call.
create function meshaudit_private.first_name(p_name text) returns text
language sql stable
return case when pg_catalog.starts_with(p_name, 'erasable:') then meshaudit_private.first_pseudonym(p_name) else p_name end;

-- All that an identity is called in the log.
create function meshaudit_private.names_of(p_identity text) returns text[]
language sql stable set search_path = ''
as $$
  select p_identity || array(select i.pseudonym from meshaudit_private.identities i where i.identity = p_identity order by i.made_at)
  where p_identity is not null
$$;

-- Entries of the journal's records, with pseudonyms. Each identity is asked for once; the answers are jsonb, where one is
-- found among many whatever the planner makes of it.
create function meshaudit_private.pseudonymous(p_entries meshaudit_private.ledger[]) returns meshaudit_private.ledger[]
language plpgsql volatile set search_path = ''
as $$
declare
  v_names constant pg_catalog.jsonb := (
    select pg_catalog.jsonb_object_agg(n.identity, meshaudit_private.pseudonym_of(n.identity))
    from (
      select e.user_identity as identity from unnest(p_entries) e where e.identity_source = 'jwt' and e.user_identity is not null
      union
      select e.claimed_identity from unnest(p_entries) e where e.claimed_identity is not null) n);
begin
  return array(
    select row(
      e.id, e.secret_id, e.access_type, e."timestamp",
      case e.identity_source when 'jwt' then v_names ->> e.user_identity else e.user_identity end, e.ip_address, e.operation,
      e.outcome, e.secret_table, e.scope, e.identity_source, v_names ->> e.claimed_identity, e.db_user, e.db_role,
      e.application_name, e.user_agent, e.request_id, e.access_id, e.lane, e.seq, e.prev_hash, e.hash)::meshaudit_private.ledger
    from unnest(p_entries) e);
end
$$;

comment on function meshaudit_private.erasable() is 'Setting erasable_identities.';
comment on function meshaudit_private.note_erasable() is 'Keeps erasable() true to the setting.';
comment on function meshaudit_private.pseudonym(bytea, text) is 'The pseudonym that a salt and an identity make.';
comment on function meshaudit_private.pseudonym_of(text) is 'An identity''s pseudonym, made if there is none; waits for nobody.';
comment on function meshaudit_private.first_pseudonym(text) is 'The first pseudonym of the identity that a pseudonym stands for.';
comment on function meshaudit_private.first_name(text) is 'Of a pseudonym, the first that its identity had; of another name, itself.';
comment on function meshaudit_private.names_of(text) is 'An identity and its pseudonyms.';
comment on function meshaudit_private.pseudonymous(meshaudit_private.ledger[]) is 'Entries with pseudonyms instead of identities.';
