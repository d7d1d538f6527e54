"""Erasable identities: pseudonyms in the log, and what joins them with people can be destroyed."""

import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests.cli_support import fails, ok, ok_json
from tests.support import Db

READ = "select meshaudit.read_secret_by_key('k', 'red')"


class Gateway:
    """A gateway's connections, in somebody's name."""

    def __init__(self, db: Db) -> None:
        self.db, self.role = db, db.role("gateway", "meshaudit_client")
        db.su.execute("select meshaudit.set_setting('gateway_roles', %s)", [self.role])
        db.su.execute("select meshaudit.write_secret('k', 'v', 'red')")

    def connect(self, subject: str, **kw: Any) -> psycopg.Connection[Any]:
        conn = self.db.connect(self.role, **kw)
        conn.execute("select set_config('request.jwt.claims', %s, false)", [json.dumps({"sub": subject})])
        if not conn.autocommit:
            conn.commit()
        return conn

    def on(self) -> None:
        self.db.su.execute("select meshaudit.set_setting('erasable_identities', 'on')")

    def log(self) -> list[Any]:
        rows = self.db.su.execute(
            "select user_identity, outcome from meshaudit.audit_logs"
            " where identity_source = 'jwt' and secret_table = 'meshaudit.secrets' order by id"
        )
        return rows.fetchall()

    def identity_of(self, name: str) -> Any:
        return one(self.db.su, "select meshaudit.identity_of(%s)", name)

    def found(self, identity: str) -> int:
        return int(
            one(
                self.db.su,
                "select count(*) from meshaudit.search_audit_logs(user_identity => %s, page_size => 1000)",
                identity,
            )
        )


@pytest.fixture
def gateway(db: Db) -> Gateway:
    return Gateway(db)


def one(conn: psycopg.Connection[Any], query: str, *params: Any) -> Any:
    row = conn.execute(query.encode(), params).fetchone()
    assert row is not None
    return row[0]


def everywhere(db: Db, text: str) -> list[str]:
    """The tables of ours that have that text in a row."""
    names = db.su.execute(
        "select oid::regclass::text from pg_class where relkind = 'r'"
        " and relnamespace = any ('{meshaudit,meshaudit_private}'::regnamespace[])"
    ).fetchall()
    return [
        name
        for (name,) in names
        if one(db.su, f"select exists (select from {name} t where strpos(t::text, %s) > 0)", text)
    ]


def test_off_and_on_and_erased(gateway: Gateway) -> None:
    alice = gateway.connect("alice@example.org")
    alice.execute(READ)
    assert gateway.log() == [("alice@example.org", "granted")]
    gateway.on()
    alice.execute("set meshaudit.actor = 'zoe@example.org'")
    alice.execute(READ)
    gateway.connect("bob").execute(
        "select * from meshaudit.read_secrets(array(select id from unnest('{}'::uuid[]) id))"
    )
    gateway.connect("bob").execute(READ)
    plain, hidden, bob = [name for name, _ in gateway.log()]
    assert plain == "alice@example.org"
    assert hidden.startswith("erasable:")
    assert len(hidden) == 49
    assert gateway.identity_of(hidden) == "alice@example.org"
    assert gateway.identity_of(bob) == "bob"
    assert gateway.identity_of("erasable:0") is None
    claimed = one(
        gateway.db.su, "select claimed_identity from meshaudit.audit_logs where user_identity = %s", hidden
    )
    assert gateway.identity_of(claimed) == "zoe@example.org"
    assert gateway.found("alice@example.org") == 2
    assert gateway.found("bob") == gateway.found(bob) == 1
    assert gateway.found("nobody") == 0
    assert gateway.db.su.execute("select * from meshaudit.verify()").fetchall() == []

    erase = "select meshaudit.erase_identity(%s, %s)"
    for reason in ("", None, "of bob"):
        with pytest.raises(psycopg.Error) as caught:
            gateway.db.su.execute(erase, ["bob", reason])
        assert caught.value.sqlstate == "MA005"
    assert one(gateway.db.su, erase, "bob", "request 7") == 1
    assert one(gateway.db.su, erase, "bob", "request 7") == 0
    assert gateway.identity_of(bob) is None
    assert gateway.found("bob") == 0
    assert gateway.found(bob) == 1
    assert everywhere(gateway.db, "bob") == []
    assert everywhere(gateway.db, "zoe@") == ["meshaudit_private.identities"]
    erased = (
        "select operation, secret_id from meshaudit.audit_logs where secret_table = 'meshaudit.identities'"
    )
    assert gateway.db.su.execute(erased).fetchall() == [("delete", f"{bob}: request 7")]
    assert gateway.db.su.execute("select * from meshaudit.verify()").fetchall() == []
    # who owns the database cannot make him somebody else
    gateway.db.su.execute(
        "insert into meshaudit_private.identities (pseudonym, identity, salt) values (%s, 'mallory', '')",
        [bob],
    )
    assert gateway.identity_of(bob) is None


def test_from_the_command_line(gateway: Gateway) -> None:
    gateway.on()
    gateway.connect("bob").execute(READ)
    hidden = gateway.log()[-1][0]
    assert hidden.startswith("erasable:")
    dsn = gateway.db.dsn()
    assert ok("identity", "of", hidden, dsn=dsn) == "bob\n"
    assert ok_json("identity", "of", hidden, dsn=dsn) == {"pseudonym": hidden, "identity": "bob"}
    asked = "select count(*) from meshaudit.audit_logs where secret_id = %s"
    assert one(gateway.db.su, asked, f"identity of {hidden}") == 2
    assert "names the identity" in fails("identity", "erase", "bob", "--reason", "bob asks", dsn=dsn)
    assert "legal hold" in _held(gateway, dsn)
    assert ok("identity", "erase", "bob", "--reason", "request 7", dsn=dsn) == "erased: 1 pseudonym\n"
    assert "nothing to erase" in ok("identity", "erase", "bob", "--reason", "request 7", dsn=dsn)
    assert ok_json("identity", "erase", "bob", "--reason", "r", dsn=dsn) == {"pseudonyms_erased": 0}
    assert "nobody is known" in fails("identity", "of", hidden, dsn=dsn)
    outsider = gateway.db.dsn(gateway.db.role("outsider"))
    fails("identity", "of", hidden, dsn=outsider)
    fails("identity", "erase", "bob", "--reason", "r", dsn=outsider)


def _held(gateway: Gateway, dsn: str) -> str:
    hold = one(gateway.db.su, "select meshaudit.place_hold('case')")
    said = fails("identity", "erase", "bob", "--reason", "request 7", dsn=dsn)
    gateway.db.su.execute("select meshaudit.lift_hold(%s, 'over')", [hold])
    return said


def test_what_rights_rest_on_stays_plain(gateway: Gateway) -> None:
    db = gateway.db
    db.su.execute("select meshaudit.set_setting('api_roles', %s)", [gateway.role])
    db.su.execute("select meshaudit.grant_auditor('alice', 'red')")
    gateway.on()
    alice, eve = gateway.connect("alice"), gateway.connect("eve")
    alice.execute(READ)
    assert one(alice, "select count(*) from meshaudit.audit_logs where scope = 'red'") == 3
    assert one(eve, "select count(*) from meshaudit.audit_logs") == 0
    name = gateway.log()[-1][0]
    assert one(alice, "select meshaudit.identity_of(%s)", name) == "alice"
    assert one(eve, "select meshaudit.identity_of(%s)", name) is None
    hold = one(db.su, "select meshaudit.place_hold('case', user_identity => 'alice')")
    leaf = one(db.su, "select tableoid::regclass::text from meshaudit_private.ledger limit 1")
    held = "select meshaudit_private.held_by(%s::regclass, '-infinity', 'infinity')"
    assert one(db.su, held, leaf) == hold
    with pytest.raises(psycopg.Error, match=f"legal hold {hold}"):
        db.su.execute("select meshaudit.erase_identity('alice', 'request 8')")
    assert one(db.su, "select meshaudit.erase_identity('eve', 'request 9')") == 1


def test_nobody_waits_nor_fails(gateway: Gateway) -> None:
    """An identity's first accesses, all at once, in every isolation level."""
    gateway.on()
    for level in ("read committed", "repeatable read", "serializable"):
        conns = [gateway.connect("new " + level, autocommit=False) for _ in range(4)]
        for conn in conns:
            conn.execute("set transaction isolation level " + level)
            conn.execute("set local lock_timeout = '100ms'")
            conn.execute(READ)
        for conn in conns:
            conn.execute(READ)
        for conn in conns:
            conn.commit()
    assert gateway.found("new serializable") == 8
    names = {name for name, _ in gateway.log()}
    assert {gateway.identity_of(name) for name in names} == {
        "new read committed", "new repeatable read", "new serializable"
    }  # fmt: skip


@pytest.fixture
def armed(gateway: Gateway) -> Iterator[Gateway]:
    gateway.db.su.execute("select meshaudit.arm_journal()")
    yield gateway
    gateway.db.su.execute("select meshaudit.disarm_journal()")


def test_a_rollback_hides_nobody(armed: Gateway) -> None:
    """The pseudonym's row goes with the transaction; the journal knows who it was."""
    su = armed.db.su
    ids = [one(su, f"select meshaudit.write_secret('k{n}', 'v')") for n in range(3)]
    armed.on()
    conn = armed.connect("quentin", autocommit=False)
    conn.execute(READ)
    conn.execute("select * from meshaudit.read_secrets(%s)", [ids])
    conn.rollback()
    conn.execute("set transaction read only")
    conn.execute("set local meshaudit.actor = 'quentin himself'")
    conn.execute(READ)
    conn.commit()
    conn.autocommit = True
    with pytest.raises(psycopg.Error, match="no such secret"):
        conn.execute("select meshaudit.read_secret_by_key('none')")
    # before 17 what was denied is on disk once something is committed
    su.execute("select meshaudit.write_secret('k3', 'v')")
    su.execute("select meshaudit.seal()")
    log = armed.log()
    assert sorted(outcome for _, outcome in log) == ["denied", "granted", *["rolled_back"] * 4]
    assert {armed.identity_of(name) for name, _ in log} == {"quentin"}
    assert armed.found("quentin") >= 6
    assert su.execute("select * from meshaudit.verify()").fetchall() == []
    su.execute(
        "select meshaudit.erase_identity('quentin', 'request 10'), meshaudit.erase_identity('quentin himself', 'request 10')"
    )
    assert everywhere(armed.db, "quentin") == []


def test_a_search_for_nobody_names_nobody(gateway: Gateway) -> None:
    gateway.on()
    su = gateway.db.su
    su.execute("select meshaudit.search_audit_logs(secret_id => 'x')")
    su.execute("select meshaudit.search_audit_logs(user_identity => 'zoe')")
    su.execute("select meshaudit.note_reading('export', 'csv')")
    su.execute("select * from meshaudit.audit_log(1)")
    rows = su.execute(
        "select secret_id from meshaudit.audit_logs where secret_table = 'meshaudit.audit_logs' order by id"
    )
    assert [what for (what,) in rows] == [
        "search (secret_id x): 0 entries",
        "search (user_identity (without a pseudonym)): 0 entries",
        "export (csv): begun",
        "entry (1): 1 entries",
    ]
