"""A generation at an engine: what the process reports of it, and what its reader is given.

The two ends are apart in time: the reader may be slow, and the process is done when it has reported the end.
"""

import asyncio
from dataclasses import dataclass
from typing import assert_never

from services.inference.engine import engine_messages
from services.inference.jobs.backend_interface import Sink
from services.inference.supervision.engine_lock import EngineTurn
from shared import errors
from shared.api.generation import Generation, Usage
from shared.api.inference import Chunk
from shared.types import FinishReason


@dataclass(frozen=True, slots=True)
class EngineDied:
    """The engine's process ended while the generation ran."""

    #: A sentence that says which, and how.
    reason: str


Report = (
    engine_messages.GenerationAccepted
    | engine_messages.GenerationRefused
    | engine_messages.AnswerProgress
    | engine_messages.ComputedVectors
    | EngineDied
)


class CallCounts:
    """Counts what a generation was given."""

    def __init__(self, answers: int) -> None:
        self._prompt_tokens = 0
        self._completion_tokens = 0
        self._cached_tokens = 0
        self._finished: dict[int, FinishReason] = {}
        self._answers = answers

    @property
    def is_over(self) -> bool:
        return len(self._finished) == self._answers

    def take(self, report: Report) -> None:
        match report:
            case engine_messages.GenerationAccepted():
                self._prompt_tokens = report.prompt_tokens
            case engine_messages.AnswerProgress():
                self._completion_tokens += len(report.token_ids)
                if report.answer == 0:
                    # The other answers begin behind what the first has read: that is no cache of an earlier prompt.
                    self._cached_tokens = report.cached_tokens
                if report.finish is not None:
                    self._finished[report.answer] = report.finish

    def generation(self) -> Generation:
        reasons = tuple(self._finished[answer] for answer in sorted(self._finished))
        usage = Usage(self._prompt_tokens, self._completion_tokens, self._cached_tokens)
        return Generation(reasons[0], usage, reasons if self._answers > 1 else ())


class EngineCall:
    """One generation, from the moment in which the process is told of it."""

    def __init__(self, fingerprint: bytes, turn: EngineTurn, answers: int) -> None:
        self.fingerprint = fingerprint
        self.turn = turn
        self._tally = CallCounts(answers)
        #: Bounded by the generation's own tokens: one report per token, one before and one at the end.
        self._reports: asyncio.Queue[
            engine_messages.GenerationAccepted | engine_messages.GenerationRefused | engine_messages.AnswerProgress | EngineDied
        ] = asyncio.Queue()

    def deliver(self, report: Report) -> bool:
        """Take a report for the reader. Whether it was the last one: then the turn is over, and there must be no other.
        Raises ProtocolViolation for what is no report of an answer."""
        if isinstance(report, engine_messages.ComputedVectors):
            raise errors.ProtocolViolation("vectors for a prompt")
        self._tally.take(report)
        self._reports.put_nowait(report)
        is_last = isinstance(report, engine_messages.GenerationRefused | EngineDied) or self._tally.is_over
        if is_last:
            self.turn.leave()
        return is_last

    async def passed_on(self, sink: Sink) -> Generation:
        """Pass the reports on, to the last one. Raises what the engine refused it with, or ModelCrashed."""
        while True:
            report = await self._reports.get()
            match report:
                case engine_messages.GenerationAccepted():
                    sink.accept(report.prompt_tokens)
                case engine_messages.AnswerProgress():
                    if report.token_ids or report.text or report.tool_calls:
                        await sink.send(_chunk(report))
                    if self._tally.is_over and self._reports.empty():
                        return self._tally.generation()
                case engine_messages.GenerationRefused():
                    raise errors.from_problem(report.problem)
                case EngineDied():
                    raise errors.ModelCrashed(f"{report.reason} during this request", hint="try again; the worker restarts it")
                case _:
                    assert_never(report)


def _chunk(report: engine_messages.AnswerProgress) -> Chunk:
    return Chunk(report.text, report.token_ids, report.answer, report.logprobs, report.tool_calls, finish=report.finish)
