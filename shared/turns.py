"""Work that many may want at once and that shall not crowd out other work of the process: a few at a time, the others in the order in
which they came, and none of them for long."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from shared import errors


class Turns:
    """`async with turns.take(): …`"""

    def __init__(self, at_once: int, *, seconds: float, refusal: str) -> None:
        self._free = asyncio.Semaphore(at_once)
        self._seconds = seconds
        self._refusal = refusal

    @asynccontextmanager
    async def take(self) -> AsyncIterator[None]:
        """Raises Overloaded for who has waited ``seconds``."""
        try:
            async with asyncio.timeout(self._seconds):
                await self._free.acquire()
        except TimeoutError:
            raise errors.Overloaded(self._refusal, hint="try again in a few seconds", retry_after_seconds=5) from None
        try:
            yield
        finally:
            self._free.release()
