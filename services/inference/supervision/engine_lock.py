"""Who may use an engine now: many together, or one alone; in the order in which they came."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, eq=False)
class _WaitingTurn:
    alone: bool
    let_in: "asyncio.Future[None]"


class EngineTurn:
    """The right to use the engine, until ``leave``."""

    def __init__(self, turns: "EngineLock", *, alone: bool) -> None:
        self._turns = turns
        self.alone = alone
        self._is_over = False

    def leave(self) -> None:
        """Safe to call twice."""
        if not self._is_over:
            self._is_over = True
            self._turns.left(alone=self.alone)


class EngineLock:
    """Whoever waits to be alone holds up those that come later, or it would wait for ever. How many may wait is the caller's rule."""

    def __init__(self) -> None:
        self._together = 0
        self._is_somebody_alone = False
        self._waiting: deque[_WaitingTurn] = deque()

    @asynccontextmanager
    async def entered(self, *, alone: bool) -> AsyncIterator[EngineTurn]:
        """Waits for its turn, as long as that takes; cancelling gives the place in the line up."""
        if self._waiting or not self._has_room(alone=alone):
            await self._wait(alone=alone)
        else:
            self._take(alone=alone)
        turn = EngineTurn(self, alone=alone)
        try:
            yield turn
        finally:
            turn.leave()

    def left(self, *, alone: bool) -> None:
        """Called by a turn."""
        if alone:
            self._is_somebody_alone = False
        else:
            self._together -= 1
        self._admit()

    async def _wait(self, *, alone: bool) -> None:
        waiting = _WaitingTurn(alone, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        is_in = False
        try:
            await waiting.let_in
            is_in = True
        finally:
            if not is_in and waiting in self._waiting:
                self._waiting.remove(waiting)
                self._admit()
            elif not is_in:
                # Let in at the moment of its going.
                self.left(alone=alone)

    def _admit(self) -> None:
        while self._waiting and self._has_room(alone=self._waiting[0].alone):
            # Whoever was cancelled leaves the line by itself.
            if self._waiting[0].let_in.cancelled():
                return
            waiting = self._waiting.popleft()
            self._take(alone=waiting.alone)
            waiting.let_in.set_result(None)

    def _has_room(self, *, alone: bool) -> bool:
        return not self._is_somebody_alone and not (alone and self._together)

    def _take(self, *, alone: bool) -> None:
        if alone:
            self._is_somebody_alone = True
        else:
            self._together += 1
