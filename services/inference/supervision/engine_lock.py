"""Locks an engine: many calls share it, or one has it alone, in order of arrival."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class EngineTurn:
    """The right to use the engine, from ``begun`` until ``leave``."""

    def __init__(self, lock: "EngineLock", *, alone: bool) -> None:
        self._lock = lock
        self.alone = alone
        self.begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def leave(self) -> None:
        """Safe to call twice, and before it has begun."""
        self._lock.remove(self)


class EngineLock:
    """A call that waits to be alone delays later ones, or else it might wait forever. The callers bound the queue."""

    def __init__(self) -> None:
        self._inside: set[EngineTurn] = set()
        self._waiting: deque[EngineTurn] = deque()

    @asynccontextmanager
    async def entered(self, *, alone: bool) -> AsyncIterator[EngineTurn]:
        """Wait for a turn, without a limit; canceling gives up the place in the queue."""
        turn = EngineTurn(self, alone=alone)
        self._waiting.append(turn)
        self._admit()
        try:
            await turn.begun
            yield turn
        finally:
            turn.leave()

    def remove(self, turn: EngineTurn) -> None:
        """Only a turn calls it."""
        self._inside.discard(turn)
        if turn in self._waiting:
            self._waiting.remove(turn)
        self._admit()

    def _admit(self) -> None:
        while self._waiting and not any(one.alone or self._waiting[0].alone for one in self._inside):
            turn = self._waiting.popleft()
            self._inside.add(turn)
            # A canceled one is about to leave.
            if not turn.begun.cancelled():
                turn.begun.set_result(None)
