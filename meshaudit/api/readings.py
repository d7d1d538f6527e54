"""What is read by more than a page leaves entries: when it begins, and how much it was when it ends.

Pages and single entries are recorded by the functions that find them. An export is COPY and a stream reads
the feed, so here the server says it, in the caller's name and in transactions of their own: what breaks off
later does not take the first entry with it.
"""

import asyncio
import logging

import psycopg
from fastapi import Request
from psycopg import sql

from meshaudit.api.auth import Caller
from meshaudit.api.context import Context
from meshaudit.api.problems import Problem
from meshaudit.queries import Filters

_log = logging.getLogger("meshaudit.api")
_NOTE = """
select meshaudit.note_reading(%(kind)s, %(filters)s, entries => %(entries)s::bigint, whole => %(whole)s,
  user_identity => %(user_identity)s)
"""
_BEGIN = "select meshaudit.begin_reading(%(kind)s, %(filters)s, %(user_identity)s::text) as pass"
_NAMES = sql.SQL("(select meshaudit.reading_names({}::text, {}::text))::text[]")
# As search_audit_logs() tells them.
_TOLD = {"from_time": "from", "to_time": "to"}
_ENDING = 5.0  # seconds for the last entry


def _told(wanted: Filters, *more: str) -> str:
    """The filters in words, but for the identity, which the database names."""
    order = (
        "secret_id",
        "from_time",
        "to_time",
        "access_type",
        "operation",
        "outcome",
        "scope",
        "ip",
    )
    values = {name: getattr(wanted, name) for name in order}
    times = {name: values[name].isoformat() for name in _TOLD if values[name] is not None}
    found = [
        f"{_TOLD.get(name, name)} {value}" for name, value in (values | times).items() if value is not None
    ]
    return ", ".join([*found, *more])


class Reading:
    """One export or stream, and its entries."""

    def __init__(
        self, parts: Context, caller: Caller, request: Request, kind: str, wanted: Filters, *more: str
    ) -> None:
        self._parts, self._caller, self._request = parts, caller, request
        self._named = {
            "kind": kind,
            "filters": _told(wanted, *more),
            "user_identity": wanted.user_identity,
        }

    async def begun(self) -> None:
        """The first entry: without it nothing is shown."""
        async with self._parts.gate.acting(self._caller, self._request) as conn:
            row = await (await conn.execute(_BEGIN, self._named)).fetchone()
        assert row is not None
        self._pass = row["pass"]

    def names(self) -> sql.Composable | None:
        """What the identity that is filtered by is called, if any is: an array, in the snapshot of whose
        statement it is. Once the reading has begun."""
        identity = self._named["user_identity"]
        return None if identity is None else _NAMES.format(sql.Literal(identity), sql.Literal(self._pass))

    async def ended(self, entries: int, *, whole: bool = True) -> None:
        """How much it was. Said as well as can be: the first entry is there whatever happens here."""
        try:
            async with asyncio.timeout(_ENDING):
                await self._note(entries, whole)
        except (Problem, psycopg.Error, OSError, TimeoutError) as exc:
            said = " ".join(str(exc).split())
            _log.warning("%s: the number of entries was not recorded: %s", self._named["kind"], said)

    async def _note(self, entries: int, whole: bool) -> None:
        async with self._parts.gate.acting(self._caller, self._request) as conn:
            await conn.execute(_NOTE, {**self._named, "entries": entries, "whole": whole})
