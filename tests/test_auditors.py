"""Who may read the log: nobody by default; by role, by group, by JWT subject; one scope or all."""

import itertools
import json
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg import sql

from meshaudit import schema
from meshaudit.server import Server
from tests import servers
from tests.flavours import Templates
from tests.support import SETTINGS, Db, Pg

Conn = psycopg.Connection[Any]
SCOPES = ("a", "b", "", "*")


@pytest.fixture
def ledger(db: Db) -> Db:
    """Entries by two clients in four scopes: each scope has five."""
    for name in ("client_one", "client_two"):
        conn = db.connect(db.role(name, "meshaudit_client"))
        for scope in SCOPES:
            conn.execute("select meshaudit.write_secret(%s, 'v', %s)", [f"key of {name}", scope])
            conn.execute("select meshaudit.read_secret_by_key(%s, %s)", [f"key of {name}", scope])
            if name == "client_two":
                conn.execute("select meshaudit.write_secret('key of client_two', 'w', %s)", [scope])
    assert count(db.su) == 20
    return db


def count(conn: Conn, where: str = "true") -> int:
    row = conn.execute(f"select count(*) from meshaudit.audit_logs where {where}".encode()).fetchone()
    assert row is not None
    return int(row[0])


def nothing(conn: Conn) -> bool:
    """Whether it sees no row: by row security, or for want of the privilege."""
    try:
        return count(conn) == 0
    except psycopg.errors.InsufficientPrivilege:
        return True


def seen(conn: Conn) -> set[str]:
    """The scopes of the vault's entries that are seen; of those that are, all entries must be."""
    rows = conn.execute(
        "select scope, count(*) from meshaudit.audit_logs where secret_table = 'meshaudit.secrets' group by 1"
    ).fetchall()
    assert all(n == 5 for _, n in rows), rows
    return {scope for scope, _ in rows}


def grant(db: Db, *args: str) -> None:
    db.su.execute(f"select meshaudit.grant_auditor({', '.join(['%s'] * len(args))})".encode(), args)


def revoke(db: Db, *args: str) -> bool:
    call = f"select meshaudit.revoke_auditor({', '.join(['%s'] * len(args))})"
    return bool(next(db.su.execute(call.encode(), args))[0])


def test_nobody_by_default(ledger: Db) -> None:
    for group in ((), ("meshaudit_client",), ("meshaudit_operator",)):
        conn = ledger.connect(ledger.role("user", *group))
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            count(conn)
    # being in the group alone shows nothing
    conn = ledger.connect(ledger.role("user", "meshaudit_auditor"))
    assert count(conn) == 0
    assert conn.execute("select * from meshaudit.search_audit_logs()").fetchall() == []


def test_by_role_and_scope(ledger: Db) -> None:
    conn = ledger.connect(ledger.role("auditor"))
    me = str(conn.info.user)
    for scopes in (("a",), ("a", "b"), ("",)):
        for scope in scopes:
            grant(ledger, me, scope)
        assert seen(conn) == set(scopes)
        for scope in scopes:
            assert revoke(ledger, me, scope)
            assert not revoke(ledger, me, scope)
        assert nothing(conn)
    grant(ledger, me)
    assert seen(conn) == set(SCOPES)
    grant(ledger, me, "a")
    assert revoke(ledger, me)
    assert seen(conn) == {"a"}
    assert not revoke(ledger, me, "b")


def test_by_group(ledger: Db) -> None:
    group = ledger.role("group", login=False)
    grant(ledger, group, "a")
    member = ledger.connect(ledger.role("member", group))
    assert seen(member) == {"a"}
    distant = ledger.connect(ledger.role("distant", group, inherit=False))
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        count(distant)
    distant.execute(sql.SQL("set role {}").format(sql.Identifier(group)))
    assert seen(distant) == {"a"}
    # a member's own grant is its own, and not the group's
    grant(ledger, str(member.info.user), "b")
    assert seen(member) == {"a", "b"}
    assert seen(distant) == {"a"}


def test_grants_are_entries(ledger: Db) -> None:
    ledger.su.execute("select meshaudit.grant_auditor('some subject', 'a')")
    revoke(ledger, "some subject", "a")
    rows = ledger.su.execute(
        "select secret_id, secret_table, access_type, operation, outcome, scope, user_identity"
        " from meshaudit.audit_logs order by id desc limit 2"
    ).fetchall()
    what = ("some subject", "meshaudit.auditors", "write")
    who = ("granted", "a", ledger.pg.superuser)
    assert rows == [(*what, "delete", *who), (*what, "create", *who)]
    grant(ledger, conn_user := ledger.role("auditor"), "a")
    assert count(ledger.connect(conn_user), "secret_table = 'meshaudit.auditors'") == 3
    for bad in (["", "a"], [None, "a"], ["x", None], ["x" * 257, "a"], ["x", "y" * 513]):
        with pytest.raises(psycopg.Error) as caught:
            ledger.su.execute("select meshaudit.grant_auditor(%s, %s)", bad)
        assert caught.value.sqlstate == "MA005"
    assert ledger.su.execute("select * from meshaudit.verify()").fetchall() == []


def gateway(db: Db) -> Callable[..., Conn]:
    """A gateway's connection, and what acts on it as a user with those claims (until the next does)."""
    users, login = db.role("users", login=False), db.role("gateway", inherit=False)
    db.pg.run(f"grant {users} to {login}")
    db.su.execute("select meshaudit.set_setting('gateway_roles', %s)", [login])
    db.su.execute("select meshaudit.set_setting('api_roles', %s)", [users])
    conn = db.connect(login, autocommit=False)

    def act(claims: Any) -> Conn:
        conn.rollback()
        conn.execute(sql.SQL("set local role {}").format(sql.Identifier(users)))
        conn.execute("select set_config('request.jwt.claims', %s, true)", [json.dumps(claims)])
        return conn

    return act


def test_by_jwt_subject(ledger: Db) -> None:
    act = gateway(ledger)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        count(act({"sub": "alice"}))
    grant(ledger, "alice", "a")
    grant(ledger, "carol")
    assert seen(act({"sub": "alice"})) == {"a"}
    assert seen(act({"sub": "carol"})) == set(SCOPES)
    for claims in (
        {"sub": "bob"},
        {"sub": "Alice"},
        {"role": "x"},
        {},
        {"user_metadata": {"sub": "alice"}},
        "alice",
    ):
        assert count(act(claims)) == 0, claims
    assert revoke(ledger, "alice", "a")
    assert count(act({"sub": "alice"})) == 0
    # no other login is believed, whatever it may query
    other = ledger.connect(ledger.role("other", "meshaudit_auditor"))
    other.execute("select set_config('request.jwt.claims', '{\"sub\": \"carol\"}', false)")
    assert count(other) == 0


def test_a_subject_called_like_a_role(ledger: Db) -> None:
    """A role's grant is no subject's, and the other way round."""
    role = ledger.role("auditor")
    grant(ledger, role)
    act = gateway(ledger)
    grant(ledger, "alice", "a")
    assert count(act({"sub": role})) == 0
    assert count(act({"sub": ledger.pg.superuser})) == 0
    later = ledger.role("later", "meshaudit_auditor")
    ledger.pg.run(f'alter role {later} rename to "alice_{later}"')
    ledger.pg.run(f'alter role "alice_{later}" rename to {later}')
    grant(ledger, f"subject {later}", "a")
    assert count(ledger.connect(later)) == 0


def test_what_tells_about_all_is_for_auditors_of_all(ledger: Db) -> None:
    """Counts of other scopes, and the health of the whole, are no business of an auditor of one."""
    calls = (
        "select * from meshaudit.verify()",
        "select meshaudit.checkpoint()",
        "select * from meshaudit.status()",
    )
    act = gateway(ledger)
    one = ledger.connect(ledger.role("one"))
    grant(ledger, str(one.info.user), "a")
    grant(ledger, "alice", "a")
    for call, who in itertools.product(calls, ("one", "alice", "bob")):
        conn = one if who == "one" else act({"sub": who})
        with pytest.raises(psycopg.Error) as caught:
            conn.execute(call.encode())
        assert caught.value.sqlstate in ("MA001", "42501"), (call, who)
    grant(ledger, str(one.info.user))
    grant(ledger, "alice")
    for call in calls:
        one.execute(call.encode())
        act({"sub": "alice"}).execute(call.encode())
        ledger.connect(ledger.role("operator", "meshaudit_operator")).execute(call.encode())


def test_a_trap_for_an_auditor_of_all(ledger: Db) -> None:
    """What an auditor of one scope plants for one of all sees with its own eyes."""
    planter = ledger.role("planter")
    grant(ledger, planter, "a")
    ledger.su.execute(
        f"create schema trap authorization {planter}; grant usage on schema trap to public".encode()
    )
    ledger.connect(planter).execute(
        "create table trap.loot (what text); grant all on trap.loot to public;"
        "create function trap.rows() returns bigint language sql security definer as"
        " $$ select count(*) from meshaudit.audit_logs where scope <> 'a' $$;"
        "create function trap.entries() returns text language sql security definer as"
        " $$ select meshaudit.checkpoint() ->> 'entries' $$"
    )
    victim = ledger.connect(ledger.role("victim"))
    grant(ledger, str(victim.info.user))
    assert victim.execute("select trap.rows()").fetchone() == (0,)
    with pytest.raises(psycopg.Error) as caught:
        victim.execute("select trap.entries()")
    assert caught.value.sqlstate == "MA001"


LEAKS = {
    "where": "select * from meshaudit.audit_logs where leak(scope || secret_id || user_identity)",
    "operator": "select * from meshaudit.audit_logs where scope <<<< secret_id",
    "select": "select leak(scope) from meshaudit.audit_logs",
    "order": "select id from meshaudit.audit_logs order by leak(scope) limit 1",
    "join": "select 1 from meshaudit.audit_logs l join pg_class c on leak(l.scope) limit 1",
    "having": "select count(*) from meshaudit.audit_logs group by scope having leak(scope)",
    "aggregate": "select count(*) filter (where leak(scope)) from meshaudit.audit_logs",
    "window": "select lag(scope) over (order by id), leak(scope) from meshaudit.audit_logs",
    "lateral": "select x from meshaudit.audit_logs l, lateral (select leak(l.scope) x offset 0) s",
    "search": "select * from meshaudit.search_audit_logs(page_size => 1000) s where leak(s.scope)",
    "error": "select * from meshaudit.audit_logs where (user_identity || scope)::int > 0 and scope = 'b'",
    "division": "select 1 / (case when scope = 'b' then 0 else 1 end) from meshaudit.audit_logs",
    "array": "select (array_agg(scope))::text, leak(array_agg(scope)::text) from meshaudit.audit_logs",
}


@pytest.mark.parametrize("how", LEAKS)
def test_no_query_shows_another_scope(ledger: Db, how: str) -> None:
    """Row security comes before whatever a caller brings along, however cheap it says that is."""
    auditor = ledger.connect(ledger.role("auditor"))
    grant(ledger, str(auditor.info.user), "a")
    ledger.su.execute(f"create schema leaky authorization {auditor.info.user}".encode())
    notes: list[str] = []
    auditor.add_notice_handler(lambda n: notes.append(str(n.message_primary)))
    auditor.execute(
        "set search_path = leaky;"
        "create function leak(text) returns bool language plpgsql cost 0.0000001 as"
        " $$ begin raise notice 'saw %', $1; return true; end $$;"
        "create function leak2(text, text) returns bool language plpgsql cost 0.0000001 as"
        " $$ begin raise notice 'saw %', $1 || $2; return true; end $$;"
        "create operator <<<< (function = leak2, leftarg = text, rightarg = text)"
    )
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        auditor.execute("alter function leak(text) leakproof")
    for planner in (
        "",
        "set enable_seqscan = off",
        "set enable_indexscan = off; set enable_bitmapscan = off",
    ):
        auditor.execute(planner.encode())
        try:
            text = str(auditor.execute(LEAKS[how].encode()).fetchall())
        except psycopg.Error as exc:
            text = str(exc)
            assert how == "error"
        assert "'b'" not in text
        assert "'*'" not in text
        assert "division by zero" not in text
    assert all(note.startswith(("saw a", "saw {a")) for note in notes), notes
    assert notes or how in ("error", "division")


def test_row_security_off_is_an_error(ledger: Db) -> None:
    auditor = ledger.connect(ledger.role("auditor"))
    grant(ledger, str(auditor.info.user), "a")
    auditor.execute("set row_security = off")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        count(auditor)


def test_statistics_are_not_shown(ledger: Db) -> None:
    """ANALYZE keeps samples of every scope's rows; pg_stats hides those of tables with row security."""
    ledger.su.execute("analyze meshaudit_private.ledger")
    auditor = ledger.connect(ledger.role("auditor"))
    grant(ledger, str(auditor.info.user), "a")
    assert ledger.su.execute("select count(*) > 0 from pg_stats where tablename ~ '^ledger'").fetchone() == (
        True,
    )
    assert auditor.execute("select count(*) from pg_stats where tablename ~ '^ledger'").fetchone() == (0,)


def bypassing(db: Db) -> tuple[bool, str]:
    query = """select ok, detail from meshaudit.status() where "check" = 'auditors'"""
    ((fine, detail),) = db.su.execute(query.encode()).fetchall()
    return fine, detail


def test_who_bypasses_row_security_is_granted_all_or_nothing(any_db: Db) -> None:
    role = any_db.role("bypassing", bypassrls=True)
    for identity in (role, any_db.pg.superuser):
        with pytest.raises(psycopg.Error) as caught:
            grant(any_db, identity, "a")
        assert caught.value.sqlstate == "MA005"
        assert "'*'" in (caught.value.diag.message_hint or "")
    conn = any_db.connect(role)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        count(conn)
    assert any_db.su.execute("select from meshaudit.audit_logs").rowcount == 0
    assert bypassing(any_db) == (True, "nobody sees more than was granted")
    grant(any_db, role)
    assert count(conn) == 1
    assert bypassing(any_db)[0]


def test_no_api_role_bypasses_row_security(ledger: Db) -> None:
    """A JWT's grant makes the API's roles members: whoever came as that one would see all."""
    role = ledger.role("service", bypassrls=True)
    ledger.su.execute("select meshaudit.set_setting('api_roles', %s)", [role])
    for scope in ("a", "*"):
        with pytest.raises(psycopg.Error) as caught:
            grant(ledger, "alice", scope)
        assert caught.value.sqlstate == "MA005"
        assert "api_roles" in (caught.value.diag.message_hint or "")
    grant(ledger, role)
    grant(ledger, "alice", "a")


def test_status_tells_who_sees_more_than_was_granted(ledger: Db) -> None:
    group = ledger.role("group", login=False)
    grant(ledger, group, "a")
    inside = ledger.role("inside", group, bypassrls=True)
    directly = ledger.role("directly", "meshaudit_auditor", bypassrls=True)
    ledger.role("harmless", group)
    ledger.role("outside", bypassrls=True)
    fine, detail = bypassing(ledger)
    assert not fine
    assert f": {directly}, {inside};" in detail
    grant(ledger, group)
    grant(ledger, directly)
    assert bypassing(ledger)[0]
    # later changes of a role are its owner's doing, and told
    later = ledger.role("later")
    grant(ledger, later, "a")
    assert bypassing(ledger)[0]
    ledger.pg.run(f"alter role {later} bypassrls")
    assert later in bypassing(ledger)[1]


def test_who_may_grant_is_not_told_as_an_auditor(any_db: Db) -> None:
    assert bypassing(any_db)[0]


def members(db: Db, role: str) -> bool:
    query = "select pg_has_role(%s, 'meshaudit_auditor', 'member')"
    ((found,),) = db.su.execute(query, [role]).fetchall()
    return bool(found)


@pytest.fixture
def alone(ledger: Db) -> Db:
    """As if no other database of the server, of which there are some, had meshaudit."""
    ledger.su.execute(
        "create or replace function meshaudit_private.is_the_only_one() returns boolean"
        " language sql stable set search_path = '' as 'select true'"
    )
    return ledger


def test_the_last_grant_ends_the_membership(alone: Db) -> None:
    role = alone.role("auditor")
    grant(alone, role, "a")
    grant(alone, role, "b")
    assert revoke(alone, role, "a")
    assert members(alone, role)
    assert revoke(alone, role, "b")
    assert not members(alone, role)
    # what somebody else has granted stays
    other = alone.role("other", "meshaudit_auditor")
    grant(alone, other, "a")
    assert revoke(alone, other, "a")
    assert members(alone, other)


def test_the_last_subject_ends_the_memberships_of_the_api(alone: Db) -> None:
    users, staff = alone.role("users", login=False), alone.role("staff", login=False)
    alone.su.execute("select meshaudit.set_setting('api_roles', %s)", [f"{users},{staff}"])
    grant(alone, "alice", "a")
    grant(alone, "bob", "b")
    grant(alone, staff, "c")
    assert revoke(alone, "alice", "a")
    assert members(alone, users)
    assert revoke(alone, "bob", "b")
    assert not members(alone, users)
    assert members(alone, staff)
    grant(alone, "bob", "b")
    assert revoke(alone, staff, "c")
    assert members(alone, staff)
    assert revoke(alone, "bob", "b")
    assert not members(alone, staff)


def test_an_identity_that_became_a_role(ledger: Db) -> None:
    """Granted as a subject, then as a role of that name: both are revoked."""
    role = ledger.role("auditor")
    ledger.pg.run(f"alter role {role} rename to {role}_hidden")
    ledger.su.execute("select meshaudit.set_setting('api_roles', %s)", [f"{role}_hidden"])
    grant(ledger, role, "a")
    ledger.pg.run(f"alter role {role}_hidden rename to {role}")
    grant(ledger, role, "a")
    assert revoke(ledger, role, "a")
    assert not revoke(ledger, role, "a")


def test_whether_another_database_has_it(pg: Pg) -> None:
    """On a server of its own, since the tests' has many."""
    if pg.server is None:
        pytest.skip("the server is not ours")
    with Server.temporary(bindir=pg.server.bindir, settings=SETTINGS, parent=servers.memory()) as server:
        own = Pg(server.dsn(), server)
        own.admin.execute("create role auditor login")
        with psycopg.connect(own.dsn("postgres"), autocommit=True) as first:
            schema.install(first)
            first.execute("select meshaudit.grant_auditor('auditor', 'a')")
            own.create_database("second")
            with psycopg.connect(own.dsn("second"), autocommit=True) as second:
                schema.install(second)
            asked = "select pg_has_role('auditor', 'meshaudit_auditor', 'member')"
            for expected in (True, False):
                first.execute("select meshaudit.revoke_auditor('auditor', 'a')")
                assert first.execute(asked).fetchone() == (expected,)
                own.drop_database("second")
                first.execute("select meshaudit.grant_auditor('auditor', 'a')")
        own.close()


def test_revoking_in_one_database_leaves_another_alone(template: Templates) -> None:
    """Roles belong to the server, grants to a database."""
    first, second = template.clone("superuser"), template.clone("superuser")
    try:
        role = first.role("auditor")
        for db in (first, second):
            db.su.execute("select meshaudit.write_secret('k', 'v', 'a')")
            grant(db, role, "a")
        assert revoke(second, role, "a")
        assert count(first.connect(role), "secret_table = 'meshaudit.secrets'") == 1
        assert nothing(second.connect(role))
    finally:
        second.drop()
        first.drop()
