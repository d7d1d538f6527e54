"""kill -9, again and again, under load: what a client has received is in the log afterwards.

    make torture                    200 kills of the sealer, 20 of the whole server
    MESHAUDIT_TORTURE_SEALER, MESHAUDIT_TORTURE_SERVER, MESHAUDIT_TORTURE_CLIENTS, MESHAUDIT_TORTURE_SECONDS

Each client writes to a file, line by line: what it is about to ask for, what it received, and how its
transaction ended, each with the time. The server syncs to disk as in production; killing it loses what was
in its memory only.

Promised (docs/journal.md): from PostgreSQL 17 on, whatever was received has its entry. On 15 and 16 so has
what was committed; the rest may be missing if it was received less than WINDOW seconds before a crash.
"""

import contextlib
import multiprocessing
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg

from meshaudit import schema, sealer
from meshaudit.server import Server
from tests import servers
from tests.support import SETTINGS

WINDOW = 0.6  # three times wal_writer_delay
_SECRETS = 20
_DURABLE = {"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on", "checkpoint_timeout": "30s"}
_READ = "select meshaudit.read_secret(%s)"
_MANY = "select id from meshaudit.read_secrets(%s)"
Conn = psycopg.Connection[Any]


@dataclass
class Report:
    """What was done and what is wrong."""

    version: int = 0
    sealer_kills: int = 0
    server_kills: int = 0
    received: int = 0
    entries: int = 0
    in_window: int = 0
    oldest_lost: float = 0  # seconds from what was received to the crash that lost its record
    seconds: float = 0
    problems: list[str] = field(default_factory=list)


class Client(threading.Thread):
    """Makes accesses of all kinds until told to stop; reconnects whenever the server has gone."""

    def __init__(self, number: int, dsn: str, secrets: list[UUID], path: Path, stop: threading.Event) -> None:
        super().__init__(name=f"client {number}")
        self._number, self._dsn, self._secrets, self._stopping = number, dsn, secrets, stop
        self._file = path.open("w", buffering=1)
        self._count = 0
        self._random = random.Random(number)
        self.failure: Exception | None = None

    def run(self) -> None:
        try:
            self._run()
        except Exception as exc:
            self.failure = exc

    def _run(self) -> None:
        kinds: list[Callable[[Conn, str], None]] = [
            self._plain, self._undone, self._savepoint, self._read_only, self._many, self._denied,
        ]  # fmt: skip
        with self._file:
            while not self._stopping.is_set():
                with contextlib.suppress(psycopg.OperationalError), self._connection() as conn:
                    while not self._stopping.is_set():
                        self._count += 1
                        token = f"{self._number}.{self._count}"
                        conn.execute("select set_config('meshaudit.actor', %s, false)", [token])
                        self._random.choice(kinds)(conn, token)
                self._stopping.wait(0.05)

    @contextlib.contextmanager
    def _connection(self) -> Iterator[Conn]:
        with psycopg.connect(self._dsn, autocommit=True, connect_timeout=5) as conn:
            yield conn

    def _log(self, event: str, token: str, what: str = "") -> None:
        self._file.write(f"{time.monotonic():.6f} {event} {token} {what}\n")

    def _reads(self, conn: Conn, token: str) -> None:
        secret = self._random.choice(self._secrets)
        self._log("asks", token, str(secret))
        conn.execute(_READ, [secret])
        self._log("received", token, str(secret))

    def _plain(self, conn: Conn, token: str) -> None:
        self._reads(conn, token)
        self._log("granted", token)

    def _undone(self, conn: Conn, token: str) -> None:
        conn.execute(f"begin isolation level {self._level()}".encode())
        self._reads(conn, token)
        conn.execute("rollback")
        self._log("rolled_back", token)

    def _savepoint(self, conn: Conn, token: str) -> None:
        conn.execute("begin")
        conn.execute("savepoint a")
        self._reads(conn, token)
        conn.execute("rollback to a")
        conn.execute("commit")
        self._log("rolled_back", token)

    def _read_only(self, conn: Conn, token: str) -> None:
        conn.execute(f"begin isolation level {self._level()} read only".encode())
        self._reads(conn, token)
        end = self._random.choice(["commit", "rollback"])
        conn.execute(end.encode())
        if end == "commit":
            self._log("granted", token)

    def _many(self, conn: Conn, token: str) -> None:
        mode = self._random.choice(["", "read only"])
        end = self._random.choice(["commit", "rollback"])
        conn.execute(f"begin {mode}".encode())
        for secret in self._secrets:
            self._log("asks", token, str(secret))
        rows = conn.execute(_MANY, [self._secrets]).fetchall()
        for (secret,) in rows:
            self._log("received", token, str(secret))
        conn.execute(end.encode())
        if end == "commit" or not mode:
            self._log("granted" if end == "commit" else "rolled_back", token)

    def _denied(self, conn: Conn, token: str) -> None:
        what = uuid4()
        self._log("asks", token, str(what))
        try:
            conn.execute(_READ, [what])
        except psycopg.DatabaseError as error:
            if error.sqlstate != "MA004":
                raise
        self._log("received", token, str(what))

    def _level(self) -> str:
        return self._random.choice(["read committed", "repeatable read", "serializable"])


def _silent(event: str, **facts: Any) -> None:
    pass


def _seal(dsn: str) -> None:
    sealer.follow(dsn, stop=threading.Event(), interval=0.01, log=_silent)


class Ordeal:
    """A server under load, and what is done to it."""

    def __init__(self, server: Server, folder: Path, clients: int, deadline: float) -> None:
        self.server, self.folder, self.deadline = server, folder, deadline
        self.report = Report()
        self.crashes: list[tuple[float, float]] = []  # just before and just after
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["meshaudit.sealer"])
        secrets = self._prepare()
        self.stop = threading.Event()
        self.clients = [
            Client(n, server.dsn(user="app"), secrets, folder / f"client{n}.log", self.stop)
            for n in range(clients)
        ]

    def _prepare(self) -> list[UUID]:
        with self._superuser() as conn:
            self.report.version = conn.info.server_version // 10000
            schema.install(conn)
            conn.execute("create role app login in role meshaudit_client")
            # the bound on denials is not what is tried here
            conn.execute(
                "create or replace function meshaudit_private.bound_denials("
                "p_entries meshaudit_private.ledger[]) returns meshaudit_private.ledger[]"
                " language sql as 'select p_entries'"
            )
            rows = conn.execute(
                "select meshaudit.write_secret('s' || i, 'value') from generate_series(1, %s) i", [_SECRETS]
            ).fetchall()
            conn.execute("select meshaudit.arm_journal()")
            return [row[0] for row in rows]

    @contextlib.contextmanager
    def _superuser(self) -> Iterator[Conn]:
        with psycopg.connect(self.server.dsn(), autocommit=True) as conn:
            yield conn

    def _sealer(self) -> Any:
        process = self._context.Process(target=_seal, args=[self.server.dsn()], daemon=True)
        process.start()
        return process

    def kill_sealers(self, count: int) -> None:
        for number in range(count):
            if time.monotonic() > self.deadline:
                return
            process = self._sealer()
            time.sleep(random.uniform(0.02, 0.4))
            if number % 2:
                # its session in the middle of whatever it does; the process then reconnects, and is killed
                with self._superuser() as conn:
                    conn.execute(
                        "select pg_terminate_backend(pid) from pg_stat_activity"
                        " where application_name = 'meshaudit seal'"
                    )
            process.kill()
            process.join()
            self.report.sealer_kills += 1

    def kill_server(self, count: int) -> None:
        process = self._sealer()
        for _ in range(count):
            if time.monotonic() > self.deadline:
                break
            time.sleep(random.uniform(0.3, 1.5))
            before = time.monotonic()
            self.server.kill()
            self.crashes.append((before, time.monotonic()))
            self.server.start(tether=True)
            self.report.server_kills += 1
        time.sleep(0.5)
        process.kill()
        process.join()

    def judge(self) -> None:
        with self._superuser() as conn:
            sealer.drain(conn)
            bad = conn.execute("select * from meshaudit.verify()").fetchall()
            rows = conn.execute(
                "select claimed_identity, secret_id, outcome from meshaudit.audit_logs"
                " where claimed_identity is not null"
            ).fetchall()
        told = Counter((token, what) for token, what, _ in rows)
        outcomes = {(token, what): outcome for token, what, outcome in rows}
        problems = self.report.problems
        problems += [f"{client.name}: {client.failure!r}" for client in self.clients if client.failure]
        problems += [f"verify: {row}" for row in bad]
        problems += [f"told {n} times: {key}" for key, n in told.items() if n > 1]
        self.report.entries = len(rows)
        asked: set[tuple[str, str]] = set()
        for client in self.clients:
            problems += self._compare(client, asked, outcomes)
        problems += [f"nobody asked: {key}" for key in told if key not in asked]

    def _compare(
        self, client: Client, asked: set[tuple[str, str]], outcomes: dict[tuple[str, str], str]
    ) -> Iterator[str]:
        received: dict[tuple[str, str], float] = {}
        ends: dict[str, str] = {}
        for line in Path(client._file.name).read_text().splitlines():
            when, event, token, *what = line.split()
            if event == "asks":
                asked.add((token, what[0]))
            elif event == "received":
                received[token, what[0]] = float(when)
            else:
                ends[token] = event
        self.report.received += len(received)
        for key, at in received.items():
            end = ends.get(key[0])
            if key not in outcomes:
                ages = [max(before - at, 0.0) for before, after in self.crashes if after >= at]
                age = min(ages, default=float("inf"))
                self.report.oldest_lost = max(self.report.oldest_lost, age)
                if self.report.version < 17 and end != "granted" and age < WINDOW:
                    self.report.in_window += 1
                else:
                    yield f"missing: {key} {end}, received {age:.3f} s before a crash"
            elif end and outcomes[key] != end:
                yield f"{key} is {outcomes[key]}, was {end}"


def run(pg: str, *, sealer_kills: int, server_kills: int, clients: int = 8, seconds: float = 600) -> Report:
    """The ordeal on a server of its own, at most about so many seconds long."""
    started = time.monotonic()
    settings = SETTINGS | _DURABLE
    with Server.temporary(bindir=servers.bindir_for(pg), settings=settings) as server:
        folder = server.data / "clients"
        folder.mkdir()
        ordeal = Ordeal(server, folder, clients, started + seconds)
        try:
            for client in ordeal.clients:
                client.start()
            ordeal.kill_sealers(sealer_kills)
            ordeal.kill_server(server_kills)
        finally:
            ordeal.stop.set()
            for client in ordeal.clients:
                client.join(60)
        ordeal.judge()
    ordeal.report.seconds = round(time.monotonic() - started, 1)
    return ordeal.report


def _number(name: str, default: int) -> int:
    return int(os.environ.get(f"MESHAUDIT_TORTURE_{name}", default))


def main() -> int:
    report = run(
        os.environ.get("MESHAUDIT_TEST_PG") or "embedded",
        sealer_kills=_number("SEALER", 200),
        server_kills=_number("SERVER", 20),
        clients=_number("CLIENTS", 8),
        seconds=_number("SECONDS", 600),
    )
    for problem in report.problems[:20]:
        print(problem)
    print(
        f"PostgreSQL {report.version}: {report.sealer_kills} kills of the sealer,"
        f" {report.server_kills} of the server, {report.received} values received, {report.entries} entries,"
        f" {report.in_window} lost within the documented window (the oldest {report.oldest_lost:.3f} s before"
        f" its crash), {len(report.problems)} problems,"
        f" {report.seconds} s"
    )
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
