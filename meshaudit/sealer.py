"""The sealer as a worker: seals again and again, whatever happens to its server.

One at a time is the database's doing (the row lock that meshaudit.seal() takes), and so is that a worker
killed at any instant loses and doubles nothing. Here: when to run, when to wait, when to give up.

    follow() ends when `stop` is set, and raises only what waiting would not mend: no permission, no
    meshaudit, or the journal's slot lost (CannotRecord). All else, a server that is not there yet included,
    it meets by reconnecting. Without an armed journal it only feeds. Webhooks are sent by a thread and a
    connection of their own.
"""

import contextlib
import json
import random
import sys
import time
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime
from threading import Event, Thread
from typing import Any, NamedTuple, Protocol

import psycopg

from meshaudit import webhooks
from meshaudit.errors import (
    BadArgument,
    BadSqlArgument,
    CannotRecord,
    MeshauditError,
    NoPermission,
    NoSuchDatabase,
    NotMigrated,
    SchemaTooNew,
    Unreachable,
    WrongPassword,
    translate,
)
from meshaudit.version import require_current

INTERVAL = 0.2
# When nothing is written, runs are this far apart. No longer: it is what remains of the second within which
# an entry is promised, should something written during a run be taken for the run's own all the same.
IDLE = 0.7
# What is written during a run, that run has not seen. Runs that find nothing write the same few bytes: one
# after which the log has grown by more than after the least of so many before it is followed by another.
_RUNS = 20
PROGRESS = 2.0
_BACKLOG = 1_000_000  # bytes of log: more than one run's worth passes at once only if there is a backlog
FEED_LIMIT = 10_000
_UNARMED = "the journal is not armed"  # as begin_seal() says it
_FIRST_DELAY, _LAST_DELAY = 0.1, 10.0
_FATAL = (
    BadArgument,
    BadSqlArgument,
    CannotRecord,
    NoPermission,
    NoSuchDatabase,
    NotMigrated,
    SchemaTooNew,
    WrongPassword,
)
_CONNECT = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "fallback_application_name": "meshaudit seal",
}
# What a role's or a database's settings would break: a run cut short for ever, a commit that is not durable.
_SETTINGS = """
select pg_catalog.set_config('transaction_timeout', '0', false)
  where pg_catalog.current_setting('server_version_num')::int >= 170000;
select pg_catalog.set_config('statement_timeout', '0', false),
  pg_catalog.set_config('default_transaction_isolation', 'read committed', false),
  pg_catalog.set_config('default_transaction_read_only', 'off', false);
select pg_catalog.set_config('synchronous_commit', 'on', false)
  where pg_catalog.current_setting('synchronous_commit') = 'off'
"""
_PLACE = """
select pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_insert_lsn(), '0/0')::bigint,
  pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_flush_lsn(), '0/0')::bigint,
  (select pg_catalog.pg_wal_lsn_diff(s.confirmed_flush_lsn, '0/0')::bigint
   from pg_catalog.pg_replication_slots s, pg_catalog.pg_database d
   where d.datname = pg_catalog.current_database() and s.slot_name = 'meshaudit_' || d.oid)
"""


class Log(Protocol):
    """Takes what happens: an event's name and what there is to say about it."""

    def __call__(self, event: str, **facts: Any) -> None: ...


def json_lines(event: str, **facts: Any) -> None:
    """The default log: one JSON object a line, on stderr."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    # In one piece: the sender of webhooks is a thread, and print() would write the line's end by itself.
    sys.stderr.write(json.dumps({"time": now, "event": event, **facts}) + "\n")
    sys.stderr.flush()


def seal_once(conn: psycopg.Connection[Any]) -> int:
    """Seal what there is, at most 100,000 records. Returns how many entries it made."""
    with _translated():
        row = conn.execute("select meshaudit.seal()").fetchone()
    assert row is not None
    return int(row[0])


def feed_once(conn: psycopg.Connection[Any]) -> int:
    """Feed what there is, at most FEED_LIMIT entries. Returns how many events it added."""
    with _translated():
        row = conn.execute("select meshaudit.feed()").fetchone()
    assert row is not None
    return int(row[0])


def drain(conn: psycopg.Connection[Any]) -> int:
    """Seal until all that was written before this call is sealed. Returns how many entries that made."""
    total, end = 0, _place(conn).written
    while True:
        total += seal_once(conn)
        if (_place(conn).sealed or end) >= end:
            return total
        time.sleep(0.01)  # another sealer may be at it


def follow(dsn: str, *, stop: Event, interval: float = INTERVAL, log: Log = json_lines) -> None:
    """Seal every `interval` seconds until `stop` is set."""
    log("started", interval=interval)
    ended = Event()
    sender = Thread(target=webhooks.follow, args=(dsn,), kwargs={"stop": ended, "log": log}, daemon=True)
    sender.start()
    try:
        _follow(dsn, stop, interval, log)
    finally:
        ended.set()
        # A receiver that hangs does not keep us.
        sender.join(2)
    log("stopped")


def _follow(dsn: str, stop: Event, interval: float, log: Log) -> None:
    delay = _FIRST_DELAY
    while not stop.is_set():
        try:
            with _connection(dsn) as conn:
                with _translated():
                    require_current(conn)
                worker = _Worker(conn, interval, log)
                log("connected", pid=conn.info.backend_pid)
                while not stop.is_set():
                    wait = worker.turn()
                    delay = _FIRST_DELAY
                    stop.wait(wait)
        except _FATAL as error:
            log("failed", error=error.message, hint=error.hint)
            raise
        except MeshauditError as error:
            # Jitter, so that many workers do not come back to a restarted server in step.
            wait = delay * random.uniform(0.5, 1.0)
            log("retrying", error=error.message, seconds=round(wait, 2))
            stop.wait(wait)
            delay = min(delay * 2, _LAST_DELAY)


class _Place(NamedTuple):
    written: int
    flushed: int
    sealed: int | None  # as of the run before: a run moves the slot to where the last one has committed


class _Worker:
    """What one connection's worth of sealing remembers."""

    def __init__(self, conn: psycopg.Connection[Any], interval: float, log: Log) -> None:
        self._conn, self._interval, self._log = conn, interval, log
        self._quiet_at: int | None = None  # the log's end, if all before it is sealed
        self._growths: deque[int] = deque(maxlen=_RUNS)  # of the log, by runs that found nothing
        self._ran = self._told = 0.0
        self._entries = 0
        self._armed = True

    def turn(self) -> float:
        """Seal if there may be something to seal; returns how long to wait."""
        before = _place(self._conn)
        now = time.monotonic()
        idle = self._ran + IDLE - now
        if before.written == self._quiet_at and idle > 0:
            return min(self._interval, idle)
        made = self._seal()
        fed = feed_once(self._conn)
        self._ran = time.monotonic()
        after = _place(self._conn)
        self._quiet_at = after.written if self._has_seen_all(before, after, made + fed) else None
        self._entries += made
        moved = (after.sealed or 0) - (before.sealed or 0)
        behind = moved > _BACKLOG
        if made or (behind and self._ran - self._told > PROGRESS):
            self._told = self._ran
            self._log(
                "sealed",
                entries=made,
                total=self._entries,
                seconds=round(self._ran - now, 3),
                behind_bytes=max(0, after.flushed - (after.sealed or after.flushed)),
            )
        return 0.0 if behind or fed >= FEED_LIMIT else self._interval

    def _has_seen_all(self, before: _Place, after: _Place, found: int) -> bool:
        # What was written and not yet flushed, this run has not seen; its commit has flushed it.
        if found or before.flushed < before.written:
            return False
        growth = after.written - before.written
        alone = bool(self._growths) and growth <= min(self._growths)
        self._growths.append(growth)
        return alone

    def _seal(self) -> int:
        try:
            made = seal_once(self._conn)
        except CannotRecord as error:
            if error.message != _UNARMED:
                feed_once(self._conn)  # so that an alert can tell of it
                raise
            if self._armed:
                self._log("not armed", hint=f"feeding only; {error.hint}")
            self._armed = False
            return 0
        self._armed = True
        return made


def _place(conn: psycopg.Connection[Any]) -> _Place:
    with _translated():
        row = conn.execute(_PLACE).fetchone()
    assert row is not None
    return _Place(*row)


@contextlib.contextmanager
def _connection(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    with _translated():
        conn = psycopg.connect(dsn, autocommit=True, prepare_threshold=None, **_CONNECT)  # type: ignore[arg-type]
    with contextlib.closing(conn):
        with _translated():
            conn.execute(_SETTINGS)
        yield conn


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except psycopg.InterfaceError as exc:
        # psycopg's own word for a connection that is gone
        raise Unreachable(str(exc)) from exc
    except psycopg.Error as exc:
        raise translate(exc) from exc
