"""Gives calls their turns at an engine, and passes the engine's reports on to their readers.

A reader may be slow: a call ends for the engine before it ends for its reader.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from services.inference import parking
from services.inference.backend_interface import AnswersEnded, AnswerStopped, Sink, VectorSink
from services.inference.engine import engine_messages
from shared import errors
from shared.api.embedding import Embedded, Vectors
from shared.api.generation import GenerationEnd, Usage
from shared.api.inference import Chunk
from shared.types import FinishReason

_NUMBER_BYTES = 4


@dataclass(frozen=True, slots=True)
class EngineDied:
    """The engine's process ended during a call."""

    reason: str


Progress = (
    engine_messages.GenerationAccepted | engine_messages.AnswerProgress | engine_messages.ComputedVectors | engine_messages.ConversionResult
)
Report = Progress | engine_messages.GenerationRefused | EngineDied


@dataclass(frozen=True, slots=True, eq=False)
class EngineTurn:
    """The right to use the engine, until ``leave``, which is safe to call twice."""

    alone: bool
    leave: Callable[[], None]


class EngineLock:
    """A call that waits to be alone delays later ones, or else it might wait forever. The callers bound the queue."""

    def __init__(self) -> None:
        self._inside: set[EngineTurn] = set()
        #: Held by the next call; the others wait for it in their order.
        self._next = asyncio.Lock()
        self._left = asyncio.Event()

    @asynccontextmanager
    async def entered(self, *, alone: bool) -> AsyncIterator[EngineTurn]:
        """Wait for a turn, without a limit; canceling gives up the place in the queue."""
        turn = EngineTurn(alone, lambda: self._remove(turn))
        async with self._next:
            while any(alone or other.alone for other in self._inside):
                self._left.clear()
                await self._left.wait()
            self._inside.add(turn)
        try:
            yield turn
        finally:
            turn.leave()

    def _remove(self, turn: EngineTurn) -> None:
        self._inside.discard(turn)
        self._left.set()


class EngineCall(ABC):
    """One call, from the moment in which the process gets its command. ``left`` is the number of ends that the engine will report."""

    def __init__(self, fingerprint: bytes, turn: EngineTurn, left: int = 1, *, is_batch: bool = False) -> None:
        self._is_batch = is_batch
        self.fingerprint = fingerprint
        self.turn = turn
        self._left = left
        #: Bounded by the call: one report per token or text, one before and one at the end.
        self._reports: asyncio.Queue[Report] = asyncio.Queue()

    def deliver(self, report: Report) -> bool:
        """Queue a report for the reader. Return whether it is the call's last; the turn then ends.
        Raises ProtocolViolation for a report of another kind of call."""
        self._left = 0 if isinstance(report, engine_messages.GenerationRefused | EngineDied) else self._left - self._ends(report)
        self._reports.put_nowait(report)
        if self._left == 0:
            self.turn.leave()
        return self._left == 0

    async def _next(self, say: Callable[[str], Awaitable[object]] | None = None) -> Progress:
        """``say`` gets what a batch call waits for. Raises Preempted if it has waited too long."""
        report = await (parking.wait(self._reports.get, say) if self._is_batch and say is not None else self._reports.get())
        if isinstance(report, engine_messages.GenerationRefused):
            raise errors.from_problem(report.problem)
        if isinstance(report, EngineDied):
            raise errors.ModelCrashed(f"{report.reason} during this request", hint="try again; the worker restarts it")
        return report

    @property
    def _is_read(self) -> bool:
        return self._left == 0 and self._reports.empty()

    @abstractmethod
    def _ends(self, report: Report) -> int:
        """Return how many ends are in a report. Raises ProtocolViolation."""


class GenerationCall(EngineCall):
    def __init__(
        self, fingerprint: bytes, turn: EngineTurn, answers: int, cancel: Callable[[int], None], *, is_batch: bool = False
    ) -> None:
        """``cancel`` ends one of several answers in the engine, which then reports no more of it."""
        super().__init__(fingerprint, turn, answers, is_batch=is_batch)
        self._answers = answers
        self._cancel = cancel
        self._prompt_tokens = 0
        self._completion_tokens = 0
        self._cached_tokens = 0
        #: By answer.
        self._seconds: dict[int, float] = {}
        self._finished: dict[int, FinishReason] = {}

    async def pass_on(self, sink: Sink) -> GenerationEnd:
        """Send the answers to ``sink``, until it needs no more. Raises the engine's refusal, or ModelCrashed."""

        def say(notice: str) -> Awaitable[None]:
            return sink.send(Chunk("", (), waiting=notice))

        with suppress(AnswersEnded):
            while not self._is_read:
                report = await self._next(say)
                if isinstance(report, engine_messages.GenerationAccepted):
                    sink.accept(report.prompt_tokens)
                    if report.delivered is not None:
                        # For `SeparatedAnswers`, which reads it and sends nothing of it.
                        await sink.send(Chunk(report.delivered, ()))
                elif isinstance(report, engine_messages.AnswerProgress):
                    try:
                        await sink.send(Chunk(report.text, report.token_ids, report.answer, report.logprobs, finish=report.finish))
                    except AnswerStopped:
                        self._finished.setdefault(report.answer, FinishReason.STOP)
                        self._cancel(report.answer)
        reasons = tuple(self._finished.get(answer, FinishReason.STOP) for answer in range(self._answers))
        usage = Usage(self._prompt_tokens, self._completion_tokens, self._cached_tokens)
        seconds = sum(self._seconds.values()) if self._is_batch else None
        return GenerationEnd(reasons[0], usage, reasons if self._answers > 1 else (), computed_seconds=seconds)

    def _ends(self, report: Report) -> int:
        if isinstance(report, engine_messages.GenerationAccepted):
            self._prompt_tokens = report.prompt_tokens
            return 0
        if not isinstance(report, engine_messages.AnswerProgress):
            raise errors.ProtocolViolation("vectors or converted tokens for a prompt")
        self._completion_tokens += len(report.token_ids)
        self._seconds[report.answer] = report.seconds
        if report.answer == 0:
            # The other answers reuse what the first has read, which is not a cached prompt.
            self._cached_tokens = report.cached_tokens
        if report.finish is not None:
            self._finished[report.answer] = report.finish
        return report.finish is not None


class EmbeddingCall(EngineCall):
    async def pass_on(self, sink: VectorSink) -> Embedded:
        """Send the vectors to ``sink``. Raises the engine's refusal, or ModelCrashed."""
        prompt_tokens = dimensions = 0

        def say(notice: str) -> Awaitable[None]:
            return sink.send(Vectors(waiting=notice))

        while not self._is_read:
            report = await self._next(say)
            if isinstance(report, engine_messages.GenerationAccepted):
                prompt_tokens = report.prompt_tokens
                sink.accept(prompt_tokens)
            elif isinstance(report, engine_messages.ComputedVectors):
                await sink.send(Vectors(report.vectors))
                dimensions = len(report.vectors[-1]) // _NUMBER_BYTES
        return Embedded(dimensions, prompt_tokens)

    def _ends(self, report: Report) -> int:
        if isinstance(report, engine_messages.ComputedVectors):
            return len(report.vectors)
        if not isinstance(report, engine_messages.GenerationAccepted):
            raise errors.ProtocolViolation("an answer to texts")
        return 0


class ConversionCall(EngineCall):
    async def read(self) -> bytes:
        """Raises the engine's refusal, or ModelCrashed."""
        report = await self._next()
        assert isinstance(report, engine_messages.ConversionResult)  # checked before it is queued
        return report.content

    def _ends(self, report: Report) -> int:
        if not isinstance(report, engine_messages.ConversionResult):
            raise errors.ProtocolViolation("an answer to a conversion")
        return 1
