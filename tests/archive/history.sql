-- Entries spread evenly over the months before this one; lanes at random, so that each partition has stretches of each. A
-- few come late: their timestamp is of three days before, as those that are sealed late.
create function pg_temp.load(p_months int, p_rows int, p_lanes int, p_seed double precision) returns void language plpgsql as $$
declare
  v_this constant timestamptz := date_trunc('month', now() at time zone 'UTC') at time zone 'UTC';
  v_from constant timestamptz := ((v_this at time zone 'UTC') - make_interval(months => p_months)) at time zone 'UTC';
  v_step constant interval := (v_this - v_from) / p_rows;
  v_ledger_id constant uuid := (select ledger_id from meshaudit_private.settings);
  v_start timestamptz;
  v_hashes bytea[];
  v_seqs bigint[];
  v_lane int;
  v_dice double precision;
  e meshaudit_private.ledger;
begin
  set local role meshaudit_owner;
  for i in 1 .. p_months loop
    v_start := ((v_this at time zone 'UTC') - make_interval(months => i)) at time zone 'UTC';
    if not meshaudit_private.add_partition(v_start, 'month') then
      raise exception 'no partition for %', v_start;
    end if;
    execute format('alter table meshaudit_private.%I disable trigger user', meshaudit_private.partition_name(v_start, 'month'));
  end loop;
  reset role;
  for i in 1 .. p_lanes loop
    v_hashes[i] := meshaudit_private.genesis_hash(v_ledger_id, i);
    v_seqs[i] := 0;
  end loop;
  perform setseed(p_seed);
  for n in 1 .. p_rows loop
    v_lane := 1 + floor(random() * p_lanes);
    v_dice := random();
    e.id := nextval('meshaudit_private.ledger_id');
    e.secret_id := md5('secret' || floor(10000 * random() ^ 3))::uuid::text;
    e.scope := 'project' || floor(50 * random());
    e.operation := case when v_dice < 0.97 then 'read' when v_dice < 0.99 then 'update' when v_dice < 0.997 then 'create' else 'delete' end;
    e.access_type := case e.operation when 'read' then 'read' else 'write' end;
    e."timestamp" := v_from + n * v_step - v_step / 2;
    if n % 97 = 0 and e."timestamp" - interval '3 days' > v_from then
      e."timestamp" := e."timestamp" - interval '3 days';
    end if;
    v_dice := random();
    e.outcome := case when v_dice < 0.994 then 'granted' when v_dice < 0.997 then 'denied' else 'rolled_back' end;
    e.identity_source := case when random() < 0.5 then 'jwt' else 'database' end;
    e.user_identity := case e.identity_source when 'jwt' then md5('user' || floor(2000 * random() ^ 3))::uuid::text
      else 'service_' || floor(20 * random() ^ 2) end;
    e.ip_address := case when random() < 0.05 then '2001:db8::'::inet + floor(65536 * random())::bigint
      when random() < 0.9 then '10.0.0.0'::inet + floor(65536 * random() ^ 6)::bigint end;
    e.secret_table := 'meshaudit.secrets';
    e.claimed_identity := case when random() < 0.01 then 'Zoë ' || n end;
    e.db_user := case e.identity_source when 'jwt' then 'authenticator' else e.user_identity end;
    e.db_role := case e.identity_source when 'jwt' then 'authenticated' else e.user_identity end;
    e.application_name := case e.identity_source when 'jwt' then 'PostgREST 12.2' end;
    e.user_agent := case e.identity_source when 'jwt' then 'Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0' end;
    e.request_id := case e.identity_source when 'jwt' then gen_random_uuid()::text end;
    e.access_id := gen_random_uuid();
    e.lane := v_lane;
    v_seqs[v_lane] := v_seqs[v_lane] + 1;
    e.seq := v_seqs[v_lane];
    e.prev_hash := v_hashes[v_lane];
    e.hash := meshaudit_private.entry_hash(e.prev_hash, e.lane, e.seq, meshaudit_private.entry_tail(
      e.id, e.secret_id, e.access_type, e."timestamp", e.user_identity, e.ip_address, e.operation, e.outcome,
      e.secret_table, e.scope, e.identity_source, e.claimed_identity, e.db_user, e.db_role, e.application_name,
      e.user_agent, e.request_id, e.access_id));
    v_hashes[v_lane] := e.hash;
    insert into meshaudit_private.ledger values (e.*);
  end loop;
  for i in 1 .. p_lanes loop
    update meshaudit_private.lane_heads set seq = v_seqs[i], hash = v_hashes[i] where lane = i and v_seqs[i] > 0;
  end loop;
end
$$;
