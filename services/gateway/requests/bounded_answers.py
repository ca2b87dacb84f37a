"""Ends an answer where its reservation or its time ends, and extends the reservation while the answer runs.

An answer without ``max_tokens`` may take what fits the model's context, so its worker gets a high limit. This gateway holds the cost of one
step, asks for the next one early, and cuts the answer off where a step is refused. What was cut off is neither delivered nor billed.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, nullcontext

from services.gateway import tally
from services.gateway.relay import AnswerItem
from services.gateway.tally import Tally
from shared.api.generation import GenerationEnd, Usage
from shared.api.inference import Chunk, PromptAccepted
from shared.timing.bounded_waits import DeadlineWaits
from shared.types import FinishReason

#: For each answer. A page of text fits, so most answers need no second step.
STEP_TOKENS = 4096
#: A first step may be smaller, but each step costs a call.
_LEAST_STEP = 256
#: The next step is asked for when this share of a step is left: 512 tokens, seconds before they are needed.
_LEAD_SHARE = 8
#: How long an answer that ends at its deadline waits for a step: enough for the limits. The ledger ignores a step after the request's end.
_LATE_SECONDS = 0.1

#: Begins to hold so many tokens for each answer. The task returns how many are held then, and never raises.
Extend = Callable[[int], asyncio.Task[int]]


class AnswerBounds:
    """Counts what was delivered against what is held. Pure.

    An answer without token ids is counted by its weight; for its last step by its pieces, which have at least a token.
    """

    def __init__(self, *, held: int, most: int, answers: int, is_open_ended: bool = True) -> None:
        """``held`` and ``most`` are tokens of each answer. Unless it is open-ended, the worker ends it."""
        self._is_open_ended = is_open_ended
        self._held, self._most, self._answers = held, most, answers
        self._step = max(held, _LEAST_STEP)
        self._is_refused = False
        self.at = tally.NOTHING
        self._finished: dict[int, FinishReason] = {}

    @property
    def wanted(self) -> int:
        """Return how many tokens of each answer to hold next."""
        return min(self._held + self._step, self._most)

    @property
    def has_content(self) -> bool:
        return bool(self.at.ids or self.at.pieces)

    @property
    def _is_last(self) -> bool:
        return self._held >= self._most

    @property
    def needs_step(self) -> bool:
        """Return whether it is time to ask for the next step."""
        return (self.at.ids or self.at.weight) >= (self._held - self._step // _LEAD_SHARE) * self._answers and self.can_grow

    @property
    def can_grow(self) -> bool:
        return not (self._is_refused or self._is_last)

    def record_extension(self, held: int) -> None:
        """Record the answer to ``wanted``. Less is the last step."""
        self._is_refused = held < self.wanted
        self._held = max(self._held, held)

    def record_acceptance(self, prompt_tokens: int) -> None:
        self.at = Tally(prompt_tokens)

    def take(self, chunk: Chunk) -> bool:
        """Count the chunk; return False, and count nothing, if it doesn't fit."""
        at = tally.count(self.at, chunk)
        if self._is_open_ended and (at.ids or (at.pieces if self._is_last else at.weight)) > self._held * self._answers:
            return False
        self.at = at
        if chunk.finish is not None:
            self._finished[chunk.answer] = chunk.finish
        return True

    def cut_off(self) -> GenerationEnd:
        """Return the end of an answer that ends here."""
        reasons = tuple(self._finished.get(answer, FinishReason.LENGTH) for answer in range(self._answers))
        usage = Usage(self.at.prompt, tally.billed(self.at, 0, self._held * self._answers), reasoning_tokens=self.at.thoughts)
        return GenerationEnd(reasons[0], usage, reasons if self._answers > 1 else ())


class _Steps:
    """Asks for the steps of one answer, one at a time."""

    def __init__(self, bounds: AnswerBounds, extend: Extend, waits: DeadlineWaits | None) -> None:
        self._bounds = bounds
        self._extend = extend
        self._waits = waits
        self._extending: asyncio.Task[int] | None = None

    async def take(self, chunk: Chunk) -> bool:
        """Count the chunk, and ask for the next step if it is time; wait for a late one. Return False if the chunk doesn't fit.
        Raises TimeoutError if a step is too late for an answer that has a beginning."""
        while not self._bounds.take(chunk):
            if self._extending is None and not self._bounds.can_grow:
                return False
            self._extending = self._extending or self._extend(self._bounds.wanted)
            with (self._waits if self._bounds.has_content else None) or nullcontext():
                # A canceled extension may take seconds to end.
                self._bounds.record_extension(await asyncio.shield(self._extending))
            self._extending = None
        if self._extending is not None and self._extending.done():
            self._bounds.record_extension(self._extending.result())
            self._extending = None
        if self._extending is None and self._bounds.needs_step:
            self._extending = self._extend(self._bounds.wanted)
        return True

    async def stop(self, seconds: float | None) -> None:
        """End a step that is asked for. Wait for it, but no longer than ``seconds``."""
        if self._extending is not None:
            self._extending.cancel()
            await asyncio.wait([self._extending], timeout=seconds)


async def bounded(
    answers: AsyncGenerator[AnswerItem],
    bounds: AnswerBounds,
    extend: Extend,
    *,
    seconds_left: Callable[[], float] | None = None,
    is_free: Callable[[], bool] = lambda: False,
) -> AsyncGenerator[AnswerItem]:
    """Yield the answers' items, up to the end or to where they are cut off. ``seconds_left``: None for a streamed answer.
    ``is_free``: known at the first item. Raises what ``answers`` raises. Close it with ``aclose``."""
    waits, is_late = None if seconds_left is None else DeadlineWaits(seconds_left), False
    steps = _Steps(bounds, extend, waits)
    try:
        async with aclosing(answers):
            while True:
                try:
                    if waits is None or not bounds.has_content:
                        item = await anext(answers, None)
                    else:
                        with waits:
                            item = await anext(answers, None)
                    if item is None:
                        return
                    fits = not isinstance(item, Chunk) or item.waiting or is_free() or await steps.take(item)
                except TimeoutError:
                    item, fits, is_late = None, False, True
                if item is None or not fits:
                    yield bounds.cut_off()
                    return
                if isinstance(item, PromptAccepted):
                    bounds.record_acceptance(item.prompt_tokens)
                yield item
    finally:
        if waits is not None:
            waits.close()
        await steps.stop(_LATE_SECONDS if is_late else None)
