"""Disarming, and arming anew, while others are at work: no value comes out in between without an entry."""

import itertools
import threading
from functools import partial

import psycopg
import pytest

from tests.journal_support import READ, READ_MANY, Journal, one, seal
from tests.support import Db, wait_until
from tests.test_journal_slot import ARM, DISARM, SEAL, SET, SLOT, refused


@pytest.fixture
def journal(db: Db) -> Journal:
    return Journal(db)


def test_arming_takes_a_transaction_of_its_own(db: Db) -> None:
    """What is sent together is one transaction, and no slot can be made after a write."""
    db.su.execute("create table t (id int primary key, v text)")
    for before in ("select meshaudit.protect('t', '{v}')", "create table u ()"):
        with pytest.raises(psycopg.Error, match="in a transaction that has written") as caught:
            db.su.execute(f"{before}; {ARM}".encode())
        assert caught.value.sqlstate == "MA005"
        assert "by itself" in str(caught.value.diag.message_hint)
    assert one(db.su, ARM) == "armed"
    db.su.execute("begin; create table u ()")
    assert one(db.su, ARM) == "armed already"
    db.su.execute("commit")


def test_a_slot_is_made_while_tables_are(db: Db) -> None:
    """A commit that changes the catalogue, and that the new slot skips, once ended arming in an internal error."""
    waits = "select count(*) from pg_stat_activity where pid = %s and wait_event_type = 'Lock'"

    def opened() -> psycopg.Connection[object]:
        conn = db.connect(autocommit=False)
        conn.execute("select pg_current_xact_id()")
        return conn

    first, operator, told = opened(), db.connect(), []
    arming = threading.Thread(target=lambda: told.append(one(operator, ARM)))
    arming.start()
    waiting = partial(one, db.su, waits, operator.info.backend_pid)
    wait_until(waiting)
    second = opened()
    held = "select count(*) from pg_locks l where l.locktype = 'transactionid' and not l.granted and l.transactionid = %s::xid"
    xid = one(second, "select pg_current_xact_id()::xid::text")
    first.commit()
    wait_until(lambda: one(db.su, held, xid))
    for number in range(3):
        db.su.execute(f"create table public.meanwhile_{number} (id int primary key)".encode())
    second.commit()
    arming.join()
    assert told == ["armed"]


def test_disarming_waits_for_open_transactions(journal: Journal) -> None:
    client = journal.client()
    client.execute("begin read only")
    one(client, READ, journal.secret)
    assert "when they have ended" in refused(journal.operator, DISARM)
    client.execute("commit")
    assert one(journal.operator, DISARM) is True
    assert [e.outcome for e in journal.told() if e.operation == "read"] == ["granted"]


@pytest.mark.parametrize("mode", ["ledger", "journal"])
def test_disarming_waits_for_who_went_back_to_a_savepoint(journal: Journal, mode: str) -> None:
    """That gives up the lock on the journal's state, and the record waits for the end of the transaction."""
    if journal.db.pg.version < 17:
        pytest.skip("before 17 nothing brings that record to disk")
    journal.operator.execute(SET, ["vault_mode", mode])
    client = journal.client()
    client.execute("begin")
    one(client, "select meshaudit.write_secret('w', 'v')")
    client.execute("rollback")
    client.execute("begin")
    client.execute("savepoint a")
    one(client, "select pg_current_xact_id()")
    one(client, READ, journal.secret)
    client.execute("rollback to a")
    assert "when they have ended" in refused(journal.operator, DISARM)
    client.execute("rollback")
    assert one(journal.operator, DISARM) is True
    assert [e.outcome for e in journal.told() if e.operation == "read"] == ["rolled_back"]


def test_disarming_does_not_wait_for_transactions_of_another_server(journal: Journal) -> None:
    """A restored dump has them, and nobody knows when they are over."""
    journal.db.su.execute(
        "insert into meshaudit_private.journal_pending values (gen_random_uuid(), '0/1', '1000000000000', '')"
    )
    assert one(journal.operator, DISARM) is True


def test_a_journal_that_is_healthy_is_armed(journal: Journal) -> None:
    """Nobody looks further who finds it healthy."""
    state = "meshaudit_private.journal"
    for change in ("armed = false", "message_head = null", "inner_key = null", "outer_key = null"):
        with pytest.raises(psycopg.errors.CheckViolation):
            journal.db.su.execute(f"update {state} set {change}".encode())
    assert one(journal.operator, DISARM) is True
    with pytest.raises(psycopg.errors.CheckViolation):
        journal.db.su.execute(f"update {state} set healthy_until = 'infinity'".encode())


def test_arming_and_disarming_under_load(db: Db) -> None:
    """Whoever got a value or wrote one finds it in the log, once, however often the journal came and went."""
    operator, role = db.connect(), db.role("client", "meshaudit_client")
    secret = one(db.su, "select meshaudit.write_secret('k', 'v')")
    db.su.execute("create table public.t (id int primary key, v text)")
    db.su.execute("insert into public.t values (0, 'v')")
    db.su.execute(f"grant select, insert on public.t to {role}".encode())
    db.su.execute("select meshaudit.protect('public.t', '{v}', null, 'journal')")
    stop, got, troubles = threading.Event(), dict.fromkeys(range(4), 0), []
    ways = (
        ("begin read only", READ, [secret]),
        ("begin isolation level repeatable read read only", READ_MANY, [[secret]]),
        ("begin read only", "select v from public.t where id = %s", [0]),
    )

    def work(n: int) -> None:
        conn = db.connect(role, application_name=f"client {n}")
        for number in itertools.count():
            if stop.is_set():
                return
            try:
                if n == 3:
                    conn.execute("insert into public.t values (%s, 'v')", [number + 1])
                    got[n] += 1
                else:
                    begin, query, params = ways[n]
                    conn.execute(begin.encode())
                    for _ in range(1 + number % 3):
                        assert len(conn.execute(query.encode(), params).fetchall()) == 1
                        got[n] += 1
                    conn.execute("commit" if number % 2 else "rollback")
            except psycopg.Error as e:
                conn.rollback()
                if e.sqlstate != "MA002":
                    troubles.append(repr(e))
                    return

    threads = [threading.Thread(target=work, args=(n,)) for n in got]
    for thread in threads:
        thread.start()
    try:
        for mode in ("journal", "ledger") * 4:
            one(operator, ARM)
            operator.execute(SET, ["vault_mode", mode])
            wanted = sum(got.values()) + 20
            wait_until(partial(lambda n: troubles or sum(got.values()) > n, wanted), what="accesses")
            one(operator, SEAL)
            one(operator, DISARM)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert troubles == []
    one(operator, ARM)
    seal(operator)
    rows = db.su.execute(
        "select right(application_name, 1)::int, count(*) from meshaudit.audit_logs where application_name like 'client %'"
        " group by 1"
    )
    assert dict(rows.fetchall()) == got
    assert db.su.execute("select * from meshaudit.verify()").fetchall() == []


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_an_older_snapshot_sees_the_slot_go(journal: Journal, level: str) -> None:
    client = journal.client()
    client.execute(f"begin isolation level {level} read only".encode())
    client.execute("select 1")
    assert one(journal.operator, DISARM) is True
    assert "arm_journal()" in refused(client, READ, journal.secret)


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_an_older_snapshot_sees_a_slot_that_is_being_made(journal: Journal, level: str) -> None:
    """It shows nothing that is written before it is ready, which open transactions can put off."""
    client, writer = journal.client(), journal.client()
    client.execute(f"begin isolation level {level} read only".encode())
    client.execute("select 1")
    slot = one(journal.db.su, SLOT)
    assert one(journal.operator, DISARM) is True
    writer.execute("begin")
    one(writer, "select pg_current_xact_id()")
    arming = threading.Thread(target=one, args=(journal.operator, ARM))
    arming.start()
    there = "select from pg_replication_slots where slot_name = %s and restart_lsn is not null"
    try:
        wait_until(lambda: journal.db.pg.run(there, slot).rowcount == 1, what="the slot")
        assert "arm_journal()" in refused(client, READ, journal.secret)
    finally:
        writer.execute("rollback")
        arming.join()
