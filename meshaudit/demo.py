"""The whole story on a Postgres of its own: secrets used, accesses searched, a tampering caught.

Nothing is staged: the logins connect over TCP with passwords, every statement shown is the one that was
sent, every number and every refusal is the server's, and `meshaudit verify` runs as a program of its own.
Invariants: it succeeds only if each step went as told; no process and no directory outlives it.
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
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from meshaudit import db, migrate
from meshaudit.errors import MeshauditError, translate
from meshaudit.narrator import Narrator
from meshaudit.server import Server

# Ciphertext, as an application would store it; the log must never hold it.
_STRIPE = "\\x9d41c7e20b5a6f83d0"
_DEPLOY = "\\x1f7733ab902e64c8"
_ROTATED = "\\x60b8e5d4417c29fa"
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SETTINGS = {"fsync": "off", "wal_level": "logical"}  # nothing here has to survive a power cut
_SHOWN = '"timestamp"::time(3), user_identity, operation, secret_id, ip_address, id'
_COLUMNS = ("timestamp", "user_identity", "operation", "secret_id", "ip_address", "id")


class Untrue(Exception):
    """A step did not go as the story says."""


def run() -> int:
    """Tell it; 0 if every step went as told, else 1."""
    narrator = Narrator()
    db.forget_other_servers()
    try:
        with _stage(narrator) as story:
            story.tell()
    except BrokenPipeError:
        raise
    except (Untrue, MeshauditError, psycopg.Error, OSError) as exc:
        exc = translate(exc) if isinstance(exc, psycopg.Error) else exc
        narrator.alarm(f"{narrator.heading}, did not go as told: {' '.join(str(exc).split())}")
        return 1
    return 0


@contextlib.contextmanager
def _stage(narrator: Narrator) -> Iterator["Story"]:
    narrator.title("meshaudit demo: who read which secret, and how do we know that the record is true?")
    narrator.step("A Postgres of its own, with meshaudit in it")
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        with contextlib.ExitStack() as stack:
            outside = stack.enter_context(tempfile.TemporaryDirectory(prefix="meshaudit-outside-"))
            password = secrets.token_urlsafe(18)
            server = stack.enter_context(Server.temporary(settings=_SETTINGS, password=password))
            # Entered last, left first: nothing interrupts the clearing up.
            stack.callback(_ignore_signals)
            yield Story(narrator, server, Path(outside), stack)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _ignore_signals() -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _expect(true: object, told: str) -> None:
    if not true:
        raise Untrue(told)


class Story:
    """The steps, in order; each checks that what it tells is so."""

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

    def tell(self) -> None:
        self.install()
        self.use_secrets()
        self.audit()
        self.take_checkpoint()
        self.obey()
        self.tamper()
        self.catch()
        self.conclude()

    def install(self) -> None:
        applied = migrate.migrate(self.server.dsn())
        _expect(applied, "migrations were applied")
        version = self._value("postgres", "select split_part(version(), ' on ', 1)")
        login = self._value(
            "postgres", "select string_agg(distinct auth_method, ', ') from pg_hba_file_rules"
        )
        self.narrator.say(f"{version} on {self.server.host}; every login by {login}.")
        self.narrator.say(f"Migrations applied: {', '.join(applied)}.")

    def use_secrets(self) -> None:
        tell = self.narrator
        tell.step("Three logins: two services, and one without any grant")
        for name in ("billing", "deployer"):
            self._login(name, "in role meshaudit_client")
        self._login("intern", "")
        tell.say("The services write and read; the values are ciphertext to meshaudit.")
        write = "select meshaudit.write_secret('{}', '{}', '{}')"
        self.stripe = self.ask("billing", write.format("stripe-key", _STRIPE, "payments"))
        read = f"select meshaudit.read_secret('{self.stripe}')"
        _expect(self.ask("billing", read) == _STRIPE, "billing reads what it wrote")
        token = self.ask("deployer", write.format("deploy-token", _DEPLOY, "platform"))
        again = self.ask("deployer", write.format("deploy-token", _ROTATED, "platform"))
        _expect(again == token, "a new value keeps its secret's id")
        by_key = "select meshaudit.read_secret_by_key('deploy-token', 'platform')"
        _expect(self.ask("deployer", by_key) == _ROTATED, "deployer reads the new value")

        tell.say("The intern is refused. That reveals nothing, and so leaves no entry.")
        self.refuse("intern", read, "42501")
        self.refuse("intern", "select value from meshaudit_private.secrets", "42501")

        tell.say("And then deployer, which may, reads the key of billing. Remember this one.")
        self.before = self._value("postgres", "select clock_timestamp()::text")
        _expect(self.ask("deployer", read) == _STRIPE, "deployer reads the key")
        self.after = self._value("postgres", "select clock_timestamp()::text")

    def audit(self) -> None:
        tell = self.narrator
        tell.step("An auditor searches")
        self._login("auditor", "")
        self.ask("postgres", "select meshaudit.grant_auditor('auditor')", silent=True)
        tell.say("One secret:")
        theirs = [("deployer", "read"), ("billing", "read"), ("billing", "create")]
        self.search(f"secret_id => '{self.stripe}'", theirs)
        tell.say("A range of time, the seconds around that read:")
        self.search(f"from_time => '{self.before}', to_time => '{self.after}'", [("deployer", "read")])
        tell.say("One identity:")
        found = self.search(
            "user_identity => 'deployer'",
            [("deployer", kind) for kind in ("read", "read", "update", "create")],
        )
        self.target = found[0][5]
        tell.say("One type of access (the grant to the auditor is an entry too):")
        writers = [
            ("postgres", "create"),
            ("deployer", "update"),
            ("deployer", "create"),
            ("billing", "create"),
        ]
        self.search("access_type => 'write'", writers)
        tell.say("The auditor reads the log and nothing else; who uses secrets does not read the log.")
        self.refuse("auditor", f"select meshaudit.read_secret('{self.stripe}')", "42501")
        self.refuse("billing", "select * from meshaudit.audit_logs", "42501")

    def take_checkpoint(self) -> None:
        tell = self.narrator
        tell.step("A checkpoint, kept outside the database; and the log is intact")
        self.program(["checkpoint", "--output", str(self.checkpoint)], 0)
        entries = self._value("auditor", "select count(*) from meshaudit.audit_logs")
        text = self.program(["verify", "--checkpoint", str(self.checkpoint)], 0)
        _expect(f"intact: {entries} entries" in text, f"all {entries} entries were verified")
        self.entries = entries

    def obey(self) -> None:
        self.narrator.step("A superuser cannot change the log by accident")
        for statement in (
            f"update meshaudit_private.ledger set user_identity = 'billing' where id = {self.target}",
            f"delete from meshaudit_private.ledger where id = {self.target}",
            "truncate meshaudit_private.ledger",
        ):
            self.refuse("postgres", statement, "MA003")

    def tamper(self) -> None:
        tell = self.narrator
        tell.step("But on purpose: one entry is altered behind the triggers' back")
        table = "alter table meshaudit_private.ledger"
        self.ask("postgres", f"{table} disable trigger append_only", silent=True)
        forged = "update meshaudit_private.ledger set user_identity = 'billing', db_user = 'billing'"
        changed = self.ask("postgres", f"{forged}\n  where id = {self.target}", silent=True)
        _expect(changed == 1, "one entry was altered")
        self.ask("postgres", f"{table} enable always trigger append_only", silent=True)
        tell.say("Everything seems in order again. The log now says that billing read its own key:")
        theirs = [("billing", "read"), ("billing", "read"), ("billing", "create")]
        self.search(f"secret_id => '{self.stripe}'", theirs)
        guarded = self._value("postgres", "select ok from meshaudit.status() where \"check\" = 'append-only'")
        _expect(guarded, "status() finds the triggers in place")

    def catch(self) -> None:
        tell = self.narrator
        tell.step("verify names the entry")
        where = f"select lane, seq, id from meshaudit.audit_logs where id = {self.target}"
        self.place = self._rows("auditor", where)[0]
        lane, seq, number = self.place
        text = self.program(["verify"], 1)
        _expect(f"lane {lane}, seq {seq}, id {number}: edited" in text, "verify names that entry")
        _expect("1 problem " in text, "and no other")
        tell.say("The database's own verification, which shares no code with the program's, agrees:")
        statement = "select lane, seq, id, problem from meshaudit.verify()"
        tell.prompt("auditor=>", f"{statement};")
        rows = self._rows("auditor", statement)
        tell.table(("lane", "seq", "id", "problem"), rows)
        _expect(rows == [(lane, seq, number, "edited")], "meshaudit.verify() names that entry and no other")

    def conclude(self) -> None:
        tell = self.narrator
        lane, seq, number = self.place
        tell.step("What happened")
        tell.say("deployer read the key of billing, and the log recorded it in the same transaction.")
        tell.say(
            "A superuser switched the protection off, made the entry say billing, and switched it on again."
        )
        tell.say("No search and no status shows that. The hash chain does:")
        tell.alarm(f"entry {number} (lane {lane}, seq {seq}) is not what was recorded: edited.")
        tell.good(f"the other {self.entries - 1} of {self.entries} entries are.")

    # How the story acts.

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
            _expect(exc.sqlstate == state, f"refused with {state}, not {exc.sqlstate}: {exc}")
            self.narrator.refused(state, exc.diag.message_primary or "")
        else:
            raise Untrue(f"{who} is refused")

    def search(self, filters: str, expected: list[tuple[str, str]]) -> list[tuple[Any, ...]]:
        """Search as the auditor and show the rows; they must be those, newest first."""
        statement = f"select {_SHOWN}\nfrom meshaudit.search_audit_logs({filters})"
        self.narrator.prompt("auditor=>", f"{statement};")
        rows = self._rows("auditor", statement)
        self.narrator.table(_COLUMNS, rows)
        _expect([(row[1], row[2]) for row in rows] == expected, "the search finds exactly what was done")
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
        _expect(done.returncode == code, f"exit code {code}")
        return text

    def _login(self, name: str, options: str) -> None:
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

    def _rows(self, who: str, statement: str) -> list[tuple[Any, ...]]:
        return self._sessions[who].execute(statement.encode()).fetchall()

    def _value(self, who: str, statement: str) -> Any:
        return self._rows(who, statement)[0][0]


def _prompt(who: str) -> str:
    return f"{who}{'=#' if who == 'postgres' else '=>'}"


def _shown(value: Any) -> Any:
    return f"\\x{value.hex()}" if isinstance(value, bytes) else value
