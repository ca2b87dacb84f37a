"""Locks an engine: many calls share it, or one has it alone, in order of arrival."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, eq=False)
class _WaitingTurn:
    alone: bool
    admitted: "asyncio.Future[None]"


class EngineTurn:
    """The right to use the engine, until ``leave``."""

    def __init__(self, lock: "EngineLock", *, alone: bool) -> None:
        self._lock = lock
        self.alone = alone
        self._is_over = False

    def leave(self) -> None:
        """Safe to call twice."""
        if not self._is_over:
            self._is_over = True
            self._lock.release(alone=self.alone)


class EngineLock:
    """A call that waits to be alone delays later ones, or else it might wait forever. The callers bound the queue."""

    def __init__(self) -> None:
        self._together = 0
        self._is_held_alone = False
        self._waiting: deque[_WaitingTurn] = deque()

    @asynccontextmanager
    async def entered(self, *, alone: bool) -> AsyncIterator[EngineTurn]:
        """Wait for a turn, without a limit; canceling gives up the place in the queue."""
        if self._waiting or not self._has_room(alone=alone):
            await self._wait(alone=alone)
        else:
            self._take(alone=alone)
        turn = EngineTurn(self, alone=alone)
        try:
            yield turn
        finally:
            turn.leave()

    def release(self, *, alone: bool) -> None:
        """Only a turn calls it."""
        if alone:
            self._is_held_alone = False
        else:
            self._together -= 1
        self._admit()

    async def _wait(self, *, alone: bool) -> None:
        waiting = _WaitingTurn(alone, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        is_in = False
        try:
            await waiting.admitted
            is_in = True
        finally:
            if not is_in and waiting in self._waiting:
                self._waiting.remove(waiting)
                self._admit()
            elif not is_in:
                # It was admitted just as it was canceled.
                self.release(alone=alone)

    def _admit(self) -> None:
        while self._waiting and self._has_room(alone=self._waiting[0].alone):
            # A canceled call leaves the queue in `_wait`.
            if self._waiting[0].admitted.cancelled():
                return
            waiting = self._waiting.popleft()
            self._take(alone=waiting.alone)
            waiting.admitted.set_result(None)

    def _has_room(self, *, alone: bool) -> bool:
        return not self._is_held_alone and not (alone and self._together)

    def _take(self, *, alone: bool) -> None:
        if alone:
            self._is_held_alone = True
        else:
            self._together += 1
