"""Webhooks: a real receiver that verifies, duplicates, retries, and receivers that are dead or hang."""

import base64
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import psycopg
import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from meshaudit import webhooks
from tests.journal_support import Conn, one
from tests.support import Db, wait_until
from tests.test_feed import write
from tests.test_sealer import following


class Receiver:
    """Verifies and keeps each message once, by its webhook-id; answers what it is told to."""

    def __init__(self) -> None:
        self.secret = ""
        self.answers: list[int] = []
        self.requests = 0
        self.refused: list[str] = []
        self.messages: dict[str, Any] = {}
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.requests += 1
                try:
                    told = Webhook(receiver.secret).verify(body, dict(self.headers.items()))
                    receiver.messages.setdefault(self.headers["webhook-id"], told)
                    status = receiver.answers.pop(0) if receiver.answers else 204
                except WebhookVerificationError as exc:
                    receiver.refused.append(str(exc))
                    status = 401
                self.send_response(status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def has(self, messages: int) -> bool:
        return len(self.messages) == messages

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


def add(db: Db, url: str) -> str:
    return str(one(db.su, "select signing_secret from meshaudit.add_webhook(%s)", url))


def due_now(conn: Conn) -> None:
    conn.execute("update meshaudit_private.alert_outbox set next_at = now() where next_at is not null")


def test_a_receiver_verifies_and_survives_duplicates(db: Db, receiver: Receiver) -> None:
    receiver.secret = add(db, receiver.url)
    one(db.su, "select meshaudit.test_alert()")
    receiver.answers = [500, 503]
    assert webhooks.send_due(db.su) == (0, 1)
    assert webhooks.send_due(db.su) == (0, 0)  # not before its time
    waits = "select next_at - now() > interval '3 s' from meshaudit_private.alert_outbox"
    assert one(db.su, waits)
    for expected in ((0, 1), (1, 0), (0, 0)):
        due_now(db.su)
        assert webhooks.send_due(db.su) == expected
    assert receiver.requests == 3
    assert receiver.refused == []
    (message,) = receiver.messages.values()
    assert message["type"] == "meshaudit.alert"
    assert message["data"]["rule"] == "test"
    assert message["data"]["alert_id"] == 1


def test_a_wrong_secret_is_refused(db: Db, receiver: Receiver) -> None:
    add(db, receiver.url)
    receiver.secret = "whsec_" + "A" * 32
    one(db.su, "select meshaudit.test_alert()")
    assert webhooks.send_due(db.su) == (0, 1)
    assert receiver.refused
    assert one(db.su, "select last_error from meshaudit.webhooks()") == "HTTP 401"


def test_a_sender_that_dies_leaves_it_to_the_next(db: Db, receiver: Receiver) -> None:
    receiver.secret = add(db, receiver.url)
    one(db.su, "select meshaudit.test_alert()")
    assert db.su.execute("select message_id from meshaudit.take_deliveries()").rowcount == 1
    assert webhooks.send_due(db.su) == (0, 0)
    due_now(db.su)  # the lease is over
    assert webhooks.send_due(db.su) == (1, 0)


def test_it_gives_up_and_says_so(db: Db) -> None:
    add(db, "http://127.0.0.1:1/")
    one(db.su, "select meshaudit.test_alert()")
    db.su.execute("update meshaudit_private.alert_outbox set attempts = 19")
    assert webhooks.send_due(db.su) == (0, 1)
    due_now(db.su)
    assert webhooks.send_due(db.su) == (0, 0)
    ok_, detail = db.su.execute(
        "select ok, detail from meshaudit.status() where \"check\" = 'alerts'"
    ).fetchall()[0]
    assert not ok_
    assert "ConnectError" in detail
    assert detail.startswith("1 given up")


def test_a_hanging_receiver_costs_nothing(db: Db) -> None:
    """It accepts and never answers: accesses, sealing and feeding go on meanwhile."""
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        add(db, f"http://127.0.0.1:{hanging.getsockname()[1]}/")
        one(db.su, "select meshaudit.test_alert()")
        with following(db.dsn()):
            accepted, _ = hanging.accept()
            secret = write(db.su)
            start = time.monotonic()
            for _ in range(20):
                one(db.su, "select meshaudit.read_secret(%s)", secret)
            assert time.monotonic() - start < 2
            count = "select count(*) >= 21 from meshaudit.audit_feed where kind = 'entry'"
            wait_until(lambda: one(db.su, count), 5)
            held = (
                "select from pg_locks l join pg_stat_activity a using (pid)"
                " where application_name = 'meshaudit alerts'"
            )
            assert db.su.execute(held.encode()).rowcount == 0
            accepted.close()


@pytest.fixture
def dripping() -> Iterator[str]:
    """Answers for ever, a header at a time, each long before a read times out."""
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip(conn: socket.socket) -> None:
            with conn, contextlib.suppress(OSError):
                conn.sendall(b"HTTP/1.1 204 No Content\r\n")
                while not stop.wait(0.05):
                    conn.sendall(b"x: y\r\n")

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=drip, args=(server.accept()[0],), daemon=True).start()

        accepting = threading.Thread(target=accept)
        accepting.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/"
        stop.set()
        server.shutdown(socket.SHUT_RDWR)
        accepting.join()


def test_a_delivery_has_a_deadline(dripping: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "_TIMEOUT", 0.5)
    start = time.monotonic()
    secret = "whsec_" + base64.b64encode(bytes(24)).decode()
    assert webhooks.post(dripping, secret, "msg_1", {}) == "no answer within 0.5 s"
    assert time.monotonic() - start < 3


def test_a_slow_receiver_keeps_no_other_waiting(
    db: Db, receiver: Receiver, dripping: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "_TIMEOUT", 60)
    for _ in range(3):
        add(db, dripping)
    receiver.secret = add(db, receiver.url)
    with following(db.dsn()):
        for number in range(1, 6):
            one(db.su, "select meshaudit.test_alert()")
            wait_until(partial(receiver.has, number), 5)
        # One at a time to each; that the fifth has arrived is written down after its answer.
        wait_until(
            lambda: (
                one(db.su, "select count(*) from meshaudit_private.alert_outbox where ended_at is not null")
                == 5
            )
        )
        taken = "select count(*), count(distinct webhook_id) from meshaudit_private.alert_outbox where attempts > 0 and ended_at is null"
        assert db.su.execute(taken).fetchall() == [(3, 3)]


def test_so_many_at_once_at_most(
    db: Db, receiver: Receiver, dripping: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "_TIMEOUT", 0.5)
    monkeypatch.setattr(webhooks, "_AT_ONCE", 2)
    for _ in range(4):
        add(db, dripping)
    receiver.secret = add(db, receiver.url)
    one(db.su, "select meshaudit.test_alert()")
    one(db.su, "select meshaudit.test_alert()")
    senders = []

    def post(*given: Any) -> str | None:
        senders.append(sum(t.name == webhooks.SENDER for t in threading.enumerate()))
        return genuine(*given)

    genuine = webhooks.post
    monkeypatch.setattr(webhooks, "post", post)
    assert webhooks.send_due(db.su) == (2, 8)
    assert max(senders) == 2


def test_taking_some_of_each(db: Db) -> None:
    for number in range(3):
        add(db, f"https://example.com/{number}")
    for _ in range(3):
        one(db.su, "select meshaudit.test_alert()")

    def taken(call: str) -> list[int]:
        rows = db.su.execute(f"select webhook_id from meshaudit.take_deliveries({call}) order by 1".encode())
        return [row[0] for row in rows]

    assert taken("10, per_webhook => 1, busy => '{2}'") == [1, 3]
    assert taken("1, per_webhook => 1, busy => '{1,3}'") == [2]
    assert taken("0") == []
    assert taken("") == [1, 1, 2, 2, 3, 3]


def test_the_worker_sends(db: Db, receiver: Receiver) -> None:
    receiver.secret = add(db, receiver.url)
    with following(db.dsn()) as events:
        one(db.su, "select meshaudit.test_alert()")
        wait_until(lambda: receiver.messages)
        wait_until(lambda: "alerts sent" in [name for name, _ in events])


def test_secrets_are_not_for_auditors(any_db: Db) -> None:
    add(any_db, "https://example.com/hook")
    role = any_db.role("auditor", "meshaudit_auditor", "pg_read_all_data")
    any_db.su.execute("select meshaudit.grant_auditor(%s)", [role])
    auditor = any_db.connect(role)
    assert auditor.execute("select * from meshaudit_private.webhooks").fetchall() == []
    for call in ("meshaudit.take_deliveries()", "meshaudit.webhooks()"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            auditor.execute(f"select * from {call}".encode())


def test_bad_webhooks_are_refused(db: Db) -> None:
    for url, secret in (
        ("http://example.com/", None),
        ("https://", None),
        ("file:///etc/passwd", None),
        ("http://localhost.evil.example/", None),
        ("http://127.0.0.1@evil.example/", None),
        ("https://example.com/a\nb", None),
        ("https://exam\tple.com/", None),
        ("https://example.com/" + "x" * 2000, "whsec_" + "s" * 32),
        ("https://example.com/", "short"),
        ("https://example.com/", "whsec_" + "A" * 33),
        ("https://example.com/", "whsec_" + "A" * 34 + "="),
        ("https://example.com/", "whsec_" + "A" * 28 + "===="),
        ("https://example.com/", "whsec_" + "A" * 88),
        ("https://example.com/", "whsec_" + "A" * 31 + "\n"),
    ):
        with pytest.raises(psycopg.Error) as refused:
            db.su.execute("select meshaudit.add_webhook(%s, %s)", [url, secret])
        assert refused.value.sqlstate == "MA005", (url, secret)
        assert refused.value.diag.message_hint
        diag = refused.value.diag
        told = f"{diag.message_primary}{diag.message_detail}{diag.message_hint}{diag.context}"
        assert secret is None or secret not in told
    assert db.su.execute("select from meshaudit.webhooks()").rowcount == 0
    for size in (24, 25, 26, 64):
        secret = "whsec_" + base64.b64encode(bytes(size)).decode()
        db.su.execute("select meshaudit.add_webhook('https://example.com/', %s)", [secret])


BROKEN = ("https://xn--/", "https://example.com:99999/", "https://[::1/", "https://exa\x00mple/")


def test_whatever_is_wrong_with_one_is_its_deliverys_error(db: Db, receiver: Receiver) -> None:
    """Also with rows that add_webhook() would refuse today."""
    insert = "insert into meshaudit_private.webhooks (url, secret, added_by) values (%s, %s, 'test')"
    good = "whsec_" + base64.b64encode(bytes(24)).decode()
    for url, secret in (*((url, good) for url in BROKEN[:3]), ("https://example.com/", "whsec_" + "A" * 33)):
        db.su.execute(insert, [url, secret])
    receiver.secret = add(db, receiver.url)
    one(db.su, "select meshaudit.test_alert()")
    assert webhooks.send_due(db.su) == (1, 4)
    assert len(receiver.messages) == 1
    errors = [row[0] for row in db.su.execute("select last_error from meshaudit.webhooks()").fetchall()]
    assert all(errors[:4]), errors
    assert errors[4] is None


@pytest.mark.parametrize("url", BROKEN)
def test_post_raises_nothing(url: str) -> None:
    said = webhooks.post(url, "whsec_" + base64.b64encode(bytes(24)).decode(), "msg_1", {"text": "\ud800"})
    assert said
    assert "\x00" not in said
    said.encode()


def test_the_thread_outlives_anything(db: Db, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    receiver.secret = add(db, receiver.url)
    genuine = webhooks.available
    raised: list[bool] = []

    def failing() -> bool:
        if not raised:
            raised.append(True)
            raise ZeroDivisionError("what nobody thought of")
        return genuine()

    monkeypatch.setattr(webhooks, "available", failing)
    with following(db.dsn()) as events:
        one(db.su, "select meshaudit.test_alert()")
        wait_until(lambda: receiver.messages)
    (told,) = [facts for name, facts in events if name == "alerts not sent"]
    assert "ZeroDivisionError" in told["error"]


def test_status_tells_what_nobody_sends(db: Db) -> None:
    check = "select ok, detail from meshaudit.status() where \"check\" = 'alerts'"
    add(db, "https://example.com/")
    one(db.su, "select meshaudit.test_alert()")
    assert db.su.execute(check).fetchall() == [(True, "no delivery is stuck")]
    db.su.execute("update meshaudit_private.alert_outbox set next_at = now() - interval '6 minutes'")
    ((fine, detail),) = db.su.execute(check).fetchall()
    assert not fine
    assert detail.startswith("1 deliveries overdue")
    assert "meshaudit seal --follow" in detail
