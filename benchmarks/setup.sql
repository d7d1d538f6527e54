-- What the ledger is compared with: no audit, a plain INSERT of an equal row, and the naive chain.

create schema bench;

do $$
begin
  for i in 1 .. 10000 loop
    perform meshaudit.write_secret('key' || i, decode(repeat('ab', 64), 'hex'), 'project' || i % 10);
  end loop;
end
$$;

create table bench.ids as select row_number() over () n, id from meshaudit_private.secrets;
create unique index on bench.ids (n);

-- same columns, defaults and indexes, partitioned alike; no trigger
do $$
declare
  v_table text;
begin
  foreach v_table in array array['plain', 'naive'] loop
    execute format('create table bench.%I (like meshaudit_private.ledger including defaults including indexes)
      partition by range ("timestamp")', v_table);
    for i in -1 .. 3 loop
      execute format('create table bench.%I partition of bench.%I for values from (%L) to (%L)', v_table || i + 2, v_table,
        date_trunc('month', now()) + make_interval(months => i), date_trunc('month', now()) + make_interval(months => i + 1));
    end loop;
  end loop;
end
$$;

create function bench.read_unaudited(p_id uuid) returns bytea
language plpgsql volatile security definer set search_path = ''
as $$
declare
  v_scope text;
  v_value bytea;
begin
  select s.scope, s.value into v_scope, v_value from meshaudit_private.secrets s where s.id = p_id;
  if v_scope is null then
    raise exception 'no such secret';
  end if;
  return v_value;
end
$$;

create function bench.read_plain(p_id uuid) returns bytea
language plpgsql volatile security definer set search_path = ''
as $$
declare
  v_scope text;
  v_value bytea;
begin
  select s.scope, s.value into v_scope, v_value from meshaudit_private.secrets s where s.id = p_id;
  if v_scope is null then
    raise exception 'no such secret';
  end if;
  -- lanes and numbers spread as the ledger's are, so that the indexes are met alike
  insert into bench.plain (id, secret_id, operation, outcome, secret_table, scope, lane, seq, prev_hash, hash)
    select n, p_id::text, 'read', 'granted', 'meshaudit.secrets', v_scope, pg_backend_pid() % 512 + 1, n,
      '\x0000000000000000000000000000000000000000000000000000000000000000',
      '\x0000000000000000000000000000000000000000000000000000000000000000'
    from nextval('meshaudit_private.ledger_id') n;
  return v_value;
end
$$;

create table bench.head (one int primary key, seq bigint not null, hash bytea not null) with (fillfactor = 10);
insert into bench.head values (1, 0, sha256(''));

create function bench.chain_naive() returns trigger
language plpgsql volatile
as $$
begin
  update bench.head h
    set seq = h.seq + 1,
        hash = sha256(h.hash || record_send(row(1, h.seq + 1, new.id, new.secret_id, new.access_type, new."timestamp",
          new.user_identity, new.ip_address, new.operation, new.outcome, new.secret_table, new.scope,
          new.identity_source, new.claimed_identity, new.db_user, new.db_role, new.application_name, new.access_id)))
    where h.one = 1
    returning h.seq, h.hash into new.seq, new.hash;
  return new;
end
$$;
create trigger chain_naive before insert on bench.naive for each row execute function bench.chain_naive();

create function bench.read_naive(p_id uuid) returns bytea
language plpgsql volatile security definer set search_path = ''
as $$
declare
  v_scope text;
  v_value bytea;
begin
  select s.scope, s.value into v_scope, v_value from meshaudit_private.secrets s where s.id = p_id;
  if v_scope is null then
    raise exception 'no such secret';
  end if;
  insert into bench.naive (secret_id, operation, outcome, secret_table, scope)
    values (p_id::text, 'read', 'granted', 'meshaudit.secrets', v_scope);
  return v_value;
end
$$;

analyze;
