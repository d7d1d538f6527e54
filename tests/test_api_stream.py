"""The stream: every entry exactly once, to whom it may be shown, whatever is restarted meanwhile."""

import json
import subprocess
import threading
import time
from collections.abc import Iterator

import httpx
import psycopg
import pytest

from meshaudit.server import Server
from tests.api_support import Api, bearer, events, gateway, problem, record, serving
from tests.cli_support import PROGRAM, environment, ok
from tests.support import Db, wait_until

ALL, ONE = bearer("sees-all"), bearer("sees-one")


@pytest.fixture
def streaming(db: Db) -> Iterator[tuple[Db, Api]]:
    login = gateway(db)
    db.su.execute("select meshaudit.grant_auditor('sees-all'), meshaudit.grant_auditor('sees-one', 'one')")
    with serving(db, login=login) as api:
        yield db, api


def _feed(db: Db) -> None:
    db.su.execute("select meshaudit.feed()")


def _keys(found: list[dict[str, str]]) -> list[int]:
    return [json.loads(event["data"])["id"] for event in found if event.get("event") == "entry"]


def _take(lines: Iterator[dict[str, str]], number: int) -> list[dict[str, str]]:
    """That many entries."""
    found: list[dict[str, str]] = []
    while len(found) < number:
        event = next(lines)
        if event.get("event") == "entry":
            found.append(event)
    return found


def _ids(db: Db, scope: str) -> list[int]:
    rows = db.su.execute("select id from meshaudit.audit_feed where scope = %s order by feed_id", [scope])
    return [id for (id,) in rows]


def test_each_sees_its_own_at_once(streaming: tuple[Db, Api]) -> None:
    db, api = streaming
    record(db, "before", scope="one")
    _feed(db)
    with (
        api.client.stream("GET", "/api/audit-logs/stream", headers=ONE) as one,
        api.client.stream("GET", "/api/audit-logs/stream?operation=update", headers=ALL) as updates,
    ):
        mine, theirs = events(one.iter_lines()), events(updates.iter_lines())
        assert "event" not in next(mine)
        next(theirs)
        began = time.monotonic()
        conn = record(db, "x", "y", scope="one")
        record(db, "z", scope="two")
        conn.execute("select meshaudit.write_secret('x', 'w', 'one')")
        _feed(db)
        got = _take(mine, 3)
        assert time.monotonic() - began < 5
        assert _keys(got) == _ids(db, "one")[2:]
        entry = json.loads(got[0]["data"])
        page = api.get(f"/api/audit-logs/{entry['id']}", ONE).json()
        assert {**entry, "prev_hash": page["prev_hash"]} == page
        assert [json.loads(e["data"])["operation"] for e in _take(theirs, 1)] == ["update"]


def test_it_resumes_behind_the_last_id(streaming: tuple[Db, Api]) -> None:
    db, api = streaming
    record(db, *(f"k{n}" for n in range(7)), scope="one")
    _feed(db)
    got: list[int] = []
    last = "0"
    while len(got) < 8:  # the grant is an entry too
        headers = {**ONE, "Last-Event-ID": last}
        with api.client.stream("GET", "/api/audit-logs/stream", headers=headers) as answer:
            taken = _take(events(answer.iter_lines()), min(3, 8 - len(got)))
        got, last = got + _keys(taken), taken[-1]["id"]
    assert got == _ids(db, "one")


def test_what_the_feed_no_longer_holds(streaming: tuple[Db, Api]) -> None:
    db, api = streaming
    record(db, "a", "b", "c", scope="one")
    _feed(db)
    newest = db.su.execute("select newest from meshaudit.feed_range()").fetchone()
    assert newest is not None
    db.su.execute("alter table meshaudit.audit_feed disable trigger append_only")
    db.su.execute("delete from meshaudit.audit_feed where feed_id <= %s", [newest[0] - 1])
    for last in (0, newest[0] - 2, newest[0] + 1, 10**17):
        answer = api.get("/api/audit-logs/stream", {**ONE, "Last-Event-ID": str(last)})
        document = problem(answer, 410)
        assert "GET /api/audit-logs" in document["hint"]
    for wrong in ("x", "-1", "1.5", "9" * 30):
        answer = api.get("/api/audit-logs/stream", {**ONE, "Last-Event-ID": wrong})
        assert problem(answer, 400)["parameter"].lower() == "last-event-id"


def test_it_ends_with_the_token_and_with_the_grant(streaming: tuple[Db, Api]) -> None:
    db, api = streaming
    short = bearer("sees-one", exp=int(time.time()) + 2)
    with api.client.stream("GET", "/api/audit-logs/stream", headers=short) as answer:
        last = list(events(answer.iter_lines()))[-1]
        assert json.loads(last["data"])["reason"] == "expired"
    with api.client.stream("GET", "/api/audit-logs/stream", headers=ONE) as answer:
        lines = events(answer.iter_lines())
        next(lines)
        db.su.execute("select meshaudit.revoke_auditor('sees-one', 'one')")
        record(db, "x", scope="one")
        _feed(db)
        moved = next(lines)
        assert "data" not in moved


def test_so_many_at_a_time(streaming: tuple[Db, Api]) -> None:
    _, api = streaming
    opened, reading = [], []
    try:
        for _ in range(10):
            answer = api.client.send(
                api.client.build_request("GET", "/api/audit-logs/stream", headers=ONE), stream=True
            )
            opened.append(answer)
            reading.append(answer.iter_raw())  # kept: one that is forgotten closes its connection
            next(reading[-1])
        answer = api.get("/api/audit-logs/stream", ONE)
        assert problem(answer, 429)
        assert answer.headers["retry-after"]
        assert api.get("/api/audit-logs", ONE).status_code == 200
    finally:
        for answer in opened:
            answer.close()
    # A place is free again once its client has gone.
    wait_until(lambda: _opens(api), what="a free place")


def _opens(api: Api) -> bool:
    with api.client.stream("GET", "/api/audit-logs/stream", headers=ONE) as answer:
        return answer.status_code == 200


class _Follower(threading.Thread):
    """A client as EventSource is one: it comes back with the last id it saw."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.url, self.got, self.done, self.last = url, list[int](), threading.Event(), "0"

    def run(self) -> None:
        while not self.done.is_set():
            headers = {**ALL, "Last-Event-ID": self.last}
            try:
                with httpx.stream(
                    "GET", f"{self.url}/api/audit-logs/stream", headers=headers, timeout=15
                ) as a:
                    self.status = a.status_code if a.is_success else f"{a.status_code} {a.read()!r}"
                    for event in events(a.iter_lines()):
                        if "id" in event:
                            self.last = event["id"]
                        self.got += _keys([event])
                        if self.done.is_set():
                            return
            except httpx.HTTPError:
                time.sleep(0.05)


def test_exactly_once_over_restarts() -> None:
    """Of Postgres, of the sealer (killed), and of this server."""
    settings = {"wal_level": "logical", "fsync": "off"}
    with Server.temporary(settings=settings) as server:
        ok("migrate", dsn=server.dsn())
        with psycopg.connect(server.dsn(), autocommit=True) as conn:
            conn.execute(
                "create role authenticated nologin; create role gate login noinherit password 'x';"
                "grant authenticated to gate; select meshaudit.set_setting('gateway_roles', 'gate');"
                "select meshaudit.grant_auditor('sees-all')"
            )
            conn.execute("select meshaudit.arm_journal()")
        dsn = psycopg.conninfo.make_conninfo(server.dsn(), user="gate", password="x")
        api, sealer = Api(dsn), _sealer(server)
        follower = _Follower(api.url)
        follower.start()
        try:
            for turn in range(4):
                with psycopg.connect(server.dsn(), autocommit=True) as conn:
                    for n in range(25):
                        conn.execute("select meshaudit.write_secret(%s, 'v')", [f"k{turn}-{n}"])
                if turn == 0:
                    sealer.kill()
                    sealer.communicate()
                    sealer = _sealer(server)
                elif turn == 1:
                    server.kill()
                    server.start()
                elif turn == 2:
                    api.stop()
                    api = Api(dsn)
                    follower.url = api.url
            with psycopg.connect(server.dsn(), autocommit=True) as conn:
                wanted = [i for (i,) in conn.execute("select id from meshaudit.audit_logs order by id")]
                try:
                    wait_until(lambda: len(follower.got) >= len(wanted), 60, f"{len(wanted)} entries")
                except AssertionError:
                    print(
                        "GOT",
                        follower.is_alive(),
                        getattr(follower, "status", None),
                        follower.last,
                        len(follower.got),
                        "missing",
                        sorted(set(wanted) - set(follower.got)),
                    )
                    print(
                        "FEED",
                        conn.execute(
                            "select count(*), max(feed_id), max(id) from meshaudit.audit_feed"
                        ).fetchall(),
                    )
                    print(
                        "SEALER",
                        sealer.poll(),
                        conn.execute('select "check", ok, detail from meshaudit.status()').fetchall(),
                    )
                    raise
                assert sorted(follower.got) == wanted
        finally:
            follower.done.set()
            sealer.kill()
            sealer.communicate()
            api.stop()


def _sealer(server: Server) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [*PROGRAM, "seal", "--follow"],
        env=environment({"MESHAUDIT_DSN": server.dsn()}),
        stderr=subprocess.DEVNULL,
    )
