"""Passes an engine's reports on to the readers of its calls.

A reader may be slow: a call ends for the engine before it ends for its reader.
"""

import asyncio
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass

from services.inference.backend_interface import AnswersEnded, Sink, VectorSink
from services.inference.engine import engine_messages
from services.inference.supervision.engine_lock import EngineTurn
from shared import errors
from shared.api.embedding import Embedded, Vectors
from shared.api.generation import Generation, Usage
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


class EngineCall(ABC):
    """One call, from the moment in which the process gets its command."""

    def __init__(self, fingerprint: bytes, turn: EngineTurn) -> None:
        self.fingerprint = fingerprint
        self.turn = turn
        #: Bounded by the call: one report per token or text, one before and one at the end.
        self._reports: asyncio.Queue[Report] = asyncio.Queue()

    def deliver(self, report: Report) -> bool:
        """Queue a report for the reader. Return whether it is the call's last; the turn then ends.
        Raises ProtocolViolation for a report of another kind of call."""
        self._count(report)
        self._reports.put_nowait(report)
        is_last = isinstance(report, engine_messages.GenerationRefused | EngineDied) or self._is_over
        if is_last:
            self.turn.leave()
        return is_last

    async def _next(self) -> Progress:
        report = await self._reports.get()
        if isinstance(report, engine_messages.GenerationRefused):
            raise errors.from_problem(report.problem)
        if isinstance(report, EngineDied):
            raise errors.ModelCrashed(f"{report.reason} during this request", hint="try again; the worker restarts it")
        return report

    @property
    def _is_read(self) -> bool:
        return self._is_over and self._reports.empty()

    @property
    @abstractmethod
    def _is_over(self) -> bool: ...

    @abstractmethod
    def _count(self, report: Report) -> None: ...


class GenerationCall(EngineCall):
    def __init__(self, fingerprint: bytes, turn: EngineTurn, answers: int) -> None:
        super().__init__(fingerprint, turn)
        self._answers = answers
        self._prompt_tokens = 0
        self._completion_tokens = 0
        self._cached_tokens = 0
        self._finished: dict[int, FinishReason] = {}

    async def pass_on(self, sink: Sink) -> Generation:
        """Send the answers to ``sink``, until it needs no more. Raises the engine's refusal, or ModelCrashed."""
        with suppress(AnswersEnded):
            while not self._is_read:
                report = await self._next()
                if isinstance(report, engine_messages.GenerationAccepted):
                    sink.accept(report.prompt_tokens)
                    if report.delivered is not None:
                        # For `SeparatedAnswers`, which reads it and sends nothing of it.
                        await sink.send(Chunk(report.delivered, ()))
                elif isinstance(report, engine_messages.AnswerProgress):
                    await sink.send(Chunk(report.text, report.token_ids, report.answer, report.logprobs, finish=report.finish))
        reasons = tuple(self._finished.get(answer, FinishReason.STOP) for answer in range(self._answers))
        usage = Usage(self._prompt_tokens, self._completion_tokens, self._cached_tokens)
        return Generation(reasons[0], usage, reasons if self._answers > 1 else ())

    @property
    def _is_over(self) -> bool:
        return len(self._finished) == self._answers

    def _count(self, report: Report) -> None:
        if isinstance(report, engine_messages.ComputedVectors | engine_messages.ConversionResult):
            raise errors.ProtocolViolation("vectors or converted tokens for a prompt")
        if isinstance(report, engine_messages.GenerationAccepted):
            self._prompt_tokens = report.prompt_tokens
        elif isinstance(report, engine_messages.AnswerProgress):
            self._completion_tokens += len(report.token_ids)
            if report.answer == 0:
                # The other answers reuse what the first has read, which is not a cached prompt.
                self._cached_tokens = report.cached_tokens
            if report.finish is not None:
                self._finished[report.answer] = report.finish


class EmbeddingCall(EngineCall):
    def __init__(self, fingerprint: bytes, turn: EngineTurn, texts: int) -> None:
        super().__init__(fingerprint, turn)
        self._left = texts

    async def pass_on(self, sink: VectorSink) -> Embedded:
        """Send the vectors to ``sink``. Raises the engine's refusal, or ModelCrashed."""
        prompt_tokens = dimensions = 0
        while not self._is_read:
            report = await self._next()
            if isinstance(report, engine_messages.GenerationAccepted):
                prompt_tokens = report.prompt_tokens
                sink.accept(prompt_tokens)
            elif isinstance(report, engine_messages.ComputedVectors):
                await sink.send(Vectors(report.vectors))
                dimensions = len(report.vectors[-1]) // _NUMBER_BYTES
        return Embedded(dimensions, prompt_tokens)

    @property
    def _is_over(self) -> bool:
        return self._left == 0

    def _count(self, report: Report) -> None:
        if isinstance(report, engine_messages.AnswerProgress | engine_messages.ConversionResult):
            raise errors.ProtocolViolation("an answer to texts")
        if isinstance(report, engine_messages.ComputedVectors):
            self._left -= len(report.vectors)


class ConversionCall(EngineCall):
    _content: bytes | None = None

    async def read(self) -> bytes:
        """Raises the engine's refusal, or ModelCrashed."""
        await self._next()
        assert self._content is not None  # counted before it is queued
        return self._content

    @property
    def _is_over(self) -> bool:
        return self._content is not None

    def _count(self, report: Report) -> None:
        if isinstance(report, engine_messages.ConversionResult):
            self._content = report.content
        elif not isinstance(report, engine_messages.GenerationRefused | EngineDied):
            raise errors.ProtocolViolation("an answer to a conversion")
