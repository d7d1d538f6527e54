"""Behind PgBouncer in transaction mode, where each transaction may meet another backend."""

import json
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from meshaudit import cluster, osuser
from meshaudit.server import _free_port
from tests.journal_support import READ, READ_MANY, Conn, Journal, seal
from tests.support import PASSWORD, Db, unique, wait_until

CLIENTS, ROUNDS = 20, 30
CONFIG = """
[databases]
* = host={host} port={port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = trust
auth_file = {users}
pool_mode = transaction
default_pool_size = 6
max_client_conn = 100
max_prepared_statements = 0
"""


@pytest.fixture
def bouncer(db: Db) -> Iterator[tuple[Journal, str]]:
    """An armed journal, and a DSN through PgBouncer as a gateway's login."""
    program = shutil.which("pgbouncer") or shutil.which("/usr/sbin/pgbouncer")
    if program is None:
        pytest.skip("pgbouncer is not installed")
    where = conninfo_to_dict(db.pg.superuser_dsn)
    login = db.role("gateway", "meshaudit_client")
    db.connect().execute("select meshaudit.set_setting('gateway_roles', %s)", [login])
    folder = cluster.temporary_dir()
    user = osuser.service_user(None)
    port = _free_port()
    users, config = folder / "users.txt", folder / "pgbouncer.ini"
    users.write_text(f'"{login}" "{PASSWORD}"\n')
    text = CONFIG.format(host=where.get("host"), port=where.get("port", 5432), listen=port, users=users)
    if "1.18" in subprocess.run([program, "--version"], capture_output=True, text=True).stdout:
        text = text.replace("max_prepared_statements = 0\n", "")  # it came with 1.21
    config.write_text(text)
    for path in (users, config):
        path.chmod(0o644)
    process: subprocess.Popen[str] = subprocess.Popen(  # type: ignore[call-overload]
        [program, str(config)], stderr=subprocess.PIPE, text=True, **osuser.popen_args(user)
    )
    try:
        dsn = make_conninfo(host="127.0.0.1", port=port, dbname=db.name, user=login, password=PASSWORD)
        wait_until(lambda: _answers(dsn, process), what="pgbouncer")
        yield Journal(db), dsn
    finally:
        process.terminate()
        process.communicate(timeout=10)
        shutil.rmtree(folder, ignore_errors=True)


def _answers(dsn: str, process: subprocess.Popen[str]) -> bool:
    assert process.poll() is None, process.communicate()[1]
    try:
        psycopg.connect(dsn, connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True


class Client(threading.Thread):
    """A user behind the gateway; each transaction says who it is, as PostgREST does."""

    def __init__(self, number: int, dsn: str, secrets: list[UUID]) -> None:
        super().__init__()
        self.me = f"user {number}"
        self._dsn, self._secrets, self._random = dsn, secrets, random.Random(number)
        # (request, secret): outcome
        self.received: dict[tuple[str, str], str] = {}
        self.failure: Exception | None = None

    def run(self) -> None:
        try:
            conn = self._connect()
            for number in range(ROUNDS):
                conn = self._turn(conn, f"{self.me} request {number}")
            conn.close()
        except Exception as exc:
            self.failure = exc

    def _connect(self) -> Conn:
        return psycopg.connect(self._dsn, autocommit=True, prepare_threshold=None)

    def _turn(self, conn: Conn, request: str) -> Conn:
        kind = self._random.choice(
            ["committed", "undone", "read only", "many", "denied", "prepared", "killed", "savepoint"]
        )
        conn.execute("begin read only" if kind in ("read only", "many") else "begin")
        headers = {"x-request-id": request, "cf-connecting-ip": "203.0.113.7"}
        conn.execute(
            "select set_config('request.jwt.claims', %s, true), set_config('request.headers', %s, true)",
            [json.dumps({"sub": self.me}), json.dumps(headers)],
        )
        if kind == "denied":
            what = uuid4()
            with pytest.raises(psycopg.Error, match="no such secret"):
                conn.execute(READ, [what])
            conn.execute("rollback")
            self.received[request, str(what)] = "denied"
            return conn
        if kind == "many":
            rows = conn.execute(READ_MANY, [self._secrets]).fetchall()
            conn.execute(self._random.choice([b"commit", b"rollback"]))
            self.received |= {(request, str(secret)): "granted" for secret, _ in rows}
            return conn
        if kind == "savepoint":
            conn.execute("savepoint a")
        secret = self._random.choice(self._secrets)
        conn.execute(READ, [secret])
        outcome = "granted" if kind in ("committed", "read only") else "rolled_back"
        self.received[request, str(secret)] = outcome
        return self._finish(conn, kind)

    def _finish(self, conn: Conn, kind: str) -> Conn:
        if kind == "committed":
            conn.execute("commit")
        elif kind == "savepoint":
            conn.execute("rollback to a")
            conn.execute("commit")
        elif kind == "prepared":
            gid = unique("gid")
            conn.execute(sql.SQL("prepare transaction {}").format(gid))
            time.sleep(self._random.random() / 20)
            conn.execute(sql.SQL("rollback prepared {}").format(gid))
        elif kind == "killed":
            with pytest.raises(psycopg.OperationalError):
                conn.execute("select pg_terminate_backend(pg_backend_pid())")
            conn.close()
            return self._connect()
        else:
            conn.execute("rollback")
        return conn


def test_twenty_clients(bouncer: tuple[Journal, str]) -> None:
    journal, dsn = bouncer
    clients = [Client(number, dsn, journal.many(5)) for number in range(CLIENTS)]
    for client in clients:
        client.start()
    while any(client.is_alive() for client in clients):
        seal(journal.operator)
    for client in clients:
        assert client.failure is None, repr(client.failure)
    journal.seal()
    rows: list[tuple[Any, ...]] = journal.db.su.execute(
        "select request_id, secret_id, outcome, user_identity, identity_source, host(ip_address)"
        " from meshaudit.audit_logs where request_id is not null"
    ).fetchall()
    told = {(request, secret): outcome for request, secret, outcome, *_ in rows}
    expected = {key: outcome for client in clients for key, outcome in client.received.items()}
    assert told == expected
    assert len(rows) == len(expected)
    assert all(request.startswith(f"{who} request") for request, _, _, who, *_ in rows)
    assert {tuple(row[4:]) for row in rows} == {("jwt", "203.0.113.7")}
    assert journal.db.su.execute("select * from meshaudit.verify()").fetchall() == []


def test_one_clients_identity_does_not_stay_behind(bouncer: tuple[Journal, str]) -> None:
    journal, dsn = bouncer
    with psycopg.connect(dsn, autocommit=True, prepare_threshold=None) as conn:
        login = conn.info.user
        for _ in range(8):
            conn.execute("begin read only")
            conn.execute("select set_config('request.jwt.claims', '{\"sub\": \"somebody\"}', true)")
            conn.execute(READ, [journal.secret])
            conn.execute("commit")
            conn.execute("begin read only")
            conn.execute(READ, [journal.secret])
            conn.execute("commit")
    journal.seal()
    rows = journal.db.su.execute(
        'select user_identity from meshaudit.audit_logs where id > %s order by "timestamp"', [journal.start]
    )
    assert [row[0] for row in rows] == ["somebody", login] * 8
