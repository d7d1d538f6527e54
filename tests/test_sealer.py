"""The sealing worker: entries come by themselves, servers and sessions may go, orders to stop are obeyed."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from meshaudit import sealer
from meshaudit.errors import CannotRecord, MeshauditError
from tests.cli_support import PROGRAM, environment, run
from tests.journal_support import READ, Journal, one
from tests.support import Db, wait_until

WORKER = """
import signal, sys
from threading import Event
from meshaudit import sealer
stop = Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
sealer.follow(sys.argv[1], stop=stop)
"""


@pytest.fixture
def journal(db: Db) -> Journal:
    return Journal(db)


@contextmanager
def following(dsn: str) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """A worker in a thread, and what it logs."""
    events: list[tuple[str, dict[str, Any]]] = []
    stop = threading.Event()

    def log(event: str, **facts: Any) -> None:
        events.append((event, facts))

    def run() -> None:
        try:
            sealer.follow(dsn, stop=stop, log=log)
        except MeshauditError as error:
            log("raised", error=error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield events
    finally:
        stop.set()
        thread.join(30)
        assert not thread.is_alive()


def wait_for_connection(events: list[tuple[str, dict[str, Any]]], count: int) -> list[int]:
    def pids() -> list[int]:
        return [facts["pid"] for name, facts in events if name == "connected"]

    wait_until(lambda: len(pids()) >= count)
    return pids()


def undone_read(journal: Journal) -> None:
    client = journal.client()
    client.execute("begin")
    one(client, READ, journal.secret)
    client.execute("rollback")


def wait_for(journal: Journal, entries: int, timeout: float = 10) -> None:
    count = "select count(*) from meshaudit.audit_logs where outcome = 'rolled_back'"
    wait_until(lambda: one(journal.db.su, count) == entries, timeout, "the entries")


def test_an_entry_is_there_within_a_second(journal: Journal) -> None:
    with following(journal.db.dsn()) as events:
        wait_until(lambda: "connected" in [name for name, _ in events])
        took = []
        for entries in (1, 2, 3):
            start = time.monotonic()
            undone_read(journal)
            wait_for(journal, entries, 10)
            took.append(time.monotonic() - start)
        # the best of three: other tests keep the machine busy
        assert min(took) < 1, took
        client = journal.client()
        client.execute("begin read only")
        one(client, READ, journal.secret)
        client.execute("commit")
        wait_until(lambda: journal.outcomes() == ["rolled_back"] * 3 + ["granted"])
    names = [name for name, _ in events]
    assert names[:2] == ["started", "connected"]
    assert names[-1] == "stopped"
    sealed = [facts for name, facts in events if name == "sealed"]
    assert sum(facts["entries"] for facts in sealed) == sealed[-1]["total"] == 4
    assert set(sealed[0]) == {"entries", "total", "seconds", "behind_bytes"}


def test_an_idle_worker_runs_less_often(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run is a commit."""
    runs: list[float] = []
    once = sealer.seal_once

    def counted(conn: psycopg.Connection[Any]) -> int:
        runs.append(time.monotonic())
        return once(conn)

    monkeypatch.setattr(sealer, "seal_once", counted)
    with following(journal.db.dsn()) as events:
        wait_until(lambda: "connected" in [name for name, _ in events])
        time.sleep(1)
        started = time.monotonic()
        time.sleep(2.5)
    # others may write on this server now and then
    assert 2 <= len([at for at in runs if at > started]) <= 9


def test_what_is_written_during_a_run_is_not_left_for_later(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log has grown by it before the worker looks how far it is: as if the run had seen it."""
    monkeypatch.setattr(sealer, "IDLE", 60)
    once, runs = sealer.seal_once, [0]

    def counted(conn: psycopg.Connection[Any]) -> int:
        runs[0] += 1
        return once(conn)

    def interrupted(conn: psycopg.Connection[Any]) -> int:
        made = once(conn)
        undone_read(journal)
        return made

    worker = sealer._Worker(journal.operator, sealer.INTERVAL, lambda *_, **__: None)
    monkeypatch.setattr(sealer, "seal_once", counted)
    before = -1
    while runs[0] != before:
        before = runs[0]
        worker.turn()
    # nothing is left, and it knows
    journal.db.su.execute("select pg_logical_emit_message(true, 'x', '')")
    monkeypatch.setattr(sealer, "seal_once", interrupted)
    worker.turn()
    monkeypatch.setattr(sealer, "seal_once", once)
    worker.turn()
    wait_for(journal, 1, 0)


def test_its_session_is_killed(journal: Journal) -> None:
    with following(journal.db.dsn()) as events:
        for number in range(3):
            pids = wait_for_connection(events, number + 1)
            pid = pids[-1]
            undone_read(journal)
            journal.db.pg.run("select pg_terminate_backend(%s)", pid)
        wait_for(journal, 3)
    assert [name for name, _ in events].count("retrying") >= 3


def test_it_gives_up_where_somebody_must_act(journal: Journal) -> None:
    with following(journal.db.dsn()) as events:
        wait_until(lambda: "connected" in [name for name, _ in events])
        wait_until(lambda: dropped(journal))
        wait_until(lambda: "raised" in [name for name, _ in events])
    assert isinstance(events[-1][1]["error"], CannotRecord)
    assert "arm_journal" in events[-2][1]["hint"]


def dropped(journal: Journal) -> bool:
    """Drop the slot, between two runs that use it."""
    try:
        journal.db.su.execute("select pg_drop_replication_slot(slot_name) from meshaudit_private.journal")
    except psycopg.errors.ObjectInUse:
        return False
    return True


def test_without_a_journal_it_feeds(db: Db) -> None:
    def wait_for_events(count: int) -> None:
        query = "select count(*) from meshaudit.audit_feed where kind = 'entry'"
        wait_until(lambda: one(db.su, query) == count)

    with following(db.dsn()) as events:
        for number in (1, 2):
            db.su.execute("select meshaudit.write_secret('k', 'v')")
            wait_for_events(number)
        db.connect().execute("select meshaudit.arm_journal()")
        wait_for_events(3)
    names = [name for name, _ in events]
    assert names.count("not armed") == 1
    assert "raised" not in names


def test_no_server(journal: Journal) -> None:
    with following("host=127.0.0.1 port=1 dbname=x") as events:
        wait_until(lambda: [name for name, _ in events].count("retrying") >= 2)
    assert "connected" not in [name for name, _ in events]


def test_a_server_that_comes_later() -> None:
    """The program waits for it, as for one that comes back; and ends where waiting would not mend it."""
    process = subprocess.Popen(
        [*PROGRAM, "seal", "--follow"],
        env=environment({"MESHAUDIT_DSN": "postgresql://127.0.0.1:1/x"}),
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stderr is not None
        events: list[str] = []
        while events.count("retrying") < 2:
            events.append(json.loads(process.stderr.readline())["event"])
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert events[0] == "started"
    assert "connected" not in events


def test_a_database_without_meshaudit(empty_db: Db) -> None:
    done = run("seal", "--follow", dsn=empty_db.dsn())
    assert done.returncode == 2
    assert "error: this database has no meshaudit schema" in done.stderr.splitlines()[-1]


def test_drain(journal: Journal) -> None:
    for _ in range(5):
        undone_read(journal)
    with psycopg.connect(journal.db.dsn(), autocommit=True) as conn:
        assert sealer.drain(conn) == 5
        assert sealer.drain(conn) == 0


def test_session_settings_do_not_break_it(journal: Journal) -> None:
    role = journal.db.role("operator", "meshaudit_operator", replication=True)
    for setting in (
        "default_transaction_isolation = 'serializable'",
        "default_transaction_read_only = on",
        "synchronous_commit = off",
        "client_encoding = 'LATIN1'",
        "search_path = 'nowhere'",
        "meshaudit.actor = 'sealer'",
    ):
        journal.db.su.execute(f"alter role {role} set {setting}".encode())
    undone_read(journal)
    with following(journal.db.dsn(role)):
        wait_for(journal, 1)
    assert journal.entry()["claimed_identity"] is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_as_a_process(journal: Journal, number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WORKER, journal.db.dsn()],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ.copy(),
    ) as process:
        undone_read(journal)
        wait_for(journal, 1)
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
    events = [json.loads(line) for line in err.splitlines()]
    assert {"time", "event"} <= set(events[0])
    if number == signal.SIGTERM:
        assert process.returncode == 0
        assert events[-1]["event"] == "stopped"
    journal.seal()
    assert journal.outcomes() == ["rolled_back"]
