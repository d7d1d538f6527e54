"""meshaudit logs --follow: every entry once and in order, whatever happens to the server and the sealer."""

import contextlib
import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import psycopg
import pytest

from meshaudit import db as connections
from meshaudit import follow, schema
from meshaudit.errors import MeshauditError
from meshaudit.queries import Entry, Filters
from meshaudit.server import Server
from tests import servers
from tests.cli_support import PROGRAM, environment
from tests.conftest import _wanted
from tests.support import SETTINGS, Db, wait_until


@contextlib.contextmanager
def program(dsn: str, out: Path, *args: str) -> Iterator[subprocess.Popen[bytes]]:
    """The program running, its output in two files."""
    with out.open("wb") as stdout, out.with_suffix(".err").open("wb") as stderr:
        process = subprocess.Popen(
            [*PROGRAM, *args], env=environment({"MESHAUDIT_DSN": dsn}), stdout=stdout, stderr=stderr
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(20)


def entries(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def begun(out: Path) -> bool:
    return b"following" in out.with_suffix(".err").read_bytes()


def write(conn: psycopg.Connection[Any], key: str) -> str:
    row = conn.execute("select meshaudit.write_secret(%s, 'v', 'a')", [key]).fetchone()
    assert row is not None
    return str(row[0])


@pytest.fixture
def server() -> Iterator[Server]:
    """A server that may be restarted, with meshaudit and an armed journal in it."""
    with Server.temporary(bindir=servers.bindir_for(_wanted()), settings=SETTINGS) as server:
        with psycopg.connect(server.dsn(), autocommit=True) as conn:
            schema.install(conn)
            conn.execute("select meshaudit.arm_journal()")
            conn.execute("create role auditor login")
            conn.execute("select meshaudit.grant_auditor('auditor', 'a')")
        yield server


def test_every_entry_once_over_restarts(server: Server, tmp_path: Path) -> None:
    out = tmp_path / "followed"
    written: list[str] = []

    def more(count: int) -> None:
        with psycopg.connect(server.dsn(), autocommit=True) as conn:
            first = len(written)
            for number in range(first, first + count):
                written.append(write(conn, f"key {number}"))

    def told() -> list[str]:
        return [e["secret_id"] for e in entries(out) if e["secret_table"] == "meshaudit.secrets"]

    args = ("logs", "--follow", "--format", "json", "--operation", "create", "--scope", "a")
    with program(server.dsn(user="auditor"), out, *args) as follower:
        wait_until(lambda: begun(out), 20, "the follower")
        with program(server.dsn(), tmp_path / "sealer1", "seal", "--follow") as sealer:
            more(20)
            wait_until(lambda: len(told()) == 20, 20, "entries by the first sealer")
            more(20)
            sealer.kill()
        more(20)
        with program(server.dsn(), tmp_path / "sealer2", "seal", "--follow"):
            wait_until(lambda: len(told()) == 60, 20, "entries by the second sealer")
            more(20)
            server.stop()
            assert follower.poll() is None
            server.start()
            more(20)
            wait_until(lambda: len(told()) >= 100, 30, "entries after the restart")
            more(1)
            wait_until(lambda: len(told()) >= 101, 20, "the last entry")
        assert told() == written
        follower.send_signal(signal.SIGINT)
        assert follower.wait(20) == 0
    assert "went away" in out.with_suffix(".err").read_text()


def test_a_feed_that_nobody_fills_is_told(db: Db, monkeypatch: pytest.MonkeyPatch) -> None:
    role = db.role("auditor")
    db.su.execute("select meshaudit.grant_auditor(%s)", [role])
    monkeypatch.setattr(follow, "_STALE", 0.3)
    notes: list[str] = []
    shown: list[str] = []
    stop = Event()

    def show(page: list[Entry]) -> None:
        shown.extend(entry.operation for entry in page)

    def run() -> None:
        follow.follow(lambda: connections.connect(db.dsn(role)), Filters(), show, notes.append, stop)

    follower = Thread(target=run, daemon=True)
    follower.start()
    try:
        wait_until(lambda: notes, 20, "the follower")
        write(db.su, "unseen")
        wait_until(lambda: any("not being filled" in note for note in notes), 30, "the hint")
        assert shown == []
        db.su.execute("select meshaudit.feed()")
        wait_until(lambda: "create" in shown, 20, "what was fed then")
    finally:
        stop.set()
        follower.join(20)
    assert not follower.is_alive()


def test_following_leaves_no_entries(db: Db, monkeypatch: pytest.MonkeyPatch) -> None:
    """But one, when it begins: each other would have to be shown, too."""
    role = db.role("auditor")
    db.su.execute("select meshaudit.grant_auditor(%s)", [role])
    monkeypatch.setattr(follow, "_STALE", 0.1)
    notes: list[str] = []
    stop = Event()
    follower = Thread(
        target=lambda: follow.follow(
            lambda: connections.connect(db.dsn(role)), Filters(), lambda page: None, notes.append, stop
        ),
        daemon=True,
    )
    follower.start()
    count = "select count(*) from meshaudit_private.ledger where secret_table = 'meshaudit.audit_logs'"
    looks = "select backend_xmin is null and state = 'idle' from pg_stat_activity where usename = %s"
    try:
        wait_until(lambda: notes, 20, "the follower")
        write(db.su, "seen")
        db.su.execute("select meshaudit.feed()")
        began = db.su.execute(count.encode()).fetchone()
        for _ in range(8):
            stop.wait(0.5)
            db.su.execute("select meshaudit.feed()")
        assert db.su.execute(looks.encode(), [role]).fetchone()
        assert db.su.execute(count.encode()).fetchone() == began
    finally:
        stop.set()
        follower.join(20)
    assert len(notes) == 1


def test_what_has_left_the_feed_is_no_silent_gap(db: Db) -> None:
    """A follower that was away for too long stops, and says what it has missed."""
    follower = follow._Follower(Filters(), lambda page: None, lambda text: None, Event())
    db.su.execute("select meshaudit.set_setting('feed_keep', '1000')")
    for number in range(3):
        db.su.execute(
            "select count(meshaudit.write_secret(%s || i, 'v')) from generate_series(1, 900) i",
            [f"{number} "],
        )
        db.su.execute("select meshaudit.feed()")
    follower.last = 100
    with connections.connect(db.dsn()) as conn, pytest.raises(MeshauditError, match="left the feed unseen"):
        follower._catch_up(conn)
