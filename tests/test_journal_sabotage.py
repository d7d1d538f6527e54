"""Attempts to keep the sealer from its work: by filling what it shares with everybody, or by records that nothing takes.

On a server of their own, with little room for what everybody may fill.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from meshaudit import schema
from meshaudit.server import Server
from tests import servers
from tests.conftest import _wanted
from tests.journal_support import READ, Journal, one
from tests.support import SETTINGS, Db, Pg
from tests.test_journal_slot import ARM, refused

# any role may write these
FILLER = "select pg_logical_emit_message(false, 'filler', repeat('x', 8000000))"


@pytest.fixture
def journal() -> Iterator[Journal]:
    settings = SETTINGS | {"max_slot_wal_keep_size": "64MB", "max_wal_size": "2GB"}
    if _wanted() not in ("15", "16"):
        settings["max_notify_queue_pages"] = "64"
    with (
        Server.temporary(bindir=servers.bindir_for(_wanted()), settings=settings) as server,
        contextlib.ExitStack() as stack,
    ):
        pg = Pg(server.dsn(), server)
        stack.callback(pg.admin.close)
        with psycopg.connect(server.dsn(), autocommit=True) as conn:
            schema.install(conn)
        db = Db(pg, "postgres", "superuser", pg.superuser)
        yield Journal(db)
        for conn in db._open:
            conn.close()


def read_only(conn: psycopg.Connection[Any], journal: Journal) -> bytes:
    with conn.transaction(force_rollback=True):
        conn.execute("set transaction read only")
        return bytes(one(conn, READ, journal.secret))


def lost(journal: Journal) -> bool:
    return bool(one(journal.db.su, "select wal_status = 'lost' from pg_replication_slots"))


def test_the_queue_of_notifications_is_full(journal: Journal) -> None:
    if journal.db.pg.version < 17:
        pytest.skip("its size is 8 GB before 17")
    listener, client = journal.client(), journal.client()
    listener.execute("listen foo")
    listener.execute("begin")
    listener.execute("select 1")
    many = "select count(pg_notify('foo', repeat('x', 7900) || i)) from generate_series(1, 20) i"

    def fill() -> None:
        while True:
            client.execute(many)

    with pytest.raises(psycopg.errors.ProgramLimitExceeded):
        fill()
    read_only(client, journal)
    assert journal.seal() == 1
    listener.close()
    read_only(client, journal)
    assert journal.seal() == 1
    client.execute("select pg_notify('bar', 'x')")  # sealing has cleared it
    assert journal.outcomes() == ["granted", "granted"]


@pytest.mark.parametrize("sealing", [True, False])
def test_no_read_goes_without_a_record_while_the_slot_is_being_lost(journal: Journal, sealing: bool) -> None:
    """A transaction that stays open holds the slot back; then the log is made long until the slot is lost."""
    holder, client = journal.client(), journal.client()
    journal.seal()
    holder.execute("begin")
    holder.execute("select pg_logical_emit_message(true, 'x', 'y')")
    reads = 0
    for _ in range(40):
        with contextlib.suppress(psycopg.errors.DatabaseError):  # MA002
            read_only(client, journal)
            reads += 1
        if sealing:
            with contextlib.suppress(psycopg.Error):
                journal.operator.execute("select meshaudit.seal()")
        client.execute(FILLER)
        journal.db.su.execute("checkpoint")
        if lost(journal):
            break
    assert lost(journal)
    # at once: the sealer has been here in these ten seconds
    for _ in range(3):
        assert "arm_journal()" in refused(client, READ_ONLY.format(journal.secret))
        client.execute("rollback")
    holder.execute("rollback")
    assert one(journal.operator, ARM).startswith("armed anew")
    if sealing:
        journal.seal()
        assert journal.outcomes().count("granted") >= reads


READ_ONLY = "begin read only; select meshaudit.read_secret('{}')"


def test_the_slot_is_near_its_loss(journal: Journal) -> None:
    """Refused while the slot may go at any moment, and granted again when the sealer has caught up."""
    holder, client = journal.client(), journal.client()
    holder.execute("begin")
    holder.execute("select pg_logical_emit_message(true, 'x', 'y')")
    journal.seal()
    for _ in range(13):
        client.execute(FILLER)
    assert one(journal.db.su, "select wal_status from pg_replication_slots") == "unreserved"
    assert "oldest open transaction" in refused(client, READ_ONLY.format(journal.secret))
    client.execute("rollback")
    ok, detail = journal.status()["journal wal kept"]
    assert not ok
    assert "max_slot_wal_keep_size" in detail
    holder.execute("rollback")
    if journal.db.pg.version < 16:
        return  # there it takes the background writer up to 15 s, or a checkpoint, which may be the slot's end
    for _ in range(4):
        journal.seal()
        journal.db.su.execute("select pg_log_standby_snapshot()")
    assert read_only(client, journal) == b"first"
    assert journal.seal() == 1


def test_a_slot_with_another_plugin_is_lost(journal: Journal) -> None:
    su = journal.db.su
    slot = one(su, "select slot_name from pg_replication_slots")
    su.execute("select pg_copy_logical_replication_slot(%s, 'other', false, 'test_decoding')", [slot])
    su.execute("select pg_drop_replication_slot(%s)", [slot])
    su.execute("select pg_copy_logical_replication_slot('other', %s, false, 'test_decoding')", [slot])
    su.execute("select pg_drop_replication_slot('other')")
    assert "arm_journal()" in refused(journal.operator, "select meshaudit.seal()")
    assert not journal.status()["journal slot"][0]
    su.execute("update meshaudit_private.journal set healthy_until = '-infinity'")
    client = journal.client()
    assert "arm_journal()" in refused(client, READ_ONLY.format(journal.secret))
    client.execute("rollback")
    assert one(journal.operator, ARM).startswith("armed anew")
    read_only(client, journal)
    assert journal.seal() == 1


ANY_TEXT = "(select string_agg(md5(i::text), '') from generate_series(1, 400) i)"


def test_a_record_that_nothing_takes_is_told_of_and_holds_up_no_other(journal: Journal) -> None:
    """Its scope does not fit into an index."""
    client = journal.client()
    read_only(client, journal)
    journal.db.su.execute(
        "begin; select meshaudit_private.journal_access('read', 'granted', 'an id', 'public.t', "
        f"{ANY_TEXT}, 'role'); rollback".encode()
    )
    read_only(client, journal)
    assert journal.seal() == 3
    assert [(e.operation, e.outcome) for e in journal.told()] == [("read", "granted")] * 3
    assert [e.secret_id for e in journal.told()][1] == "cannot be written as it is (54000): an id"
    assert one(journal.operator, "select meshaudit.disarm_journal()") is True


def test_no_hold_is_longer_than_an_index_takes(journal: Journal) -> None:
    auditor = journal.db.role("auditor")
    journal.operator.execute("select meshaudit.grant_auditor(%s)", [auditor])
    conn = journal.db.connect(auditor)
    with pytest.raises(psycopg.Error) as caught:
        conn.execute(f"select meshaudit.place_hold('r', scope => {ANY_TEXT})".encode())
    assert caught.value.sqlstate == "MA005"
    reason = "\U00020000" * 400
    conn.execute("select meshaudit.place_hold(%s, scope => %s)", [reason, "\U00020001" * 255])
    journal.seal()
    assert journal.told()
