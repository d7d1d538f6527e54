"""One connection that hears of new events of the feed, for all streams of a server.

A notification is only a hint to look: streams also look by themselves now and then, so that a connection
that is lost, or
a pooler that does not pass notifications on, costs time and no event.
"""

import asyncio
import logging
import random

import psycopg

_log = logging.getLogger("meshaudit.api")
_LONGEST = 5.0


class Listener:
    """Wakes whoever waits for the feed to move."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._moved = asyncio.Event()

    @property
    def moved(self) -> asyncio.Event:
        """Set at the next move. Take it before looking at the feed, so that none falls in between."""
        return self._moved

    def _wake(self) -> None:
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    async def run(self) -> None:
        """Listen, until cancelled."""
        delay = 0.1
        while True:
            try:
                conn = await psycopg.AsyncConnection.connect(
                    self._dsn,
                    autocommit=True,
                    connect_timeout=10,
                    keepalives_idle=10,
                    keepalives_interval=5,
                    keepalives_count=3,
                    fallback_application_name="meshaudit serve (feed)",
                )
                async with conn:
                    await conn.execute("listen meshaudit_feed")
                    delay = 0.1
                    # What came while nobody listened.
                    self._wake()
                    async for _ in conn.notifies():
                        self._wake()
            except psycopg.Error as exc:
                _log.warning("feed: %s", " ".join(str(exc).split()))
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))
            delay = min(delay * 2, _LONGEST)
