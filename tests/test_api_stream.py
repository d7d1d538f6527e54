"""The stream: every entry exactly once, to whom it may be shown, whatever is restarted meanwhile."""

import contextlib
import json
import subprocess
import threading
import time
from collections.abc import Iterator

import httpx
import psycopg
import pytest

from meshaudit import schema
from meshaudit.server import Server
from tests.api_support import Api, bearer, events, gateway, problem, record, serving
from tests.cli_support import PROGRAM, environment
from tests.support import Db, wait_until

ALL, ONE = bearer("sees-all"), bearer("sees-one")


def _told(db: Db, kind: str) -> list[tuple[str, str]]:
    """What was recorded of readings of that kind."""
    rows = db.su.execute(
        "select secret_id, user_identity from meshaudit.audit_logs"
        " where secret_table = 'meshaudit.audit_logs' and secret_id ^@ %s order by id",
        [kind],
    )
    return [(what, who) for what, who in rows]


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
    # Each start is an entry, and how much was seen; none of them is an event that the reader gets for it.
    wait_until(lambda: len(_told(db, "stream")) == 6, what="the last stream's entry")
    told = _told(db, "stream")
    assert {who for _, who in told} == {"sees-one"}
    begun = [what for what, _ in told if what.endswith("begun")]
    assert begun[0] == "stream (after 0): begun"
    assert len(begun) == 3
    assert sum(int(what.split("): ")[1].split()[0]) for what, _ in told if what not in begun) >= 8


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
        self.status: object = None

    def run(self) -> None:
        while not self.done.is_set():
            headers = {**ALL, "Last-Event-ID": self.last}
            address = f"{self.url}/api/audit-logs/stream"
            # Less than the stream's own sign of life: what is lost is missed soon.
            with (
                contextlib.suppress(httpx.HTTPError),
                httpx.stream("GET", address, headers=headers, timeout=15) as answer,
            ):
                self.status = answer.status_code
                for event in events(answer.iter_lines()):
                    if "id" in event:
                        self.last = event["id"]
                    self.got += _keys([event])
                    if self.done.is_set():
                        return
            self.done.wait(0.05)


def test_exactly_once_over_restarts() -> None:
    """Of the sealer (killed), of Postgres (killed), and of this server; each while there is something to tell."""
    settings = {"wal_level": "logical", "fsync": "off"}
    with Server.temporary(settings=settings) as server, contextlib.ExitStack() as stack:
        with psycopg.connect(server.dsn(), autocommit=True) as conn:
            schema.install(conn)
            conn.execute(
                "create role authenticated nologin; create role gate login noinherit password 'x';"
                "grant authenticated to gate; select meshaudit.set_setting('gateway_roles', 'gate');"
                "select meshaudit.grant_auditor('sees-all')"
            )
            conn.execute("select meshaudit.arm_journal()")
        written: list[str] = []
        told = "select count(*) from meshaudit.audit_logs where secret_table = 'meshaudit.secrets'"

        def write(count: int) -> None:
            with psycopg.connect(server.dsn(), autocommit=True) as conn:
                for _ in range(count):
                    key = f"k{len(written)}"
                    conn.execute("select meshaudit.write_secret(%s, 'v')", [key])
                    written.append(key)

        def told_all(what: str) -> None:
            with psycopg.connect(server.dsn(), autocommit=True) as conn:
                assert conn.execute(told.encode()).fetchone() == (len(written),)
                wanted = "select id from meshaudit.audit_logs order by id"

                def missing() -> set[int]:
                    return {id for (id,) in conn.execute(wanted.encode())} - set(follower.got)

                try:
                    wait_until(lambda: not missing(), 60, what)
                except AssertionError as exc:
                    feed = conn.execute("select count(*), max(feed_id) from meshaudit.audit_feed").fetchone()
                    seen = (follower.is_alive(), follower.status, follower.last, sorted(missing()))
                    raise AssertionError(f"{exc}: {seen}, feed {feed}, sealer {sealer.poll()}") from exc

        dsn = psycopg.conninfo.make_conninfo(server.dsn(), user="gate", password="x")
        sealer = _sealer(server, stack)
        api = Api(dsn)
        stack.callback(api.stop)
        follower = _Follower(api.url)
        follower.start()
        stack.callback(follower.done.set)
        write(10)
        told_all("what the first sealer fed")
        write(10)
        sealer.kill()
        write(10)
        # While nobody is there to be connected to, a new sealer starts: it waits.
        server.kill()
        for path in ("/api/audit-logs", "/readyz"):
            assert problem(api.get(path, bearer("sees-all")), 503)["type"].endswith(":database")
        sealer = _sealer(server, stack)
        server.start()
        write(10)
        told_all("what was written over the crash")
        again = Api(dsn)
        stack.callback(again.stop)
        write(10)
        follower.url = again.url
        api.stop()
        write(10)
        told_all("what was written over the restart of the API")
        assert len(follower.got) == len(set(follower.got))


def _sealer(server: Server, stack: contextlib.ExitStack) -> "subprocess.Popen[bytes]":
    process = subprocess.Popen(
        [*PROGRAM, "seal", "--follow"],
        env=environment({"MESHAUDIT_DSN": server.dsn()}),
        stderr=subprocess.DEVNULL,
    )

    def end() -> None:
        process.kill()
        process.communicate()

    stack.callback(end)
    return process
