"""A request for vectors at an engine: what the process reports of it, and what its reader is given. As `engine_calls` for answers."""

import asyncio
import hashlib
from typing import assert_never

import msgspec

from services.inference.engine import engine_messages
from services.inference.jobs.embedding_interface import VectorSink
from services.inference.jobs.embedding_job import EmbeddingJob
from services.inference.supervision.engine_calls import EngineDied, Report
from services.inference.supervision.engine_lock import EngineTurn
from shared import errors
from shared.api.embedding import Embedded, Vectors

#: Each number of a vector has four bytes.
_NUMBER_BYTES = 4

_encoder = msgspec.msgpack.Encoder()


def fingerprint(job: EmbeddingJob) -> bytes:
    """The same for the same texts, whoever sends them."""
    return hashlib.sha256(_encoder.encode((job.model, job.inputs))).digest()


class EmbeddingCall:
    """One request, from the moment in which the process is told of it."""

    def __init__(self, fingerprint: bytes, turn: EngineTurn, texts: int) -> None:
        self.fingerprint = fingerprint
        self.turn = turn
        #: Those whose vectors have not come.
        self._left = texts
        #: Bounded by the texts: at most one report for each, one before and one at the end.
        self._reports: asyncio.Queue[
            engine_messages.GenerationAccepted | engine_messages.GenerationRefused | engine_messages.ComputedVectors | EngineDied
        ] = asyncio.Queue()

    def deliver(self, report: Report) -> bool:
        """Take a report for the reader. Whether it was the last one: then the turn is over, and there must be no other.
        Raises ProtocolViolation for what is no report of vectors."""
        if isinstance(report, engine_messages.AnswerProgress):
            raise errors.ProtocolViolation("an answer to texts")
        if isinstance(report, engine_messages.ComputedVectors):
            self._left -= len(report.vectors)
        self._reports.put_nowait(report)
        is_last = isinstance(report, engine_messages.GenerationRefused | EngineDied) or self._left == 0
        if is_last:
            self.turn.leave()
        return is_last

    async def passed_on(self, sink: VectorSink) -> Embedded:
        """Pass the reports on, to the last one. Raises what the engine refused it with, or ModelCrashed."""
        prompt_tokens = 0
        while True:
            report = await self._reports.get()
            match report:
                case engine_messages.GenerationAccepted():
                    prompt_tokens = report.prompt_tokens
                    sink.accept(prompt_tokens)
                case engine_messages.ComputedVectors():
                    await sink.send(Vectors(report.vectors))
                    if self._left == 0 and self._reports.empty():
                        return Embedded(len(report.vectors[-1]) // _NUMBER_BYTES, prompt_tokens)
                case engine_messages.GenerationRefused():
                    raise errors.from_problem(report.problem)
                case EngineDied():
                    raise errors.ModelCrashed(f"{report.reason} during this request", hint="try again; the worker restarts it")
                case _:
                    assert_never(report)
