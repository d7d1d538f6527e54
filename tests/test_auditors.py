"""Who may read the log: nobody by default; by role, by group, by JWT subject; one scope or all."""

import itertools
import json
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg import sql

from tests.support import Db

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
