"""With pseudonyms in the log, every way of reading it finds a person as a search does, and tells no more."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.api_support import Api, bearer, events, gateway, serving
from tests.support import Db, wait_until
from tests.test_follow import begun, entries, program

ALL, ONE = bearer("sees-all"), bearer("sees-one")
NAMES = "select meshaudit.reading_names(%s, %s)"


class Log:
    """A log with pseudonyms, and services that write to it in somebody's name."""

    def __init__(self, db: Db) -> None:
        self.db, self.login = db, gateway(db)
        self.service = db.role("service", "meshaudit_client")
        setting = f"authenticator,{self.login},{self.service}"
        db.su.execute("select meshaudit.set_setting('gateway_roles', %s)", [setting])
        db.su.execute(
            "select meshaudit.grant_auditor('sees-all'), meshaudit.grant_auditor('sees-one', 'one')"
        )
        db.su.execute("select meshaudit.set_setting('erasable_identities', 'on')")

    def write(self, who: str, key: str, scope: str, level: str = "read committed") -> None:
        with self.db.connect(self.service, autocommit=False) as conn:
            conn.execute("set transaction isolation level " + level)
            conn.execute("select set_config('request.jwt.claims', %s, true)", [json.dumps({"sub": who})])
            conn.execute("select meshaudit.write_secret(%s, 'v', %s)", [key, scope])

    def told(self, like: str) -> list[str]:
        rows = self.db.su.execute(
            "select secret_id from meshaudit.audit_logs where secret_table = 'meshaudit.audit_logs'"
            " and secret_id like %s order by id",
            [like],
        )
        return [what for (what,) in rows]

    def named(self, who: str) -> list[str]:
        rows = self.db.su.execute(
            "select pseudonym from meshaudit_private.identities where identity = %s order by made_at", [who]
        )
        return [name for (name,) in rows]


@pytest.fixture
def log(db: Db) -> Log:
    return Log(db)


@pytest.fixture
def api(log: Log) -> Iterator[Api]:
    with serving(log.db, login=log.login) as running:
        yield running


def value(conn: psycopg.Connection[Any], query: str, *params: Any) -> Any:
    row = conn.execute(query.encode(), params).fetchone()
    assert row is not None
    return row[0]


def test_an_export_finds_whom_a_search_finds(log: Log, api: Api) -> None:
    log.write("carol", "a", "one")
    log.write("carol", "b", "two", "serializable")
    log.write("dave", "c", "one")
    first, second = log.named("carol")
    for who, names in ((ALL, {first, second}), (ONE, {first})):
        for asked in ("carol", *names):
            found = api.get("/api/audit-logs", who, user_identity=asked).json()["items"]
            assert {item["user_identity"] for item in found} == ({asked} if asked in names else names)
            lines = api.get("/api/audit-logs/export", who, user_identity=asked, format="jsonl").text
            assert [json.loads(line) for line in lines.splitlines()] == found
    assert api.get("/api/audit-logs/export", ONE, user_identity=second, format="jsonl").text == ""
    # by pseudonyms, as a search is told
    assert log.told("export%carol%") == []
    assert len(log.told(f"export (jsonl, user_identity {first} {second}): begun")) == 2


def test_a_stream_finds_who_comes_later(log: Log, api: Api) -> None:
    """A pseudonym that is made while the stream is open counts."""
    with api.client.stream("GET", "/api/audit-logs/stream?user_identity=carol", headers=ONE) as answer:
        lines = events(answer.iter_lines())
        next(lines)
        for number, level in enumerate(("read committed", "serializable")):
            log.write("dave", f"d{number}", "one")
            log.write("carol", f"c{number}", "two")
            log.write("carol", f"c{number}", "one", level)
            log.db.su.execute("select meshaudit.feed()")
            event = next(event for event in lines if event.get("event") == "entry")
            entry = json.loads(event["data"])
            assert entry["user_identity"] in log.named("carol")
            assert entry["scope"] == "one"
    assert len(log.named("carol")) == 2
    # It began once, and its looks are none.
    assert log.told("stream%begun") == ["stream (user_identity (without a pseudonym)): begun"]


def test_logs_follow_finds_who_comes_later(log: Log, tmp_path: Path) -> None:
    auditor, out = log.db.role("auditor"), tmp_path / "followed"
    log.db.su.execute("select meshaudit.grant_auditor(%s, 'one')", [auditor])
    log.write("carol", "before", "one")
    log.db.su.execute("select meshaudit.feed()")
    args = ("logs", "--follow", "--format", "json", "--user-identity", "carol")
    with program(log.db.dsn(auditor), out, *args):
        wait_until(lambda: begun(out), 20, "the follower")
        log.write("carol", "a", "one")
        log.write("dave", "b", "one")
        log.write("carol", "c", "one", "serializable")
        log.db.su.execute("select meshaudit.feed()")
        wait_until(lambda: len(entries(out)) == 2, 20, "carol's entries")
    assert [entry["user_identity"] for entry in entries(out)] == log.named("carol")
    assert log.told("stream%") == [f"stream (logs --follow, user_identity {log.named('carol')[0]}): begun"]


def test_names_are_told_as_a_search_tells_them(log: Log) -> None:
    """To who has said what for, of entries that it may see."""
    log.write("carol", "a", "one")
    log.write("carol", "b", "two", "serializable")
    first, second = log.named("carol")
    conns = {}
    for scope in ("*", "one", "three"):
        auditor = log.db.role("auditor")
        log.db.su.execute("select meshaudit.grant_auditor(%s, %s)", [auditor, scope])
        conns[scope] = log.db.connect(auditor)
    note = "select meshaudit.begin_reading('stream', user_identity => %s)"
    tickets = {scope: value(conn, note, "carol") for scope, conn in conns.items()}
    assert len(log.told("stream%")) == 3
    assert value(conns["*"], NAMES, "carol", tickets["*"]) == ["carol", first, second]
    assert value(conns["one"], NAMES, "carol", tickets["one"]) == ["carol", first]
    assert value(conns["three"], NAMES, "carol", tickets["three"]) == ["carol"]
    # a ticket is of one reader, for one identity
    for who, ticket in (("carol", tickets["*"]), ("dave", tickets["one"]), ("carol", "x"), ("carol", None)):
        with pytest.raises(psycopg.Error) as caught:
            conns["one"].execute(NAMES, [who, ticket])
        assert caught.value.sqlstate == "MA005"
