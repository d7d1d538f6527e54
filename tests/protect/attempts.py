"""Attempts at a protected value, for tests/protect/test_hostile.py: direct SQL of somebody with the app's own grants.

Each is one or more ways to the same end; every statement runs by itself and is rolled back. {mine} is a row that row
security shows to the session, {others} one that it does not show to a user.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Attack:
    """`reads`: the rows of its own that a session gets to know something about, values or one bit of them."""

    name: str
    ways: tuple[str, ...]
    reads: str = "none"  # none, mine ({mine} alone), all (whatever row security shows), some; off and others: see the test
    needs: int = 15


# Objects that anybody with a schema of their own can make; in schema lab_<role>.
LAB = """
create function leak(bytea) returns bool language plpgsql cost 0.0000001 as $$ begin raise notice 'leak %', convert_from($1, 'UTF8'); return true; end $$;
create function leak_id(uuid) returns bool language plpgsql cost 0.0000001 as $$ begin raise notice 'row %', $1; return true; end $$;
create function same(bytea, bytea) returns bool language plpgsql cost 0.0000001 as $$ begin raise notice 'same %', convert_from($1, 'UTF8'); return true; end $$;
create operator === (leftarg = bytea, rightarg = bytea, function = same, restrict = eqsel, join = eqjoinsel);
create function gather(text, bytea) returns text language sql as $$ select coalesce($1, '') || convert_from($2, 'UTF8') $$;
create aggregate gathered(bytea) (sfunc = gather, stype = text);
create type boxed as (v bytea);
create function box(bytea) returns boxed language sql as $$ select row($1)::@LAB@.boxed $$;
create cast (bytea as boxed) with function box(bytea);
create function grab() returns text language sql stable as $$ select string_agg(convert_from(value_encrypted, 'UTF8'), ' ') from public.secrets $$;
create function grab_base() returns text language sql stable as $$ select string_agg(convert_from(value_encrypted, 'UTF8'), ' ') from meshaudit_protected.secrets $$;
create function grab_fixed() returns text language sql immutable as $$ select string_agg(convert_from(value_encrypted, 'UTF8'), ' ') from public.secrets $$;
create function keep_state(uuid, tid, name) returns uuid language sql as $$ select $1 $$;
create table kept (v text default grab(), n int);
create table checked (n int check (grab() is null));
create function spy() returns trigger language plpgsql as $$ begin raise notice '% %', new, old; return new; end $$;
create view mine_too as select * from public.secrets;
create view barrier with (security_barrier = true) as select * from public.secrets where leak_id(id);
"""

B = "meshaudit_protected.secrets"

# What Postgres has no way to do, whoever asks; everything else must fail for want of a right, or not at all
# (test_attempts.py): a slip in a statement would pass for a refusal.
IMPOSSIBLE = {
    "42P10": (
        "on conflict (id) do update set key = encode(secrets.value_encrypted, 'hex') returning key",
    ),  # a view has no constraint
    "42809": (
        "copy public.secrets to stdout",
        "create table f3 (id uuid references public.secrets)",
    ),  # nor is it a table
    "0A000": ("_to_xml(",),  # servers built without libxml
}

ATTACKS = (
    Attack("the table by name", (
        f"select value_encrypted from {B}", f"table {B}", f"select * from only {B}", f"select s from {B} s", f"select s::text from {B} s",
        f"select row_to_json(s) from {B} s", f"select (s).value_encrypted from {B} s", f"select count(value_encrypted) from {B}",
        f"select id from {B} where value_encrypted = '\\x00'", f"select id from {B} order by value_encrypted",
        f"select id from {B} where leak(value_encrypted)", f"select max(value_encrypted::text) from {B}", "select grab_base()",
        f"select id from {B} natural join (values ('\\x736b5f6c6976655f63'::bytea)) v (value_encrypted)",
        f"select * from {B} tablesample system (100)", f"select value_encrypted from {B} for update", f"explain select id from {B} where value_encrypted > '\\x70'",
    )),
    Attack("writing the table by name", (
        f"update {B} set key = encode(value_encrypted, 'hex')", f"update {B} set key = 'x' where value_encrypted > '\\x70'",
        f"update {B} set key = key returning value_encrypted", f"update {B} set key = key returning *", f"delete from {B} returning value_encrypted",
        f"delete from {B} where leak(value_encrypted)", f"update {B} set value_encrypted = value_encrypted || '\\x00'",
        f"insert into {B} select gen_random_uuid(), project_id, key || '2', value_encrypted from {B} returning id", f"insert into {B} (id, project_id, key, value_encrypted) values ('{{mine}}', '{{project}}', 'q', '\\x00') on conflict (id) do update set key = encode(secrets.value_encrypted, 'hex')",
        f"insert into {B} (id, project_id, key, value_encrypted) values ('{{mine}}', '{{project}}', 'q', '\\x00') on conflict (id) do update set key = 'z' where secrets.value_encrypted > '\\x00' returning key",
        f"insert into {B} (id, project_id, key, value_encrypted) values ('{{mine}}', '{{project}}', 'q', '\\x00') on conflict (id) do update set key = 'z' returning value_encrypted",
        f"merge into {B} b using (values (1)) v on true when matched and b.value_encrypted > '\\x00' then do nothing",
        f"merge into {B} b using (values (1)) v on true when matched then update set key = encode(b.value_encrypted, 'hex')",
    )),
    Attack("failing rows", (
        f"update {B} set key = null", f"update {B} set key = 'GITHUB_TOKEN'", f"update {B} set project_id = '{{mine}}'",
        "update public.secrets set key = null where id = '{mine}'", "update public.secrets set key = 'GITHUB_TOKEN' where id = '{mine}'",
        "update public.secrets set project_id = '{mine}' where id = '{mine}'", "update public.secrets set id = null where id = '{mine}'",
        "update public.secrets set key = null", "delete from public.secrets where id = '{mine}' and 1 / (length(key) - length(key)) = 1",
        f"insert into {B} (id, project_id, key) values ('{{mine}}', '{{project}}', 'q')",
    ), "some"),
    Attack("errors that print a value", ("select value_encrypted::text::int from public.secrets", "select convert_from(value_encrypted, 'UTF8')::uuid from public.secrets where id = '{mine}'"), "mine"),
    Attack("select in every place", (
        "select value_encrypted from public.secrets", "select * from public.secrets", "select s from public.secrets s", "select s::text from public.secrets s",
        "select row_to_json(s) from public.secrets s", "select (s).value_encrypted from public.secrets s", "select string_agg(value_encrypted, '\\x00') from public.secrets",
        "select (select value_encrypted) from public.secrets", "table public.secrets", "select distinct value_encrypted from public.secrets",
        "select value_encrypted from public.secrets group by 1", "select lag(value_encrypted) over (), value_encrypted from public.secrets",
        "select value_encrypted from public.secrets for update", "with s as materialized (table public.secrets) select value_encrypted from s",
        "values ((select array_agg(value_encrypted) from public.secrets))", "select value_encrypted from public.projects p join public.secrets s on s.project_id = p.id",
    ), "all"),
    Attack("bits of it", (
        "select id from public.secrets where value_encrypted > '\\x70'", "select id from public.secrets order by value_encrypted",
        "select count(*) from public.secrets where get_bit(value_encrypted, 0) = 1", "select bool_or(length(value_encrypted) = 9) from public.secrets",
        "select rank() over (order by value_encrypted) from public.secrets", "select id from public.secrets s join (values ('\\x00'::bytea)) v (x) on v.x < s.value_encrypted",
        "update public.secrets set key = key || '1' where value_encrypted > '\\x00'", "delete from public.secrets where value_encrypted > '\\x00'",
        "select id from public.secrets group by id, value_encrypted having value_encrypted > '\\x00'",
    ), "all"),
    Attack("expressions of writes", (
        "update public.secrets set key = convert_from(value_encrypted, 'UTF8') where id = '{mine}' returning key",
        "update public.secrets set key = 'n' where id = '{mine}' returning value_encrypted", "update public.secrets set key = 'n' where id = '{mine}' returning *",
        "delete from public.secrets where id = '{mine}' returning value_encrypted",
        "insert into public.secrets (project_id, key, value_encrypted) select project_id, 'copy', value_encrypted from public.secrets where id = '{mine}' returning id",
        "insert into kept (v) select convert_from(value_encrypted, 'UTF8') from public.secrets where id = '{mine}' returning v",
    ), "mine"),
    Attack("returning old", ("update public.secrets set key = 'n' where id = '{mine}' returning old.value_encrypted", "delete from public.secrets where id = '{mine}' returning old.*"), "mine", needs=18),
    Attack("conflicts through the view", (
        "insert into public.secrets (id, project_id, key, value_encrypted) values ('{mine}', '{project}', 'q', '\\x00') on conflict (id) do update set key = encode(secrets.value_encrypted, 'hex') returning key",
        "insert into public.secrets (id, project_id, key, value_encrypted) values ('{mine}', '{project}', 'q', '\\x00') on conflict do nothing returning value_encrypted",
    )),
    Attack("functions, operators, casts, aggregates", (
        "select id from public.secrets where leak(value_encrypted)", "select id from public.secrets where value_encrypted === '\\x00'", "select gathered(value_encrypted) from public.secrets",
        "select convert_from((value_encrypted::boxed).v, 'UTF8') from public.secrets", "select grab()", "select id from mine_too where leak(value_encrypted)",
        "select id from barrier where leak(value_encrypted)", "select id from (select * from public.secrets offset 0) s where leak(value_encrypted)", "select id from public.secrets s where leak_id(id) and leak(value_encrypted)",
    ), "all"),
    Attack("defaults and checks", ("insert into kept (n) values (1) returning v", "insert into checked values (1)", "create domain d as int check (grab() is null); select 1::d", "create table made (n int, v text generated always as (grab_fixed()) stored); insert into made (n) values (1) returning v"), "all"),
    Attack("copies of it", (
        "create table c1 as table public.secrets", "select * into c2 from public.secrets", "create materialized view c3 as table public.secrets",
        "create temp table c4 as select value_encrypted from public.secrets", "create view c5 as table public.secrets; table c5", "select query_to_xml('select value_encrypted from public.secrets', true, false, '')",
    ), "all"),
    Attack("copies of the table", (
        f"create view c6 as table {B}; table c6", f"create materialized view c7 as table {B}", f"create table c8 (like {B} including all); table c8", f"select query_to_xml('table {B}', true, false, '')",
        f"select table_to_xml('{B}', true, false, '')", "select schema_to_xml('meshaudit_protected', true, false, '')", f"create table c9 () inherits ({B}); select * from c9", f"create table c10 partition of {B} default",
        f"select * from ts_stat('select to_tsvector(encode(value_encrypted, ''hex'')) from {B}')",
    )),
    Attack("copy", ("copy (select value_encrypted from public.secrets) to stdout", "copy (table public.secrets) to stdout (format binary)", "copy (delete from public.secrets returning value_encrypted) to stdout"), "all"),
    Attack("copy of the table", (f"copy {B} to stdout", f"copy {B} (value_encrypted) to stdout", f"copy (table {B}) to stdout", "copy public.secrets to stdout", f"copy {B} to program 'cat'")),
    Attack("cursors", (
        "declare c cursor for table public.secrets; fetch all c", "declare c scroll cursor for select value_encrypted from public.secrets order by id; fetch last c; fetch absolute 1 c; fetch all c",
        "declare c binary cursor for select value_encrypted from public.secrets; fetch all c", "declare c cursor with hold for select value_encrypted from public.secrets; fetch all c",
        "declare c cursor for select value_encrypted from public.secrets for update; fetch all c", "do $$ declare c refcursor; r record; begin open c for select convert_from(value_encrypted, 'UTF8') as v from public.secrets; loop fetch c into r; exit when not found; raise notice '%', r.v; end loop; end $$",
    ), "all"),
    Attack("explain", ("explain (analyze, verbose) select id from public.secrets where leak(value_encrypted)", "explain (analyze, verbose, buffers) select value_encrypted from public.secrets"), "all"),
    Attack("plans", ("explain (verbose) select id from public.secrets where value_encrypted > '\\x70'", "explain (verbose, costs) select value_encrypted from public.secrets order by value_encrypted")),
    Attack("statistics", ("select * from pg_stats", "select * from pg_stats_ext", "select * from pg_stats_ext_exprs", "select * from pg_statistic", "select * from pg_statistic_ext_data", "select * from pg_stat_activity", "analyze verbose public.secrets", f"analyze verbose {B}", f"cluster verbose {B} using secrets_pkey")),
    Attack("row security off", ("set local row_security = off; select value_encrypted from public.secrets", f"set local row_security = off; table {B}", "set local row_security = off; select * from public.secrets where id = '{others}'"), "off"),
    Attack("making things on it", (
        f"create trigger t before update on {B} for each row execute function spy()", "create trigger t instead of update on public.secrets for each row execute function spy()",
        f"create rule r as on update to {B} do also select old.value_encrypted", "create rule r as on update to public.secrets do also select 1", f"create policy p on {B} using (leak(value_encrypted))",
        f"alter table {B} add constraint c check (leak(value_encrypted))", f"alter table {B} alter column key set default grab()", f"create index on {B} (gather('', value_encrypted))", f"create statistics s on key, value_encrypted from {B}",
        f"alter table {B} disable row level security", f"alter table {B} disable trigger all", f"alter table {B} set schema public", "drop view public.secrets", "alter view public.secrets reset (security_invoker)",
        "create or replace view public.secrets as select 1", "alter view public.secrets rename to x", f"alter table {B} owner to current_user", f"truncate {B}", "create publication p for all tables",
    )),
    Attack("foreign keys", (
        f"create table f1 (v uuid references {B} (id) on update set null on delete cascade)", f"create table f2 (id uuid references {B})", "create table f3 (id uuid references public.secrets)",
        f"create table f4 (project_id uuid, key text, foreign key (project_id, key) references {B} (project_id, key) on update cascade)",
        "create table f5 (id uuid references public.projects on delete cascade); table f5",
    )),
    Attack("the functions by name", (
        "select c4 from meshaudit_private.values_1", "table meshaudit_private.values_1", "select meshaudit_private.latest_1_4('{others}', '(0,1)', 'x')", "select meshaudit_private.newest_1_4('{others}', '(0,1)', 'x')",
        "select meshaudit_private.reveal_1_4('\\x00', '{others}', '{project}', '1', '(0,1)', 'x')", "select meshaudit_private.look_1(current_user)", "create view mine_1 as table meshaudit_private.values_1", "copy (table meshaudit_private.values_1) to stdout",
        "create trigger t instead of insert on mine_too for each row execute function meshaudit_private.insert_1()", "create trigger t after insert on kept referencing new table as new_rows for each statement execute function meshaudit_private.writes_1()",
        "create function at_once(uuid, name) returns bytea language sql return meshaudit_private.latest_1_4($1, '(0,1)', $2); create operator ### (leftarg = uuid, rightarg = name, function = at_once); select '{others}'::uuid operator({lab}.###) current_user", "select meshaudit_private.record_access('read', 'a', 'b', 'c', 'd', true)", "table meshaudit_private.protections", "table meshaudit_private.reveal_key",
        "create function newest(uuid) returns bytea language sql return meshaudit_private.newest_1_4($1, '(0,1)', current_user); select newest('{others}')", "select pg_get_functiondef(p.oid) from pg_proc p where proname = 'reveal_1_4'", "select pg_get_viewdef('public.secrets'::regclass), pg_get_viewdef((select oid from pg_class where relname = 'values_1'))",
        "alter function meshaudit_private.latest_1_4(uuid, tid, name) security definer", "create aggregate a (tid, name) (sfunc = keep_state, stype = uuid, finalfunc = meshaudit_private.newest_1_4, finalfunc_extra, initcond = '{others}'); select a('(0,1)', current_user)",
        "do $$ begin execute replace(pg_get_viewdef('public.secrets'::regclass), 'b.ctid', quote_literal('(0,3)') || '::tid'); end $$",
    )),
    Attack("more places", (
        "select t.v from public.secrets s, lateral (select s.value_encrypted as v offset 0) t", "select to_jsonb(s), jsonb_agg(to_jsonb(s)) over () from public.secrets s", "select a.id, b.value_encrypted from public.secrets a join public.secrets b using (value_encrypted)",
        "select value_encrypted from public.secrets for share", "select value_encrypted from public.secrets for key share skip locked", "select value_encrypted from public.secrets for no key update nowait",
        "set local enable_nestloop = off; set local enable_mergejoin = off; select a.value_encrypted from public.secrets a join public.secrets b on a.value_encrypted = b.value_encrypted", "select distinct on (value_encrypted) value_encrypted from public.secrets",
        "select percentile_disc(0.5) within group (order by value_encrypted), array_agg(value_encrypted) from public.secrets", "select value_encrypted from public.secrets union select value_encrypted from public.secrets", "select value_encrypted from public.secrets except select '\\x00'::bytea",
        "with recursive r as (select id, value_encrypted from public.secrets union select * from r) table r", "select (array_agg(s))[1].value_encrypted, array_agg(s) from public.secrets s", "select case when true then value_encrypted end from public.secrets",
        "select grouping(value_encrypted), value_encrypted from public.secrets group by rollup (value_encrypted)", "select x from public.secrets, unnest(array[value_encrypted]) x", "select lo_from_bytea(0, value_encrypted), value_encrypted from public.secrets",
        "set local jit = on; set local jit_above_cost = 0; set local jit_inline_above_cost = 0; table public.secrets", "set local min_parallel_table_scan_size = 0; set local parallel_setup_cost = 0; set local parallel_tuple_cost = 0; set local max_parallel_workers_per_gather = 4; table public.secrets",
        "select pg_notify('c', convert_from(value_encrypted, 'UTF8')), value_encrypted from public.secrets", "with w as (insert into kept (v) select convert_from(value_encrypted, 'UTF8') from public.secrets returning v) table w",
        "with d as (delete from public.secrets returning *) table d", "with u as (update public.secrets set key = key || 'x' returning *) table u", "declare c scroll cursor with hold for select value_encrypted from public.secrets; move forward all c; fetch backward all c", "create temp table z on commit drop as table public.secrets; table z",
        "do $$ declare r record; begin for i in 1 .. 70 loop begin for r in select convert_from(value_encrypted, 'UTF8') as v from public.secrets loop raise notice '%', r.v; end loop; perform 1 / 0; exception when division_by_zero then null; end; end loop; end $$",
    ), "all"),
    Attack("errors in every place", (
        "select 1 / (get_byte(value_encrypted, 0) - get_byte(value_encrypted, 0)) from public.secrets where id = '{mine}'", "select convert_from(value_encrypted, 'UTF8')::json from public.secrets where id = '{mine}'", "select convert_from(value_encrypted, 'UTF8')::timestamptz from public.secrets where id = '{mine}'",
        "update public.secrets set project_id = convert_from(value_encrypted, 'UTF8')::uuid where id = '{mine}'", "select set_config(convert_from(value_encrypted, 'UTF8'), '', true) from public.secrets where id = '{mine}'", "select nextval(convert_from(value_encrypted, 'UTF8')) from public.secrets where id = '{mine}'",
        "do $$ begin execute (select convert_from(value_encrypted, 'UTF8') from public.secrets where id = '{mine}'); end $$", "do $$ declare d int; begin d := (select convert_from(value_encrypted, 'UTF8') from public.secrets where id = '{mine}'); end $$",
    ), "mine"),
    Attack("merge", (
        "merge into public.secrets s using (values ('{mine}'::uuid)) v (i) on s.id = v.i when matched and s.value_encrypted > '\\x00' then update set key = encode(s.value_encrypted, 'hex') returning s.key", "merge into public.secrets s using (values ('{mine}'::uuid)) v (i) on s.id = v.i when matched then delete returning old.value_encrypted",
    ), "mine", needs=18),
    Attack("merge by what is not there", (f"merge into {B} b using (values (1)) v on false when not matched by source and b.value_encrypted > '\\x00' then update set key = b.key || 'x'", f"merge into {B} b using (values (1)) v on false when not matched by source then update set key = b.key || 'x' returning b.value_encrypted"), needs=17),
    Attack("guesses that constraints answer", (
        "insert into public.secrets (id, project_id, key, value_encrypted) values ('{others}', '{project}', 'q', '\\x736b5f6c6976655f63')", f"insert into {B} (id, project_id, key, value_encrypted) values ('{{others}}', '{{project}}', 'q', '\\x00') on conflict do nothing",
        "update public.secrets set id = '{others}' where id = '{mine}'",
    ), "some"),
    Attack("locks", ("lock table public.secrets in access share mode nowait", "lock table meshaudit.audit_logs", "lock table meshaudit_private.lane_heads", "lock table meshaudit_private.journal in access exclusive mode", "select pg_advisory_xact_lock(1296389185, n) from generate_series(1, 512) n; table public.secrets"), "some"),
    Attack("time runs out", ("set local statement_timeout = '1ms'; select value_encrypted, pg_sleep(0.01) from public.secrets where id = '{mine}'", "set local statement_timeout = '20ms'; do $$ declare v text; begin select convert_from(value_encrypted, 'UTF8') into v from public.secrets where id = '{mine}'; raise notice '%', v; perform pg_sleep(1); end $$"), "some"),
    Attack("types of its own", (
        "create domain pg_temp.bytea as pg_catalog.bytea check (leak(value)); create domain pg_temp.uuid as pg_catalog.uuid; create domain pg_temp.text as pg_catalog.text check (grab_base() > ''); select value_encrypted from public.secrets",
        "create type pg_temp.name as (a int); create type pg_temp.tid as (a int); create type pg_temp.xid as (a int); table public.secrets",
    ), "all"),
    Attack("shadows", (
        "create temp table secrets (id uuid, value_encrypted bytea); select value_encrypted from public.secrets",
        "create temp table ledger (like kept); create temp table reveal_key (key bytea, singleton bool); select value_encrypted from public.secrets",
        "create function convert_to(text, text) returns bytea language sql as $$ select '\\x00'::bytea $$; set local search_path = {lab}, pg_catalog; select value_encrypted from public.secrets",
        "create function eq(uuid, uuid) returns bool language sql as 'select true'; create operator = (leftarg = uuid, rightarg = uuid, function = eq); set local search_path = {lab}, pg_catalog; select value_encrypted from public.secrets",
        "create function eq2(tid, tid) returns bool language sql as 'select true'; create operator = (leftarg = tid, rightarg = tid, function = eq2); set local search_path = {lab}, pg_catalog; select value_encrypted from public.secrets",
        "create function current_setting(text, bool) returns text language sql as $$ select 'x' $$; set local search_path = {lab}, pg_catalog; table public.secrets",
        "create function sha256(bytea) returns bytea language sql as $$ select '\\x00'::bytea $$; set local search_path = {lab}, pg_catalog; table public.secrets",
    ), "all"),
    Attack("settings", (
        "select set_config('meshaudit.revealed', repeat('0', 64), false); table public.secrets", "set local transaction_read_only = on; table public.secrets", "select set_config(name, 'on', true) from pg_settings where name in ('debug_parallel_query', 'force_parallel_mode'); table public.secrets",
        "set local constraint_exclusion = on; set local enable_seqscan = off; table public.secrets", "set local plan_cache_mode = force_generic_plan; prepare p as select value_encrypted from public.secrets; execute p",
        "set local request.method = 'GET'; set local request.jwt.claims = '{{}}'; table public.secrets", "set local meshaudit.actor = 'somebody'; table public.secrets",
    ), "some"),
    Attack("powers", (
        "set session_replication_role = replica", "set role postgres", "set role meshaudit_owner", "set session authorization meshaudit_owner", "grant meshaudit_owner to current_user", "alter role current_user bypassrls", "select pg_create_logical_replication_slot('x', 'test_decoding')",
        "select pg_read_file('base')", "select meshaudit.unprotect('public.secrets')", "create event trigger e on ddl_command_end execute function spy()", "set log_statement = 'all'", "load 'auto_explain'",
    )),
    Attack("swallowed", (
        "do $$ declare v text; m text; begin begin select convert_from(value_encrypted, 'UTF8'), current_setting('meshaudit.revealed') into v, m from public.secrets where id = '{mine}'; raise exception '%', v; exception when raise_exception then raise notice '%', sqlerrm; end; end $$",
        "do $$ declare v text; m text; begin begin select convert_from(value_encrypted, 'UTF8') into v from public.secrets where id = '{mine}'; m := current_setting('meshaudit.revealed'); raise exception '%', m; exception when raise_exception then m := sqlerrm; end; perform set_config('meshaudit.revealed', m, false); select convert_from(value_encrypted, 'UTF8') into v from public.secrets where id = '{mine}'; raise notice '%', v; end $$",
        "savepoint a; select value_encrypted from public.secrets where id = '{mine}'; rollback to a",
    ), "mine"),
    Attack("another's row", (
        "select value_encrypted from public.secrets where id = '{others}'", "update public.secrets set id = '{others}' where id = '{mine}' returning key", "update public.secrets set key = 'x' where id = '{others}' returning *",
        "delete from public.secrets where id = '{others}' returning *", f"select s.value_encrypted from public.secrets s join {B} b on b.id = s.id where b.ctid = '(0,3)'", "select id from public.secrets where id = '{others}' and leak(value_encrypted)",
        "insert into public.secrets (id, project_id, key, value_encrypted) values ('{others}', '{project}', 'q', '\\x00') returning *", "update public.secrets set value_encrypted = '\\x00' where id = '{others}' returning value_encrypted",
    ), "others"),
)  # fmt: skip
