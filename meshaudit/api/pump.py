"""Answers of any length: what produces one runs in a task of its own, a few chunks ahead of what the
client has taken.

So a client that goes away ends the producer by one plain cancellation, in which it can give back its
connection; and what
fails before the first chunk is still an error with a status of its own.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

_AHEAD = 2
_running: set[asyncio.Task[None]] = set()


async def ended(seconds: float) -> None:
    """End those that still run, and wait for what they have to say last, so long at most."""
    # those who take from them are being cancelled, too
    await asyncio.sleep(0)
    running = set(_running)
    for task in running:
        task.cancel()
    if running:
        await asyncio.wait(running, timeout=seconds)


class Pump:
    """Takes from a generator."""

    def __init__(self, source: AsyncGenerator[bytes, None]) -> None:
        self._queue: asyncio.Queue[bytes | BaseException | None] = asyncio.Queue(_AHEAD)
        self._task = asyncio.create_task(self._run(source))
        # The loop itself holds tasks only weakly.
        _running.add(self._task)
        self._task.add_done_callback(_running.discard)

    async def _run(self, source: AsyncGenerator[bytes, None]) -> None:
        try:
            async for chunk in source:
                await self._queue.put(chunk)
            await self._queue.put(None)
        except Exception as exc:
            await self._queue.put(exc)
        finally:
            await source.aclose()

    async def _next(self) -> bytes | None:
        item = await self._queue.get()
        if isinstance(item, BaseException):
            raise item
        return item

    async def started(self) -> AsyncIterator[bytes]:
        """The chunks, once there is one; raises what went wrong before."""
        try:
            first = await self._next()
        except BaseException:
            self._task.cancel()
            raise
        return self._chunks(first)

    async def _chunks(self, chunk: bytes | None) -> AsyncIterator[bytes]:
        try:
            while chunk is not None:
                yield chunk
                chunk = await self._next()
        finally:
            self._task.cancel()
