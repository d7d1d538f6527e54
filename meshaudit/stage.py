"""Where the demo is acted: a server of its own, people logged in to it, and what they can be told to do.

Nothing is staged: the logins connect over TCP with passwords, every statement shown is the one that was
sent, every number and every refusal is the server's, and `meshaudit verify` runs as a program of its own.
Invariant: no process and no directory outlives it, also on Ctrl-C.
"""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from meshaudit.narrator import Narrator
from meshaudit.server import Server

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SETTINGS = {"fsync": "off", "wal_level": "logical"}  # nothing here has to survive a power cut
_SHOWN = '"timestamp"::time(3), user_identity, operation, secret_id, ip_address, id'
_COLUMNS = ("timestamp", "user_identity", "operation", "secret_id", "ip_address", "id")


class Untrue(Exception):
    """A step did not go as the story says."""


def expect(true: object, told: str) -> None:
    """Raise Untrue unless it is so."""
    if not true:
        raise Untrue(told)


class Stage:
    """A running server, and a session for each login; `postgres` is there from the start."""

    def __init__(
        self, narrator: Narrator, server: Server, outside: Path, stack: contextlib.ExitStack
    ) -> None:
        self.narrator = narrator
        self.server = server
        self.checkpoint = outside / "checkpoint.json"
        self._stack = stack
        self._sessions: dict[str, psycopg.Connection[Any]] = {}
        self._passwords: dict[str, str] = {}
        self._sessions["postgres"] = self._connect(server.dsn())

    @classmethod
    @contextlib.contextmanager
    def open(cls, narrator: Narrator) -> Iterator[Self]:
        """Everything that is needed, and its clearing up."""
        handlers = {number: signal.getsignal(number) for number in _SIGNALS}
        try:
            with contextlib.ExitStack() as stack:
                outside = stack.enter_context(tempfile.TemporaryDirectory(prefix="meshaudit-outside-"))
                password = secrets.token_urlsafe(18)
                server = stack.enter_context(Server.temporary(settings=_SETTINGS, password=password))
                # Entered last, left first: nothing interrupts the clearing up.
                stack.callback(_ignore_signals)
                yield cls(narrator, server, Path(outside), stack)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def ask(self, who: str, statement: str, *, silent: bool = False) -> Any:
        """Run a statement and show both; gives its one value, or how many rows it changed."""
        self.narrator.prompt(_prompt(who), f"{statement};")
        cursor = self._sessions[who].execute(statement.encode())
        if cursor.description is None:
            return cursor.rowcount
        row = cursor.fetchone()
        value = _shown(row[0]) if row else None
        if not silent:
            self.narrator.answer(value)
        return value

    def refuse(self, who: str, statement: str, state: str) -> None:
        """Run a statement that must fail in that way."""
        self.narrator.prompt(_prompt(who), f"{statement};")
        try:
            self._sessions[who].execute(statement.encode())
        except psycopg.Error as exc:
            expect(exc.sqlstate == state, f"refused with {state}, not {exc.sqlstate}: {exc}")
            self.narrator.refused(state, exc.diag.message_primary or "")
        else:
            raise Untrue(f"{who} is refused")

    def search(self, filters: str, expected: list[tuple[str, str]]) -> list[tuple[Any, ...]]:
        """Search as the auditor and show the rows; they must be those, newest first."""
        statement = f"select {_SHOWN}\nfrom meshaudit.search_audit_logs({filters})"
        self.narrator.prompt("auditor=>", f"{statement};")
        rows = self.rows("auditor", statement)
        self.narrator.table(_COLUMNS, rows)
        expect([(row[1], row[2]) for row in rows] == expected, "the search finds exactly what was done")
        return rows

    def program(self, args: list[str], code: int) -> str:
        """Run the real `meshaudit`, as the auditor, and show what it says."""
        self.narrator.prompt("$", " ".join(["meshaudit", *(Path(a).name if "/" in a else a for a in args)]))
        dsn = make_conninfo(self.server.dsn(user="auditor"), password=self._passwords["auditor"])
        # Found from here too when it is not installed.
        path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        env = os.environ | {"MESHAUDIT_DSN": dsn, "PYTHONPATH": path}
        command = [sys.executable, "-m", "meshaudit", *args]
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        text = (done.stdout + done.stderr).strip()
        for line in text.splitlines():
            self.narrator.answer(line)
        self.narrator.answer(f"exit code {done.returncode}")
        expect(done.returncode == code, f"exit code {code}")
        return text

    def login(self, name: str, options: str) -> None:
        """Make a role with a password, and log in as it."""
        self._passwords[name] = secrets.token_urlsafe(18)
        create = sql.SQL("create role {} login password {} {}").format(
            sql.Identifier(name), self._passwords[name], sql.SQL(options)
        )
        self._sessions["postgres"].execute(create)
        shown = f"create role {name} login password '***' {options}".strip()
        self.narrator.prompt(_prompt("postgres"), f"{shown};")
        dsn = make_conninfo(self.server.dsn(user=name), password=self._passwords[name])
        self._sessions[name] = self._connect(dsn)

    def _connect(self, dsn: str) -> psycopg.Connection[Any]:
        conn = psycopg.connect(dsn, autocommit=True, options="-c timezone=UTC")
        self._stack.callback(conn.close)
        return conn

    def rows(self, who: str, statement: str) -> list[tuple[Any, ...]]:
        """Ask without showing it."""
        return self._sessions[who].execute(statement.encode()).fetchall()

    def value(self, who: str, statement: str) -> Any:
        """Ask for one value without showing it."""
        return self.rows(who, statement)[0][0]


def _ignore_signals() -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _prompt(who: str) -> str:
    return f"{who}{'=#' if who == 'postgres' else '=>'}"


def _shown(value: Any) -> Any:
    return f"\\x{value.hex()}" if isinstance(value, bytes) else value
