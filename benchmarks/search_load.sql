-- Entries as a year of use would leave them, over twelve months, chained in lanes, so that
-- verify() finds them intact. There is no way to forge time in the product: a superuser fills tables that are attached as
-- partitions afterwards.

create schema bench;

-- the months before this one, newest last
create table bench.load (like meshaudit_private.ledger including defaults) partition by range ("timestamp");

do $$
declare
  v_first constant timestamptz := date_trunc('month', now() at time zone 'UTC') at time zone 'UTC';
  v_start timestamptz;
begin
  for i in 1 .. 12 loop
    v_start := ((v_first at time zone 'UTC') - make_interval(months => i)) at time zone 'UTC';
    set local role meshaudit_owner;
    execute format('create table meshaudit_private.%I (like meshaudit_private.ledger including defaults including constraints)',
      meshaudit_private.partition_name(v_start, 'month'));
    reset role;
    execute format('alter table meshaudit_private.%I owner to current_user', meshaudit_private.partition_name(v_start, 'month'));
    execute format('alter table bench.load attach partition meshaudit_private.%I for values from (%L) to (%L)',
      meshaudit_private.partition_name(v_start, 'month'), v_start, meshaudit_private.period_next(v_start, 'month'));
  end loop;
end
$$;

-- What happened: a few secrets, identities and addresses do most of it, many do little; a secret belongs to one scope.
-- Entries of one worker: every p_workers-th moment, in lanes of its own, in the order of time.
create function bench.entries(p_rows bigint, p_worker int, p_workers int) returns void
language plpgsql volatile
as $$
declare
  c_lanes constant int := 16;
  v_from constant timestamptz := ((date_trunc('month', now() at time zone 'UTC')) - interval '12 months') at time zone 'UTC';
  v_step constant interval := ((date_trunc('month', now() at time zone 'UTC') at time zone 'UTC') - v_from) / p_rows;
  v_ledger_id constant uuid := (select ledger_id from meshaudit_private.settings);
  v_hashes bytea[];
  v_seqs bigint[];
  v_lane int;
  v_secret int;
  v_dice double precision;
  e meshaudit_private.ledger;
begin
  for i in 1 .. c_lanes loop
    v_hashes[i] := meshaudit_private.genesis_hash(v_ledger_id, p_worker * c_lanes + i);
    v_seqs[i] := 0;
  end loop;
  perform setseed(0.5 / (p_worker + 1));
  for n in 1 .. p_rows loop
    continue when n % p_workers <> p_worker;
    v_lane := 1 + floor(random() * c_lanes);
    v_secret := floor(10000 * random() ^ 3);
    v_dice := random();
    e.id := n;
    e.secret_id := md5('secret' || v_secret)::uuid::text;
    e.scope := case when v_secret = 9000 then 'rare' else 'project' || v_secret % 50 end;
    e.operation := case when v_dice < 0.97 then 'read' when v_dice < 0.99 then 'update' when v_dice < 0.997 then 'create' else 'delete' end;
    e.access_type := case e.operation when 'read' then 'read' else 'write' end;
    e."timestamp" := v_from + n * v_step - v_step / 2;
    v_dice := random();
    e.outcome := case when v_dice < 0.994 then 'granted' when v_dice < 0.997 then 'denied' else 'rolled_back' end;
    e.identity_source := case when random() < 0.5 then 'jwt' else 'database' end;
    e.user_identity := case e.identity_source when 'jwt' then md5('user' || floor(2000 * random() ^ 3))::uuid::text
      else 'service_' || floor(20 * random() ^ 2) end;
    e.ip_address := case when random() < 0.9 then '10.0.0.0'::inet + floor(65536 * random() ^ 6)::bigint end;
    e.secret_table := 'meshaudit.secrets';
    e.db_user := case e.identity_source when 'jwt' then 'authenticator' else e.user_identity end;
    e.db_role := case e.identity_source when 'jwt' then 'authenticated' else e.user_identity end;
    e.application_name := case e.identity_source when 'jwt' then 'PostgREST 12.2' end;
    e.user_agent := case e.identity_source when 'jwt' then 'Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0' end;
    e.request_id := case e.identity_source when 'jwt' then gen_random_uuid()::text end;
    e.access_id := gen_random_uuid();
    e.lane := p_worker * c_lanes + v_lane;
    v_seqs[v_lane] := v_seqs[v_lane] + 1;
    e.seq := v_seqs[v_lane];
    e.prev_hash := v_hashes[v_lane];
    e.hash := meshaudit_private.entry_hash(e.prev_hash, e.lane, e.seq, meshaudit_private.entry_tail(
      e.id, e.secret_id, e.access_type, e."timestamp", e.user_identity, e.ip_address, e.operation, e.outcome,
      e.secret_table, e.scope, e.identity_source, e.claimed_identity, e.db_user, e.db_role, e.application_name,
      e.user_agent, e.request_id, e.access_id));
    v_hashes[v_lane] := e.hash;
    insert into bench.load values (e.*);
  end loop;
  for i in 1 .. c_lanes loop
    update meshaudit_private.lane_heads set seq = v_seqs[i], hash = v_hashes[i] where lane = p_worker * c_lanes + i;
  end loop;
end
$$;
