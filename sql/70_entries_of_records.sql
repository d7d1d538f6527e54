-- From records of the journal to entries of the ledger.

create function meshaudit_private.time_of(p_at text) returns timestamptz
language sql stable
return '2000-01-01 00:00:00+00'::pg_catalog.timestamptz
  + ('x' || p_at)::pg_catalog."bit"(64)::pg_catalog.int8 * '1 microsecond'::pg_catalog.interval;

-- Chains entries that say themselves who called, and adds them: the first takes a lane, the others follow it. Everything
-- but the chain is done in sets. (unnest() gives its rows in order, and nothing here reorders them.)
create function meshaudit_private.append_entries(p_entries meshaudit_private.ledger[]) returns void
language plpgsql volatile set search_path = ''
as $$
declare
  v_count constant pg_catalog.int4 := coalesce(pg_catalog.cardinality(p_entries), 0);
  v_utf8 constant pg_catalog.bool := pg_catalog.pg_client_encoding() = 'UTF8';
  v_rest meshaudit_private.ledger[];
  e meshaudit_private.ledger;
  v_bytes pg_catalog.bytea[];
  v_links pg_catalog.bytea[];
begin
  if v_count = 0 then
    return;
  end if;
  e := p_entries[1];
  insert into meshaudit_private.ledger select e.* returning * into e;
  if v_count = 1 then
    return;
  end if;

  v_rest := p_entries[2:];
  v_bytes := array(
    select case when v_utf8 then
      -- entry_head() and entry_tail() in one
      pg_catalog.substr(pg_catalog.record_send(row(
        1, e.lane, e.seq + r.i, r.id, r.secret_id, r.access_type, r."timestamp", r.user_identity, r.ip_address,
        r.operation, r.outcome, r.secret_table, r.scope, r.identity_source, r.claimed_identity, r.db_user, r.db_role,
        r.application_name, r.user_agent, r.request_id, r.access_id)), 5)
    else
      meshaudit_private.entry_head(e.lane, e.seq + r.i) || meshaudit_private.entry_tail_portable(
        r.id, r.secret_id, r.access_type, r."timestamp", r.user_identity, r.ip_address, r.operation, r.outcome,
        r.secret_table, r.scope, r.identity_source, r.claimed_identity, r.db_user, r.db_role, r.application_name,
        r.user_agent, r.request_id, r.access_id)
    end
    from unnest(v_rest) with ordinality r (
      id, secret_id, access_type, "timestamp", user_identity, ip_address, operation, outcome, secret_table, scope,
      identity_source, claimed_identity, db_user, db_role, application_name, user_agent, request_id, access_id, lane,
      seq, prev_hash, hash, i));
  v_links := meshaudit_private.links(e.hash, v_bytes);
  insert into meshaudit_private.ledger (
      id, secret_id, access_type, "timestamp", user_identity, ip_address, operation, outcome, secret_table, scope,
      identity_source, claimed_identity, db_user, db_role, application_name, user_agent, request_id, access_id,
      lane, seq, prev_hash, hash)
    select r.id, r.secret_id, r.access_type, r."timestamp", r.user_identity, r.ip_address, r.operation, r.outcome,
      r.secret_table, r.scope, r.identity_source, r.claimed_identity, r.db_user, r.db_role, r.application_name,
      r.user_agent, r.request_id, r.access_id, e.lane, e.seq + r.i, r.link, r.next_link
    from unnest(v_rest, v_links[:v_count - 1], v_links[2:]) with ordinality r (
      id, secret_id, access_type, "timestamp", user_identity, ip_address, operation, outcome, secret_table, scope,
      identity_source, claimed_identity, db_user, db_role, application_name, user_agent, request_id, access_id, lane,
      seq, prev_hash, hash, link, next_link, i);
  -- ours since the first entry
  update meshaudit_private.lane_heads
    set seq = e.seq + v_count - 1, prev_hash = v_links[v_count - 1], hash = v_links[v_count] where lane = e.lane;
end
$$;

-- The same, whatever is in them: one that nothing takes as it is (an index, a constraint) is told of, with what can be told, and
-- keeps no other out. It would come back in each run.
create function meshaudit_private.append_surely(p_entries meshaudit_private.ledger[]) returns void
language plpgsql volatile set search_path = ''
as $$
declare
  e meshaudit_private.ledger;
begin
  begin
    perform meshaudit_private.append_entries(p_entries);
    return;
  exception when data_exception or integrity_constraint_violation or program_limit_exceeded then
    null;  -- one by one
  end;
  foreach e in array p_entries loop
    begin
      perform meshaudit_private.append_entries(array[e]);
    exception when data_exception or integrity_constraint_violation or program_limit_exceeded then
      e.secret_id := pg_catalog.concat('cannot be written as it is (', sqlstate, '): ', meshaudit_private.clean(e.secret_id, 64));
      e.scope := case when pg_catalog.octet_length(e.scope) <= 255 then coalesce(meshaudit_private.clean(e.scope, 255), '') else '*' end;
      e.secret_table := coalesce(meshaudit_private.clean(e.secret_table, 64), '');
      e.user_identity := coalesce(meshaudit_private.clean(e.user_identity, 64), '');
      e.claimed_identity := null;
      e.db_user := coalesce(meshaudit_private.clean(e.db_user, 64), '');
      e.db_role := coalesce(meshaudit_private.clean(e.db_role, 64), '');
      e.application_name := null;
      e.user_agent := null;
      e.request_id := null;
      perform meshaudit_private.append_entries(array[e]);
    end;
  end loop;
end
$$;

-- Entries, each access once: the first of those with the same access_id, in order.
create function meshaudit_private.each_once(p_entries meshaudit_private.ledger[]) returns meshaudit_private.ledger[]
language sql stable set search_path = ''
as $$
  select pg_catalog.array_agg(o.entry order by o.i)
  from (
    select distinct on ((n.entry).access_id) n.i, n.entry
    from (select p as entry, pg_catalog.row_number() over () as i from unnest(p_entries) p) n
    order by (n.entry).access_id, n.i) o
$$;

comment on function meshaudit_private.time_of(text) is 'The time that a record gives in hex.';
comment on function meshaudit_private.append_entries(meshaudit_private.ledger[]) is 'Chains entries and adds them to the ledger.';
comment on function meshaudit_private.append_surely(meshaudit_private.ledger[]) is 'append_entries(), and what cannot be written is told of instead.';
comment on function meshaudit_private.each_once(meshaudit_private.ledger[]) is 'Entries less those of an access that another stands for.';
