-- Lanes: chains side by side, so that no access waits for another's commit.
--
-- A transaction takes a lane by locking its row in lane_heads, passing over locked ones. Which lane is tried first
-- follows from the backend's pid: a session mostly meets a lane that only it has moved, which is also why a
-- REPEATABLE READ or SERIALIZABLE snapshot mostly finds it unmoved. Moved since the snapshot: Postgres raises
-- 40001 on the lock, and the next lane is tried. None to be had: a new lane.
--
-- meshaudit.lane_at remembers where this session left its lane's row. It is a hint: a forged one finds no row of
-- that lane, or finds the very row. Without it, each entry of a transaction would walk over the versions that the
-- entries before it left behind, and n entries would cost n² steps.

create type meshaudit_private.link as (lane int, seq bigint, prev_hash bytea, hash bytea);

-- Moves one lane on by an entry. Null lane: locked by another transaction, or there is none of that number.
-- Raises 40001 in REPEATABLE READ and SERIALIZABLE when the lane has moved since the snapshot.
create function meshaudit_private.advance_lane(p_lane int, p_tail bytea) returns meshaudit_private.link
language plpgsql volatile set search_path = ''
as $$
declare
  v_link meshaudit_private.link;
  v_at pg_catalog.text := pg_catalog.current_setting('meshaudit.lane_at', true);
begin
  if v_at is null or v_at !~ '^[(][0-9]{1,9},[0-9]{1,4}[)]$' then
    v_at := '(0,0)';
  end if;
  update meshaudit_private.lane_heads h
    set seq = h.seq + 1,
        prev_hash = h.hash,
        hash = meshaudit_private.entry_hash(h.hash, p_lane, h.seq + 1, p_tail)
    where h.ctid = coalesce(
        (select l.ctid from meshaudit_private.lane_heads l
          where l.ctid = v_at::pg_catalog.tid and l.lane = p_lane for update skip locked),
        (select l.ctid from meshaudit_private.lane_heads l
          where l.lane = p_lane for update skip locked))
    returning h.lane, h.seq, h.prev_hash, h.hash, h.ctid
    into v_link.lane, v_link.seq, v_link.prev_hash, v_link.hash, v_at;
  if v_link.lane is not null then
    perform pg_catalog.set_config('meshaudit.lane_at', v_at, false);
  end if;
  return v_link;
end
$$;

-- Adds lanes until there are p_count; returns the number of the last one it made, null if none was missing.
create function meshaudit_private.add_lanes(p_count int) returns int
language plpgsql volatile set search_path = ''
as $$
declare
  v_lane pg_catalog.int4;
begin
  for i in (select pg_catalog.count(*) + 1 from meshaudit_private.lane_heads)::pg_catalog.int4 .. p_count loop
    v_lane := meshaudit_private.add_lane();
  end loop;
  return v_lane;
end
$$;

create function meshaudit_private.add_lane() returns int
language sql volatile set search_path = ''
as $$
  insert into meshaudit_private.lane_heads (lane, hash)
  select n.lane, meshaudit_private.genesis_hash(s.ledger_id, n.lane)
  from meshaudit_private.settings s, (select pg_catalog.nextval('meshaudit_private.lane_number')::pg_catalog.int4) n (lane)
  returning lane
$$;

-- Takes a lane and moves it on by one entry. Never waits.
create function meshaudit_private.take_lane(p_tail bytea) returns meshaudit_private.link
language plpgsql volatile set search_path = ''
as $$
declare
  c_lanes constant pg_catalog.int4 := 256;  -- what add_lanes() makes at install; more come when needed
  c_tries constant pg_catalog.int4 := 12;
  v_link meshaudit_private.link;
  v_fresh constant pg_catalog.bool := pg_catalog.current_setting('transaction_isolation') = 'read committed';
  v_lane pg_catalog.int4 := pg_catalog.pg_backend_pid() % c_lanes;
begin
  for i in 1 .. c_tries loop
    if v_fresh then
      v_link := meshaudit_private.advance_lane(v_lane, p_tail);
    else
      begin
        v_link := meshaudit_private.advance_lane(v_lane, p_tail);
      exception when serialization_failure then
        v_link := null;
      end;
    end if;
    if v_link.lane is not null then
      return v_link;
    end if;
    -- a stride that is prime to c_lanes reaches every lane, far from those that neighbouring pids try first
    v_lane := (v_lane + 37) % c_lanes;
  end loop;
  -- more transactions are open than there are lanes to try: the lanes beyond, then a new one
  for v_lane in
    select h.lane from meshaudit_private.lane_heads h where h.lane >= c_lanes order by h.lane desc
      limit (case when v_fresh then null else 2 * c_tries end)
  loop
    begin
      v_link := meshaudit_private.advance_lane(v_lane, p_tail);
      if v_link.lane is not null then
        return v_link;
      end if;
    exception when serialization_failure then
      null;
    end;
  end loop;
  return meshaudit_private.advance_lane(meshaudit_private.add_lane(), p_tail);
end
$$;

select meshaudit_private.add_lanes(256);

comment on type meshaudit_private.link is 'An entry''s place in its chain.';
comment on function meshaudit_private.advance_lane(int, bytea) is
  'Moves one lane on by an entry; null lane if another transaction holds it.';
comment on function meshaudit_private.add_lanes(int) is 'Adds lanes until there are so many.';
comment on function meshaudit_private.add_lane() is 'Makes a new lane and returns its number.';
comment on function meshaudit_private.take_lane(bytea) is 'Takes a free lane and moves it on by an entry. Never waits.';
