"""The models of the fake mesh: they stream what a test provides, and record cancellations."""

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID

from shared import errors
from shared.api import gateway, usage_report
from shared.api.gateway import InferenceChunk, InferenceResult, ProcessInferenceRequest
from shared.api.generation import Usage
from shared.api.method import Nothing
from shared.types import Credential, FinishReason, MicroCredits, ModelName, RequestId

RESULT = InferenceResult(
    RequestId(UUID(int=7)),
    ModelName("smollm2"),
    FinishReason.STOP,
    Usage(12, 31),
    response_time_ms=1_040,
    first_token_ms=40,
    cost_micro=MicroCredits(12_340),
)


class FakeModels:
    def __init__(self) -> None:
        super().__init__()
        self.pieces: tuple[str, ...] = ("Hello ", "there.")
        #: The notice that is sent before the first piece; empty for none.
        self.waiting = ""
        #: Every piece after the first waits for it.
        self.gate = asyncio.Event()
        self.gate.set()
        #: The number of pieces before each error, and the error; each is used once.
        self.failures: list[tuple[int, errors.AimeshError]] = []
        #: The number of leading pieces that are reasoning.
        self.thoughts = 0
        #: The result of a completed answer.
        self.result = RESULT
        self.running = 0
        #: Set when a reader disconnects before the end.
        self.left = asyncio.Event()
        self.cancelled: list[str] = []
        self.ratings: list[tuple[RequestId, int]] = []

    async def _process_inference_request(self, request: ProcessInferenceRequest, _: Credential | None) -> AsyncIterator[InferenceChunk]:
        known = request.rest.after if request.rest else 0
        until, failure = self.failures.pop(0) if self.failures else (len(self.pieces), None)
        self.running += 1
        named = self.result.request_id
        try:
            if self.waiting and not known:
                yield InferenceChunk("", waiting=self.waiting, request_id=named)
            for number, piece in enumerate(self.pieces[:until], start=1):
                if number > 1:
                    await self.gate.wait()
                if number > known:
                    is_first = number == known + 1 and (known or not self.waiting)
                    text, thought = ("", piece) if number <= self.thoughts else (piece, "")
                    yield InferenceChunk(text, sequence=number, request_id=named if is_first else None, reasoning=thought)
            if failure is not None:
                raise failure
        except (asyncio.CancelledError, GeneratorExit):
            self.left.set()
            raise
        finally:
            self.running -= 1

    def _cancel_inference(self, request: gateway.CancelInference, _: Credential | None) -> Nothing:
        self.cancelled.append(request.idempotency_key)
        return Nothing()

    def _give_feedback(self, request: usage_report.GiveFeedback, _: Credential | None) -> Nothing:
        self.ratings.append((request.request_id, request.rating))
        return Nothing()
