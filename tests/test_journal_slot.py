"""Arming, disarming, modes, refusals; a lost slot is told and never passed over."""

from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from meshaudit import schema
from meshaudit.server import Server
from tests.flavours import Templates
from tests.journal_support import READ, READ_MANY, Journal, one, seal, stranger
from tests.servers import DEBIAN_15
from tests.support import SETTINGS, Db, wait_until

ARM = "select meshaudit.arm_journal()"
DISARM = "select meshaudit.disarm_journal()"
SEAL = "select meshaudit.seal()"
SET = "select meshaudit.set_setting(%s, %s)"
SLOT = "select slot_name from meshaudit_private.journal"


@pytest.fixture
def journal(db: Db) -> Journal:
    return Journal(db)


def refused(conn: psycopg.Connection[Any], query: str, *params: Any) -> str:
    """The hint with which it is refused as MA002."""
    with pytest.raises(psycopg.Error) as caught:
        conn.execute(query.encode(), params or None)
    assert caught.value.sqlstate == "MA002", caught.value
    assert caught.value.diag.message_hint
    return str(caught.value.diag.message_hint)


def drop_slot(journal: Journal) -> None:
    journal.db.su.execute("select pg_drop_replication_slot(slot_name) from meshaudit_private.journal")


def slot_entries(journal: Journal) -> list[str]:
    rows = journal.db.su.execute(
        "select secret_id from meshaudit.audit_logs where secret_table = 'meshaudit.journal' order by id"
    )
    return [row[0] for row in rows]


def test_life(any_db: Db) -> None:
    """Arm, seal, disarm, arm anew: as the installer, Supabase's not being a superuser."""
    journal = Journal(any_db)
    assert one(journal.operator, ARM) == "armed already"
    one(journal.client(), READ, journal.secret)
    assert journal.seal() == 0
    assert all(ok for name, (ok, _) in journal.status().items() if name.startswith("journal"))
    assert one(journal.operator, DISARM) is True
    assert one(journal.operator, DISARM) is False
    assert not journal.status()["journal"][0]
    assert refused(journal.operator, SEAL)
    assert one(journal.operator, ARM) == "armed"
    assert journal.seal() == 0
    assert [text.split()[0] for text in slot_entries(journal)] == ["armed", "disarmed", "armed"]
    assert any_db.su.execute("select * from meshaudit.verify()").fetchall() == []


def test_who_may(db: Db) -> None:
    for name in ("meshaudit_client", "meshaudit_auditor"):
        conn = db.connect(db.role("role", name))
        for query in (ARM, DISARM, SEAL):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                conn.execute(query.encode())
    operator = db.connect(db.role("operator", "meshaudit_operator", replication=True))
    assert one(operator, ARM) == "armed"
    assert one(operator, SEAL) == 0
    assert one(operator, DISARM) is True
    powerless = db.connect(db.role("operator", "meshaudit_operator"))
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        powerless.execute(ARM)


@pytest.mark.parametrize("mode", ["read only", "journal mode"])
def test_unarmed(db: Db, mode: str) -> None:
    client = db.connect(db.role("client", "meshaudit_client"))
    secret = one(client, "select meshaudit.write_secret('k', 'v')")
    if mode == "journal mode":
        db.connect().execute(SET, ["vault_mode", "journal"])
    else:
        client.execute("set default_transaction_read_only = on")
    for query, params in (
        (READ, [secret]),
        (READ_MANY, [[secret]]),
        ("select meshaudit.read_secret_by_key(%s)", ["k"]),
    ):
        assert "meshaudit.arm_journal()" in refused(client, query, *params)
    # what does not exist is no access
    with pytest.raises(psycopg.Error, match="no such secret"):
        client.execute(READ, [stranger()])
    assert client.execute(READ_MANY, [[stranger()]]).fetchall() == []


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_journal_mode(journal: Journal, end: str) -> None:
    journal.operator.execute(SET, ["vault_mode", "journal"])
    ids = journal.many(3)
    client = journal.client()
    client.execute("begin")
    one(client, READ, ids[0])
    client.execute(end.encode())
    client.execute("begin")
    one(client, "select meshaudit.write_secret('w', 'v')")
    one(client, READ, ids[1])
    client.execute(READ_MANY, [ids[2:]])
    client.execute(end.encode())
    journal.seal()
    # the first had nothing to undo
    undone = "granted" if end == "commit" else "rolled_back"
    assert journal.outcomes() == ["granted", undone, undone, undone]


@pytest.mark.parametrize("flush", ["true", "false"])
def test_flush(journal: Journal, flush: str) -> None:
    """From 17 on a record is on disk when the value is returned."""
    journal.operator.execute(SET, ["journal_flush", flush])
    client = journal.client()
    flushed = one(client, "show server_version_num") >= "170000" and flush == "true"
    for begin in ("begin", "begin read only"):
        client.execute(begin.encode())
        row = client.execute(
            "select pg_current_wal_insert_lsn(), meshaudit.read_secret(%s), pg_current_wal_flush_lsn()",
            [journal.secret],
        ).fetchone()
        assert row is not None
        if flushed:
            assert one(client, "select %s::pg_lsn > %s::pg_lsn", row[2], row[0])
        client.execute("rollback")
    assert journal.seal() == 2


def test_required(journal: Journal) -> None:
    operator, client = journal.operator, journal.client()
    operator.execute(SET, ["require_journal", "true"])
    one(client, READ, journal.secret)
    drop_slot(journal)
    journal.db.su.execute("update meshaudit_private.journal set healthy_until = '-infinity'")
    for query, params in (
        (READ, [journal.secret]),
        (READ_MANY, [[journal.secret]]),
        ("select meshaudit.write_secret(%s, 'v')", ["k"]),
        ("select meshaudit.delete_secret(%s)", [journal.secret]),
    ):
        assert "arm_journal()" in refused(client, query, *params)
    assert one(operator, ARM).startswith("armed anew")
    one(client, READ, journal.secret)
    assert "require_journal" in refused(operator, DISARM)
    operator.execute(SET, ["require_journal", "false"])
    assert one(operator, DISARM) is True
    one(client, READ, journal.secret)


def test_required_and_not_armed(db: Db) -> None:
    operator, client = db.connect(), db.connect(db.role("client", "meshaudit_client"))
    secret = one(client, "select meshaudit.write_secret('k', 'v')")
    assert "arm_journal()" in refused(operator, SET, "require_journal", "true")
    assert one(operator, ARM) == "armed"
    operator.execute(SET, ["require_journal", "true"])
    assert one(client, READ, secret) == b"v"


@pytest.mark.parametrize("how", ["dropped", "made again", "read by another", "invalidated"])
def test_lost_slot(db: Db, how: str) -> None:
    journal = Journal(db)
    if how == "invalidated" and journal.db.pg.server is None:
        pytest.skip("would change a shared server's settings")
    client = journal.client()
    client.execute("begin")
    one(client, READ, journal.secret)
    client.execute("rollback")
    lose(journal, how)
    journal.db.su.execute("update meshaudit_private.journal set healthy_until = '-infinity'")
    assert "arm_journal()" in refused(journal.operator, SEAL)
    ok, detail = journal.status()["journal slot"]
    assert not ok
    assert "arm_journal()" in detail
    if how in ("dropped", "invalidated"):
        assert journal.status()["journal wal kept"] == (False, "none: the slot is gone or has lost records")
    # the ledger goes on
    assert one(client, READ, journal.secret) == b"first"
    if how in ("dropped", "invalidated"):
        client.execute("begin read only")
        assert "arm_journal()" in refused(client, READ, journal.secret)
        client.execute("rollback")
        with pytest.raises(psycopg.Error, match="no such secret"):
            client.execute(READ, [stranger()])
    told = one(journal.operator, ARM)
    assert told.startswith("armed anew; records between")
    assert slot_entries(journal)[-1].startswith("gap ")
    assert slot_entries(journal)[-1].removeprefix("gap ").split("..")[0] in told
    client.execute("begin read only")
    assert one(client, READ, journal.secret) == b"first"
    client.execute("commit")
    assert journal.seal() == 1
    assert all(ok for name, (ok, _) in journal.status().items() if name.startswith("journal"))
    assert db.su.execute("select * from meshaudit.verify()").fetchall() == []


def lose(journal: Journal, how: str) -> None:
    su = journal.db.su
    slot = one(su, SLOT)
    if how == "invalidated":
        lose_by_size(journal, slot)
        return
    if how == "read by another":
        su.execute("create table flushes_the_log ()")
        su.execute(
            "select count(*) from pg_logical_slot_get_binary_changes(%s, null, null, 'proto_version', '1',"
            " 'publication_names', 'meshaudit_journal', 'messages', 'true')",
            [slot],
        )
        return
    drop_slot(journal)
    if how == "made again":
        su.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", [slot])


def lose_by_size(journal: Journal, slot: str) -> None:
    su = journal.db.su
    try:
        su.execute("alter system set max_slot_wal_keep_size = '1MB'")
        su.execute("alter system set max_wal_size = '32MB'")
        su.execute("select pg_reload_conf()")
        wait_until(lambda: one(su, "show max_slot_wal_keep_size") == "1MB")
        for _ in range(5):
            su.execute("select pg_logical_emit_message(false, 'filler', repeat('x', 16000000))")
            su.execute("select pg_switch_wal()")
        su.execute("checkpoint")
        lost = "select from pg_replication_slots where slot_name = %s and wal_status = 'lost'"
        wait_until(lambda: su.execute(lost, [slot]).rowcount == 1, what="the slot's invalidation")
    finally:
        su.execute("alter system reset max_slot_wal_keep_size")
        su.execute("alter system reset max_wal_size")
        su.execute("select pg_reload_conf()")


def test_arming_that_failed_half_way(journal: Journal) -> None:
    """A slot is made at once, whatever becomes of the transaction that notes it."""
    drop_slot(journal)
    journal.operator.execute("begin")
    journal.operator.execute(ARM)
    journal.operator.execute("rollback")
    assert refused(journal.operator, SEAL)
    assert one(journal.operator, ARM).startswith("armed anew")
    assert slot_entries(journal)[-1].startswith("gap ")
    assert journal.seal() == 0


def test_a_copy_of_an_armed_database(journal: Journal, template: Templates) -> None:
    db = journal.db
    name = db.name + "_copy"
    for conn in db._open:
        conn.close()
    db.pg.create_database(name, template=db.name)
    copy = Db(db.pg, name, db.flavour, db.installer)
    try:
        operator = copy.connect()
        assert refused(operator, SEAL)
        assert one(operator, ARM).startswith("armed anew")
        assert seal(operator) == 0
        assert seal(db.connect()) == 0
    finally:
        copy.drop()


def test_status_tells_lag(journal: Journal) -> None:
    su = journal.db.su
    su.execute("update meshaudit_private.journal_progress set sealed_at = sealed_at - interval '2 minutes'")
    ok, detail = journal.status()["journal lag"]
    assert not ok
    assert "seal --follow" in detail
    journal.seal()
    assert journal.status()["journal lag"][0]


def test_wal_level(db: Db) -> None:
    if one(db.su, "show wal_level") == "logical":
        pytest.skip("this server has wal_level = logical")
    assert "wal_level" in refused(db.connect(), ARM)


def test_without_the_publication(db: Db) -> None:
    db.su.execute("drop publication meshaudit_journal")
    assert "create publication" in refused(db.connect(), ARM)
    db.su.execute(sql.SQL("create publication meshaudit_journal"))


def test_pg_cron() -> None:
    if not Path("/usr/share/postgresql/15/extension/pg_cron.control").exists():
        pytest.skip("Debian's postgresql-15-cron is not installed")
    preload = {"shared_preload_libraries": "pg_cron", "cron.database_name": "postgres"}
    with (
        Server.temporary(bindir=DEBIAN_15, settings=SETTINGS | preload) as server,
        psycopg.connect(server.dsn(), autocommit=True) as conn,
    ):
        schema.install(conn)
        assert one(conn, ARM) == "armed"
        assert one(conn, DISARM) is True
        conn.execute("create extension pg_cron")
        assert one(conn, ARM).startswith("armed; pg_cron seals (")
        assert one(conn, "select command from cron.job") == "select meshaudit.seal()"
        assert one(conn, DISARM) is True
        assert one(conn, "select count(*) from cron.job") == 0
        conn.execute("create role operator login replication in role meshaudit_operator")
        with psycopg.connect(server.dsn(user="operator"), autocommit=True) as other:
            assert "; pg_cron was not told: permission denied" in one(other, ARM)
            assert one(other, DISARM) is True
