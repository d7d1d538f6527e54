-- Lanes: chains side by side, so that no access waits for another's commit.
--
-- A transaction takes a lane by an advisory lock that it tries, never waits for, and then moves the lane's row on. Which
-- lane is tried first follows from the backend's pid: a session mostly meets a lane that only it has moved, which is
-- also why a REPEATABLE READ or SERIALIZABLE snapshot mostly finds it unmoved. Moved since the snapshot: Postgres
-- raises 40001 on the row, and the next lane is tried.
--
-- Two things about advisory locks decide the rest. A cursor that fails in a savepoint gives up its own while the row
-- stays changed: so a row that an open transaction has changed is passed over (xmax), else the next would wait for it.
-- And anybody can take them: whoever takes all sends the others to the overflow lanes, beyond 512, which are locked by
-- their rows alone (SKIP LOCKED, slower), and to those rows nobody has a privilege. The two kinds never mix.
--
-- meshaudit.lane_at remembers this transaction's lane and where it left the lane's row. It is a hint: a forged one names
-- a lane that is tried by the same rules as any, and a place where that lane's row is or is not. Without it, each entry
-- of a transaction would walk over the versions that the entries before it left behind, and n entries would cost n²
-- steps; and a snapshot older than every lane's last move would make a new lane for each entry. It ends with the
-- transaction, because only a look-up by index clears dead versions away.

create type meshaudit_private.link as (lane int, seq bigint, prev_hash bytea, hash bytea);

-- Whether a transaction is over, given a recent xid (a row's xmax).
create function meshaudit_private.is_over(p_xid xid) returns boolean
language plpgsql volatile set search_path = ''
as $$
declare
  v_next constant pg_catalog.int8 :=
    pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::pg_catalog.text::pg_catalog.int8;
  v_xid pg_catalog.int8 := (v_next & (-4294967296)) + p_xid::pg_catalog.text::pg_catalog.int8;
begin
  if v_xid > v_next + 2147483648 then
    v_xid := v_xid - 4294967296;  -- from before the last wrap-around
  end if;
  return pg_catalog.pg_xact_status(v_xid::pg_catalog.text::pg_catalog.xid8) is distinct from 'in progress';
end
$$;

-- Moves a lane of 1 to 512 on by an entry; p_at is where its row may be. Null lane: another transaction has it. Raises
-- 40001 in REPEATABLE READ and SERIALIZABLE when the lane has moved since the snapshot.
create function meshaudit_private.advance_lane(p_lane int, p_at tid, p_tail bytea) returns meshaudit_private.link
language plpgsql volatile set search_path = ''
as $$
declare
  v_link meshaudit_private.link;
  v_at pg_catalog.tid;
begin
  if not pg_catalog.pg_try_advisory_xact_lock(1296389185, p_lane) then  -- "MESA"
    return null;
  end if;
  if p_at is not null then
    update meshaudit_private.lane_heads h
      set seq = h.seq + 1, prev_hash = h.hash,
          hash = meshaudit_private.entry_hash(h.hash, p_lane, h.seq + 1, p_tail)
      where h.ctid = p_at and h.lane = p_lane and (h.xmax = 0 or meshaudit_private.is_over(h.xmax))
      returning h.lane, h.seq, h.prev_hash, h.hash, h.ctid
      into v_link.lane, v_link.seq, v_link.prev_hash, v_link.hash, v_at;
  end if;
  if v_link.lane is null then
    update meshaudit_private.lane_heads h
      set seq = h.seq + 1, prev_hash = h.hash,
          hash = meshaudit_private.entry_hash(h.hash, p_lane, h.seq + 1, p_tail)
      where h.lane = p_lane and (h.xmax = 0 or meshaudit_private.is_over(h.xmax))
      returning h.lane, h.seq, h.prev_hash, h.hash, h.ctid
      into v_link.lane, v_link.seq, v_link.prev_hash, v_link.hash, v_at;
  end if;
  if v_link.lane is not null then
    perform pg_catalog.set_config('meshaudit.lane_at', pg_catalog.concat(p_lane, ' ', v_at), true);
  end if;
  return v_link;
end
$$;

-- The same for an overflow lane; null means any that is free.
create function meshaudit_private.advance_overflow_lane(p_lane int, p_at tid, p_tail bytea) returns meshaudit_private.link
language plpgsql volatile set search_path = ''
as $$
declare
  v_link meshaudit_private.link;
  v_at pg_catalog.tid;
begin
  update meshaudit_private.lane_heads h
    set seq = h.seq + 1, prev_hash = h.hash,
        hash = meshaudit_private.entry_hash(h.hash, h.lane, h.seq + 1, p_tail)
    where h.ctid = coalesce(
      (select l.ctid from meshaudit_private.lane_heads l
        where l.ctid = p_at and l.lane = p_lane and l.lane > 512 for update skip locked),
      (select l.ctid from meshaudit_private.lane_heads l
        where l.lane > 512 and (p_lane is null or l.lane = p_lane) order by l.lane limit 1 for update skip locked))
    returning h.lane, h.seq, h.prev_hash, h.hash, h.ctid
    into v_link.lane, v_link.seq, v_link.prev_hash, v_link.hash, v_at;
  if v_link.lane is not null then
    perform pg_catalog.set_config('meshaudit.lane_at', pg_catalog.concat(v_link.lane, ' ', v_at), true);
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

-- The row that fills the page up goes again at once; the next access clears it away.
create function meshaudit_private.add_lane() returns int
language plpgsql volatile set search_path = ''
as $$
declare
  v_lane constant pg_catalog.int4 := pg_catalog.nextval('meshaudit_private.lane_number');
begin
  insert into meshaudit_private.lane_heads (lane, hash)
    select v_lane, meshaudit_private.genesis_hash(s.ledger_id, v_lane) from meshaudit_private.settings s;
  insert into meshaudit_private.lane_heads (lane, hash)
    values (-v_lane, pg_catalog.convert_to(pg_catalog.repeat('x', 7900), 'UTF8'));
  delete from meshaudit_private.lane_heads where lane = -v_lane;
  return v_lane;
end
$$;

-- One lane, of either kind. Null lane: busy, or moved since the snapshot.
create function meshaudit_private.try_lane(p_lane int, p_at tid, p_tail bytea) returns meshaudit_private.link
language plpgsql volatile set search_path = ''
as $$
begin
  if p_lane <= 512 then
    return meshaudit_private.advance_lane(p_lane, p_at, p_tail);
  end if;
  return meshaudit_private.advance_overflow_lane(p_lane, p_at, p_tail);
exception when serialization_failure then
  return null;
end
$$;

-- Whether that is "lane (block,row)", all in range: whatever a session has set, the casts must not fail. By hand, since a
-- regular expression takes a fifth of the time of an entry.
create function meshaudit_private.is_lane_at(p_at text) returns boolean
language sql immutable parallel safe
return pg_catalog.translate(p_at, '0123456789', '') = ' (,)' and p_at like '_% (_%,_%)'
  and pg_catalog.strpos(p_at, ' ') <= 10 and pg_catalog.strpos(pg_catalog.split_part(p_at, ' ', 2), ',') <= 11
  and pg_catalog.octet_length(pg_catalog.split_part(p_at, ',', 2)) <= 5;

-- Takes a lane and moves it on by an entry. Never waits.
create function meshaudit_private.take_lane(p_tail bytea) returns meshaudit_private.link
language plpgsql volatile set search_path = ''
as $$
declare
  c_tries constant pg_catalog.int4 := 40;
  v_link meshaudit_private.link;
  v_fresh constant pg_catalog.bool := pg_catalog.current_setting('transaction_isolation') = 'read committed';
  v_at constant pg_catalog.text := pg_catalog.current_setting('meshaudit.lane_at', true);
  v_lane pg_catalog.int4 := pg_catalog.pg_backend_pid() % 512 + 1;
  v_place pg_catalog.tid;
  v_stale pg_catalog.int4 := 0;
begin
  if meshaudit_private.is_lane_at(v_at) then
    v_lane := pg_catalog.split_part(v_at, ' ', 1)::pg_catalog.int4;
    v_place := pg_catalog.split_part(v_at, ' ', 2)::pg_catalog.tid;
  end if;
  -- the lane that this transaction has, or that of its pid, then others
  for i in 1 .. c_tries loop
    if v_fresh and v_lane <= 512 then
      v_link := meshaudit_private.advance_lane(v_lane, v_place, p_tail);
    else
      v_link := meshaudit_private.try_lane(v_lane, v_place, p_tail);
    end if;
    if v_link.lane is not null then
      return v_link;
    end if;
    -- a stride that is prime to 512 reaches every lane, far from those that neighbouring pids try first
    v_lane := (v_lane + 36) % 512 + 1;
    v_place := null;
  end loop;

  if v_fresh then
    v_link := meshaudit_private.advance_overflow_lane(null, null, p_tail);
  else
    for v_lane in select h.lane from meshaudit_private.lane_heads h where h.lane > 512 order by h.lane loop
      begin
        v_link := meshaudit_private.advance_overflow_lane(v_lane, null, p_tail);
      exception when serialization_failure then
        v_stale := v_stale + 1;
      end;
      -- a busy lane costs nothing, one that has moved does
      exit when v_link.lane is not null or v_stale > c_tries;
    end loop;
  end if;
  if v_link.lane is null then
    v_link := meshaudit_private.advance_overflow_lane(meshaudit_private.add_lane(), null, p_tail);
  end if;
  return v_link;
end
$$;

select meshaudit_private.add_lanes(512);

comment on type meshaudit_private.link is 'An entry''s place in its chain.';
comment on function meshaudit_private.is_over(xid) is 'Whether that transaction has committed or aborted.';
comment on function meshaudit_private.advance_lane(int, tid, bytea) is
  'Moves one lane on by an entry; null lane if another transaction holds it.';
comment on function meshaudit_private.advance_overflow_lane(int, tid, bytea) is
  'Moves an overflow lane on by an entry, any free one if p_lane is null; null lane if there is none.';
comment on function meshaudit_private.try_lane(int, tid, bytea) is
  'Moves one lane on by an entry; null lane if it is busy, or has moved since the snapshot.';
comment on function meshaudit_private.is_lane_at(text) is 'Whether that names a lane and a place that can be looked at.';
comment on function meshaudit_private.add_lanes(int) is 'Adds lanes until there are so many.';
comment on function meshaudit_private.add_lane() is 'Makes a new lane and returns its number.';
comment on function meshaudit_private.take_lane(bytea) is 'Takes a free lane and moves it on by an entry. Never waits.';
