"""What users with direct SQL, auditors and operators have tried against keys, names, the sealer and the alerts."""

import json
import random
import re
import threading
from hashlib import sha256
from typing import Any

import psycopg
import pytest

from tests.journal_support import one, seal
from tests.support import Db, wait_until

Conn = psycopg.Connection[Any]
READ = "select meshaudit.read_secret(%s)"


def planned(conn: Conn) -> list[str]:
    """All that the server shows of plans to this session, as it comes: anybody may ask for that."""
    heard: list[str] = []
    conn.add_notice_handler(lambda d: heard.append(str(d.message_detail)))
    conn.execute("set client_min_messages = log")
    conn.execute("set debug_pretty_print = off")
    conn.execute("set debug_print_plan = on")
    return heard


def constants(heard: list[str]) -> bytes:
    """The bytes of all constants in plans."""
    lists = re.findall(r"\[((?:\s+-?\d+)+)\s+\]", "\n".join(heard))
    return b"\n".join(bytes(int(byte) % 256 for byte in numbers.split()) for numbers in lists)


def wild(length: int, seed: int) -> str:
    """Text of four bytes a character that nothing compresses."""
    chance = random.Random(seed)
    return "".join(chr(chance.randrange(0x10000, 0x10FFFF)) for _ in range(length))


class Gateway:
    """A gateway's connections, in somebody's name, and a secret."""

    def __init__(self, db: Db) -> None:
        self.db, self.role = db, db.role("gateway", "meshaudit_client")
        db.su.execute("select meshaudit.set_setting('gateway_roles', %s)", [self.role])
        self.secret = one(db.su, "select meshaudit.write_secret('k', 'v', 'red')")

    def connect(self, subject: str, **settings: str) -> Conn:
        conn = self.db.connect(self.role)
        conn.execute("select set_config('request.jwt.claims', %s, false)", [json.dumps({"sub": subject})])
        for name, value in settings.items():
            conn.execute("select set_config(%s, %s, false)", [name, value])
        return conn


@pytest.mark.parametrize("vault", ["ledger", "journal"])
def test_no_plan_shows_a_key(db: Db, vault: str) -> None:
    """What is a parameter of a statement is a constant in its plan."""
    operator = db.connect(db.role("operator", "meshaudit_operator", replication=True))
    shown = planned(operator)
    operator.execute("select meshaudit.arm_journal()")
    db.su.execute("select meshaudit.set_setting('vault_mode', %s)", [vault])
    user = db.role("user", "meshaudit_client")
    for table, mode in (("a", "ledger"), ("b", "journal")):
        db.su.execute(f"create table public.{table} (id int primary key, v text)".encode())
        db.su.execute(f"grant select, insert on public.{table} to {user}".encode())
        db.su.execute(
            "select meshaudit.protect(%s::text::regclass, '{v}', null, %s)", [f"public.{table}", mode]
        )
    client = db.connect(user)
    heard = planned(client)
    client.execute("set plan_cache_mode = force_custom_plan")
    secrets = [one(client, "select meshaudit.write_secret(%s, 'v')", f"k{i}") for i in range(3)]
    for mode in ("read write", "read only"):
        client.execute(f"begin {mode}".encode())
        client.execute(READ, [secrets[0]])
        client.execute("select meshaudit.read_secret_by_key('k1')")
        client.execute("select * from meshaudit.read_secrets(%s)", [secrets])
        if mode == "read write":
            for table in ("a", "b"):
                for first, last in ((1, 3), (4, 4)):
                    client.execute(
                        f"insert into public.{table} select i, 'v' from generate_series({first}, {last}) i".encode()
                    )
        client.execute("select v from public.a")
        client.execute("select v from public.b")
        client.execute("commit")
    with pytest.raises(psycopg.Error, match="no such secret"):
        client.execute("select meshaudit.read_secret_by_key('none')")
    operator.execute("select meshaudit.seal()")
    keys = db.su.execute(
        "select j.inner_key, j.outer_key, r.key, s.reading_key"
        " from meshaudit_private.journal j, meshaudit_private.reveal_key r, meshaudit_private.settings s"
    ).fetchall()[0]
    assert str(secrets[0]).encode() in constants(heard)
    assert not [key for key in keys if bytes(key) in constants(heard)]
    assert not [key for key in keys if bytes(key) in constants(shown)]


def test_no_plan_shows_the_token_of_a_search(db: Db) -> None:
    """With it, an auditor could query the view, and leave no entry."""
    auditor = db.role("auditor")
    db.su.execute("select meshaudit.grant_auditor(%s)", [auditor])
    conn = db.connect(auditor)
    heard = planned(conn)
    conn.execute("select * from meshaudit.search_audit_logs()")
    conn.execute("select * from meshaudit.audit_log(1)")
    shown = constants(heard)
    assert heard
    assert not re.search(rb"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}[0-9a-f]{64}", shown)


def test_no_plan_shows_what_somebody_is_called(db: Db) -> None:
    """An auditor of one scope, who asks for an identity that has entries in another alone."""
    gateway = Gateway(db)
    db.su.execute("select meshaudit.set_setting('erasable_identities', 'on')")
    gateway.connect("alice").execute(READ, [gateway.secret])
    name = one(db.su, "select pseudonym from meshaudit_private.identities where identity = 'alice'")
    auditor = db.role("auditor")
    db.su.execute("select meshaudit.grant_auditor(%s, 'blue')", [auditor])
    conn = db.connect(auditor)
    heard = planned(conn)
    assert (
        conn.execute("select * from meshaudit.search_audit_logs(user_identity => 'alice')").fetchall() == []
    )
    conn.execute("select meshaudit.note_reading('export', user_identity => 'alice')")
    assert heard
    assert name.encode() not in constants(heard)


def test_no_name_is_too_long_for_the_sealer(db: Db) -> None:
    """Nor for who reads a row that somebody else has put there."""
    with db.connect() as conn:
        conn.execute("select meshaudit.arm_journal()")
    gateway = Gateway(db)
    user = gateway.connect(wild(256, 1))
    key, scope = wild(512, 2), wild(255, 3)
    with pytest.raises(psycopg.Error, match="no such secret"):
        user.execute("select meshaudit.read_secret_by_key(%s, %s)", [key, scope])
    db.su.execute("create table public.t (id text primary key, scope text, v text)")
    db.su.execute(f"grant select, insert on public.t to {gateway.role}".encode())
    db.su.execute("select meshaudit.protect('public.t', '{v}', 'scope')")
    row = wild(512, 4)
    user.execute("insert into public.t values (%s, %s, 'x')", [row, scope])
    assert user.execute("select v from public.t").fetchall() == [("x",)]
    user.execute("begin read only")
    assert user.execute("select v from public.t").fetchall() == [("x",)]
    user.execute("commit")
    with db.connect() as conn:
        assert seal(conn) == 2
    told = db.su.execute(
        "select operation, outcome, secret_id from meshaudit.audit_logs where scope = %s order by id", [scope]
    ).fetchall()
    names = [f"{name[:100]} sha256:{sha256(name.encode()).hexdigest()}" for name in (key, row)]
    assert sorted(told) == [
        ("create", "granted", names[1]),
        ("read", "denied", names[0]),
        ("read", "granted", names[1]),
        ("read", "granted", names[1]),
    ]


def test_a_row_that_has_gone_to_somebody_else(db: Db) -> None:
    """A query that had to look again shows the version that row security has let pass, or none."""
    db.su.execute("create table public.t (id int primary key, owner text, version int, v text)")
    db.su.execute("alter table public.t enable row level security")
    alice, bob = db.role("alice"), db.role("bob")
    db.su.execute(f"create policy mine on public.t to {alice}, {bob} using (owner = current_user)".encode())
    db.su.execute(f"grant select, update on public.t to {alice}, {bob}".encode())
    db.su.execute("insert into public.t values (1, %s, 1, 'first')", [alice])
    db.su.execute("select meshaudit.protect('public.t', '{v}', 'owner')")
    db.su.execute("select pg_advisory_lock(2)")  # where a look at the second version waits
    writer = db.connect(autocommit=False)
    writer.execute("update meshaudit_protected.t set id = 2")
    writer.execute("update meshaudit_protected.t set id = 1, version = 2, v = 'second'")
    reader = db.connect(alice)
    got: list[Any] = []

    def read() -> None:
        try:
            query = "select case when pg_advisory_lock(version) is not null then v end from public.t for key share"
            got.extend(reader.execute(query.encode()).fetchall())
        except psycopg.Error as e:
            got.append(e)

    thread = threading.Thread(target=read)
    thread.start()
    wait_until(db.waiting, what="the reader at the row")
    writer.commit()
    advisory = "select from pg_locks where locktype = 'advisory' and not granted and objid = 2"
    wait_until(lambda: db.su.execute(advisory).rowcount, what="the reader with the row")
    db.su.execute("update meshaudit_protected.t set owner = %s, v = 'of bob'", [bob])
    db.su.execute("select pg_advisory_unlock(2)")
    thread.join()
    assert [getattr(e, "sqlstate", e) for e in got] == ["40001"]


def test_no_two_subjects_are_one(db: Db) -> None:
    """Nor does one pass for a pseudonym."""
    gateway = Gateway(db)
    long = "x" * 300
    told = f"{long[:180]} sha256:{sha256(long.encode()).hexdigest()}"
    name = "erasable:" + "0" * 40
    for subject in (long, told, name):
        gateway.connect(subject).execute(READ, [gateway.secret])
    rows = db.su.execute(
        "select user_identity from meshaudit.audit_logs where identity_source = 'jwt' order by id"
    )
    names = [identity for (identity,) in rows.fetchall()]
    assert len(set(names)) == 3
    assert names[0] == told
    assert name not in names


def test_no_plan_shows_the_hold_of_another_scope(db: Db) -> None:
    hold = one(db.su, "select meshaudit.place_hold('a reason', user_identity => 'bob', scope => 'blue')")
    auditor = db.role("auditor")
    db.su.execute("select meshaudit.grant_auditor(%s, 'red')", [auditor])
    conn = db.connect(auditor)
    heard = planned(conn)
    with pytest.raises(psycopg.Error, match="an auditor of the scope"):
        conn.execute("select meshaudit.lift_hold(%s, 'mine')", [hold])
    assert heard
    assert not [word for word in (b"blue", b"bob") if word in constants(heard)]


def test_a_seal_that_is_undone_loses_nothing(db: Db) -> None:
    """However often an operator calls it before that."""
    operator = db.connect(db.role("operator", "meshaudit_operator", replication=True))
    operator.execute("select meshaudit.arm_journal()")
    gateway = Gateway(db)
    user = gateway.connect("alice")
    user.execute("begin")
    user.execute(READ, [gateway.secret])
    user.execute("rollback")
    operator.execute("begin")
    assert wait_until(lambda: one(operator, "select meshaudit.seal()")) == 1
    for savepoint in ("a", "b"):
        operator.execute(f"savepoint {savepoint}".encode())
        operator.execute("select meshaudit.seal()")
    operator.execute("rollback")
    assert seal(operator) == 1
    rows = db.su.execute("select outcome from meshaudit.audit_logs where user_identity = 'alice'").fetchall()
    assert rows == [("rolled_back",)]


def test_erasing_waits_for_no_auditor(db: Db) -> None:
    auditor = db.role("auditor")
    db.su.execute("select meshaudit.grant_auditor(%s, 'red')", [auditor])
    conn = db.connect(auditor, autocommit=False)
    conn.execute("select meshaudit.place_hold('a reason', user_identity => 'bob', scope => 'red')")
    db.su.execute("set statement_timeout = '5s'")
    with pytest.raises(psycopg.errors.LockNotAvailable, match="a hold is being changed"):
        db.su.execute("select meshaudit.erase_identity('alice', 'request 5')")


def test_pseudonyms_hide_nobody_from_the_alerts(db: Db) -> None:
    """SERIALIZABLE transactions make one an entry."""
    gateway = Gateway(db)
    db.su.execute("select meshaudit.set_setting('erasable_identities', 'on')")
    db.su.execute("select meshaudit.set_alert_rule('reads', threshold => 20)")
    user = gateway.connect("alice", default_transaction_isolation="serializable")
    for _ in range(30):
        user.execute(READ, [gateway.secret])
    db.su.execute("select meshaudit.feed()")
    first = one(db.su, "select pseudonym from meshaudit_private.identities order by made_at limit 1")
    alerts = db.su.execute("select rule, user_identity, message from meshaudit.alerts").fetchall()
    assert alerts == [("reads", first, "30 reads within 00:05:00")]


def test_denials_are_told_of_who_was_denied(db: Db) -> None:
    """A subject named like a login neither uses up that login's denials nor leaves its own in its name."""
    with db.connect() as conn:
        conn.execute("select meshaudit.arm_journal()")
    victim = db.role("victim", "meshaudit_client")
    gateway = Gateway(db)
    users = [gateway.connect(victim)] * 70 + [db.connect(victim)]
    for conn in users:
        with pytest.raises(psycopg.Error, match="no such secret"):
            conn.execute("select meshaudit.read_secret(gen_random_uuid())")
    with db.connect() as conn:
        seal(conn)
        db.su.execute("update meshaudit_private.journal_denials set minute = minute - interval '10 minutes'")
        seal(conn)
    rows = db.su.execute(
        "select identity_source, secret_table, count(*) from meshaudit.audit_logs"
        " where outcome = 'denied' and user_identity = %s group by 1, 2 order by 1, 2",
        [victim],
    ).fetchall()
    assert ("database", "meshaudit.secrets", 1) in rows
    assert {source for source, table, _ in rows if table == "meshaudit.denials"} <= {"jwt"}


def test_a_failed_verification_is_told_however_many_follow(db: Db) -> None:
    db.su.execute("select meshaudit.record_verification(3, first_problem => 'lane 1')")
    operator = db.connect(db.role("operator", "meshaudit_operator"))
    operator.execute("select count(meshaudit.record_verification(0)) from generate_series(1, 1005)")
    db.su.execute("select meshaudit.feed()")
    assert one(db.su, "select count(*) from meshaudit.alerts where rule = 'verification'") == 1
