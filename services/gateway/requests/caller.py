"""Stands between the source of an answer and whoever reads it: takes each piece for its run, and gives on what the run lets through."""

import asyncio
from collections.abc import Callable
from typing import Any

from services.gateway.facts.reader import Reader, left_early
from services.gateway.facts.tally import Tally
from services.gateway.requests.answers import TextAnswer
from services.gateway.requests.hold import Hold
from services.gateway.requests.run import Run
from shared import errors
from shared.api.inference import PromptAccepted

#: How long an answer that ends at its deadline waits for a step: enough for the limits. The ledger ignores a step after the request's end.
_LATE_SECONDS = 0.1

#: Begins to hold so many tokens for each answer. The task returns how many are held then, and never raises.
Extend = Callable[[int], asyncio.Task[int]]


class Caller(Reader[PromptAccepted, Any]):
    def __init__(self, run: Run, reader: Reader[Any, Any], clock: Callable[[], float]) -> None:
        self.run = run
        self._reader = reader
        self._clock = clock
        #: None if its worker ends the answer.
        self._hold: Hold | None = None
        self._extend: Extend | None = None
        self._extending: asyncio.Task[int] | None = None
        #: When a whole answer ends with what it has, before the starts of its workers; None for a stream.
        self._whole_until: float | None = None
        self._is_late = False

    def bound(self, hold: Hold, extend: Extend, *, whole_until: float | None) -> None:
        """End the answer of the next target where its hold ends, and a whole one at this time."""
        self._hold, self._extend, self._whole_until = hold, extend, whole_until

    def mind_start(self) -> None:
        """The start of a worker does not count."""
        if self._whole_until is not None and self.run.has_content:
            self.cut_at = self._whole_until + self.run.attempts.start_wait_seconds

    # --- the answer ---------------------------------------------------------------------------------------------------

    def begin(self, head: PromptAccepted) -> None:
        assert self.run.answer is not None
        self.run.answer.accepted(head.prompt_tokens)

    async def take(self, number: int, piece: Any, at: Tally) -> bool:
        run = self.run
        if piece.waiting:
            return await self._give(0, piece, at)
        if self._hold is not None and not (run.cached or await self._fits(self._hold, at)):
            return False
        try:
            shown = run.take(piece, at, self._clock())
            if shown is not None and not await self._reader.take(*shown, at):
                raise left_early()
        except errors.AimeshError as error:
            # Not the worker's, so nothing is tried again.
            run.failure = error
            return False
        assert run.answer is not None
        if self._whole_until is None:
            return not run.answer.is_enough
        self.mind_start()
        return not (run.answer.is_enough or self._is_cut)

    @property
    def _is_cut(self) -> bool:
        return self.cut_at is not None and self._clock() >= self.cut_at

    async def finish(self, end: Any) -> None:
        """Give the rest. ``end`` is None if no more was wanted. Raises the reader's error, and what ends an answer that can't be given."""
        run, answer = self.run, self.run.answer
        assert answer is not None
        if self._extending is not None:
            self._extending.cancel()
        if run.failure is not None:
            raise run.failure
        if end is None and isinstance(answer, TextAnswer) and not answer.is_complete and self._hold is not None:
            self._is_late = self._is_cut
            end = answer.cut_off(self._hold.most_tokens)
        for piece in await answer.moderated(() if end is None else answer.end(end)):
            if not await self._give(*run.numbered(piece), answer.at):
                assert run.failure is not None
                raise run.failure

    async def _give(self, number: int, piece: Any, at: Tally) -> bool:
        try:
            if not await self._reader.take(number, piece, at):
                raise left_early()
        except errors.AimeshError as error:
            self.run.failure = error
            return False
        return True

    # --- the hold -----------------------------------------------------------------------------------------------------

    async def _fits(self, hold: Hold, at: Tally) -> bool:
        """Return whether the next piece fits; ask for the next step if it is time, and wait for a late one, but not beyond ``cut_at``."""
        assert self._extend is not None
        while not hold.fits(at):
            if self._extending is None and not hold.can_grow:
                return False
            self._extending = self._extending or self._extend(hold.wanted)
            # A canceled extension may take seconds to end.
            await asyncio.wait([self._extending], timeout=None if self.cut_at is None else max(0.0, self.cut_at - self._clock()))
            if not self._extending.done():
                return False
            hold.extended(self._extending.result())
            self._extending = None
        if self._extending is not None and self._extending.done():
            hold.extended(self._extending.result())
            self._extending = None
        if self._extending is None and hold.needs_step(at):
            self._extending = self._extend(hold.wanted)
        return True

    async def close(self) -> None:
        """End a step that is asked for, and wait for it, but not for long if the answer is late."""
        if self._extending is not None:
            self._extending.cancel()
            await asyncio.wait([self._extending], timeout=_LATE_SECONDS if self._is_late else None)
