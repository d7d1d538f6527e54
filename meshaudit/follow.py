"""Following the log: each new entry once, in the order in which entries become visible.

meshaudit.audit_feed numbers events in that order without a gap, so the last number seen is all there is to
remember, over a lost connection too. A notification only says that it is worth looking.
"""

import contextlib
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from threading import Event
from typing import Any

import psycopg

from meshaudit import db, queries
from meshaudit.errors import MeshauditError, Unreachable
from meshaudit.queries import Entry, Filters

POLL = 5.0  # seconds: a pooler may swallow notifications
_STALE = 5.0
_FIRST_DELAY, _LAST_DELAY = 0.1, 5.0
_COLUMNS = ", ".join(
    f'f."{field.name}"' for field in fields(Entry) if field.name not in ("cursor", "prev_hash")
)
_NEW = f"""
select {_COLUMNS}, null::bytea as prev_hash, meshaudit.log_cursor(f."timestamp", f.id) as cursor, f.feed_id
from meshaudit.audit_feed f
where f.kind = 'entry' and f.feed_id > %(last)s and f.feed_id <= %(newest)s
  and (%(secret_id)s::text is null or f.secret_id = %(secret_id)s::text)
  and (%(from_time)s::timestamptz is null or f."timestamp" >= %(from_time)s::timestamptz)
  and (%(to_time)s::timestamptz is null or f."timestamp" < %(to_time)s::timestamptz)
  and (%(user_identity)s::text is null
    or f.user_identity = any ((select meshaudit.reading_names(%(user_identity)s::text, %(pass)s))::text[]))
  and (%(access_type)s::text is null or f.access_type = %(access_type)s::text)
  and (%(operation)s::text is null or f.operation = %(operation)s::text)
  and (%(outcome)s::text is null or f.outcome = %(outcome)s::text)
  and (%(scope)s::text is null or f.scope = %(scope)s::text)
  and (%(ip)s::inet is null or f.ip_address <<= %(ip)s::inet)
order by f.feed_id limit {queries.PAGE}
"""

# a few words on what is followed; the search before has told the filters
_BEGIN = "select meshaudit.begin_reading('stream', 'logs --follow', %(user_identity)s::text)"
_BEHIND = "select meshaudit.feed_is_behind()"

Connect = Callable[[], contextlib.AbstractContextManager[psycopg.Connection[Any]]]


def follow(
    connect: Connect,
    filters: Filters,
    show: Callable[[list[Entry]], None],
    note: Callable[[str], None],
    stop: Event,
) -> None:
    """Show new entries until `stop` is set. Reconnects; raises what reconnecting would not mend."""
    follower = _Follower(filters, show, note, stop)
    delay = _FIRST_DELAY
    while not stop.is_set():
        try:
            with connect() as conn, _translated():
                if delay > _FIRST_DELAY:
                    note("connected again")
                delay = _FIRST_DELAY
                follower.run(conn)
        except Unreachable as error:
            if follower.last is None:
                raise
            if delay == _FIRST_DELAY:
                note(f"the server went away ({error.message}); trying again")
            stop.wait(delay * random.uniform(0.5, 1.0))
            delay = min(delay * 2, _LAST_DELAY)


class _Follower:
    def __init__(
        self, filters: Filters, show: Callable[[list[Entry]], None], note: Callable[[str], None], stop: Event
    ) -> None:
        self._wanted = {field.name: getattr(filters, field.name) for field in fields(Filters)}
        self._filters, self._show, self._note, self._stop = filters, show, note, stop
        self.last: int | None = None
        self._pass: str | None = None
        self._moved = time.monotonic()
        self._warned = False

    def run(self, conn: psycopg.Connection[Any]) -> None:
        """Follow over one connection."""
        conn.execute("listen meshaudit_feed")
        if self.last is None:
            # Recorded: who follows, and from where on.
            next(queries.search(conn, self._filters, limit=1), None)
            if self._filters.user_identity is not None:
                self._pass = conn.execute(_BEGIN.encode(), self._wanted).fetchall()[0][0]
            self.last = self._range(conn)[1]
            self._note("following; stop with Ctrl-C")
        while not self._stop.is_set():
            self._catch_up(conn)
            self._watch(conn)
            for _ in conn.notifies(timeout=min(POLL, 1.0), stop_after=1):
                pass

    def _catch_up(self, conn: psycopg.Connection[Any]) -> None:
        assert self.last is not None
        while not self._stop.is_set():
            newest = self._range(conn)[1]
            if newest <= self.last:
                return
            with conn.cursor(row_factory=_row) as cursor:
                given = {**self._wanted, "pass": self._pass, "last": self.last, "newest": newest}
                found = cursor.execute(_NEW.encode(), given).fetchall()
            # Asked afterwards: what was dropped by then may have been missed.
            oldest = self._range(conn)[0]
            if oldest is not None and self.last < oldest - 1:
                raise MeshauditError(
                    f"events {self.last + 1} to {oldest - 1} have left the feed unseen",
                    "find them with meshaudit logs --from …, follow anew, and raise the setting feed_keep",
                )
            if found:
                self._show([entry for _, entry in found])
            self.last = found[-1][0] if len(found) == queries.PAGE else newest
            self._moved = time.monotonic()

    def _range(self, conn: psycopg.Connection[Any]) -> tuple[int | None, int]:
        row = conn.execute("select oldest, newest from meshaudit.feed_range()").fetchone()
        assert row is not None
        return row[0], row[1]

    def _watch(self, conn: psycopg.Connection[Any]) -> None:
        """Say so, once, if there are new entries and nobody feeds them."""
        if self._warned or time.monotonic() - self._moved < _STALE:
            return
        self._moved = time.monotonic()
        if conn.execute(_BEHIND.encode()).fetchone() == (True,):
            self._warned = True
            self._note(
                "there are new entries, and the feed is not being filled:"
                " run meshaudit seal --follow, or select meshaudit.feed() regularly"
            )


def _row(cursor: psycopg.Cursor[Any]) -> Callable[[Any], tuple[int, Entry]]:
    names = [column.name for column in cursor.description or ()]

    def make(values: Any) -> tuple[int, Entry]:
        named = dict(zip(names, values, strict=True))
        return named.pop("feed_id"), Entry(**named)

    return make


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        with db.errors():
            yield
    except psycopg.InterfaceError as exc:
        raise Unreachable(str(exc)) from exc
