"""An answer that outlives its connection: lost on the way, it is asked again and goes on behind its last piece.

    asking = Asking(caller, random.Random())
    async with asking.ask(request, seconds=600, lost=tell) as answer:
        async for chunk in answer: …
    answer.end

The gateway goes on for a while with what is asked under an idempotency key and not read. So leaving the block early also tells it that
nobody wants the rest.
"""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import Protocol, TypeVar

import msgspec

from shared import errors
from shared.api import gateway
from shared.api.gateway import CancelInference, InferenceChunk, InferenceResult, ProcessInferenceRequest, Rest
from shared.api.method import End, Item, Method, Reply, Request, StreamMethod
from shared.timing import retry_policy
from shared.timing.retry_policy import FailureFacts, RetryPolicy
from shared.types import NodeId

#: Somebody has pressed Ctrl-C and waits: a gateway that is there answers within milliseconds.
_CANCEL_SECONDS = 0.5

ItemT_co = TypeVar("ItemT_co", covariant=True)
EndT_co = TypeVar("EndT_co", covariant=True)
#: Told once for each loss: whether any of the answer had come before it.
Lost = Callable[[bool], None]


class ResumedStream(Protocol[ItemT_co, EndT_co]):
    """Iterate it, then read ``end``."""

    @property
    def node(self) -> NodeId: ...

    def __aiter__(self) -> AsyncIterator[ItemT_co]: ...

    @property
    def end(self) -> EndT_co: ...


class StreamCaller(Protocol):
    """A part of ``Client``, or of what stands before one. Everything raises AimeshError and nothing else."""

    async def call(
        self, method: Method[Request, Reply], request: Request, *, to: NodeId | None = None, deadline_seconds: float = 10
    ) -> Reply: ...

    def stream(
        self, method: StreamMethod[Request, Item, End], request: Request, *, deadline_seconds: float = 300
    ) -> AbstractAsyncContextManager[ResumedStream[Item, End]]: ...


class StreamRequest:
    """How one program asks."""

    def __init__(
        self,
        caller: StreamCaller,
        rng: random.Random,
        patience: RetryPolicy = retry_policy.DEFAULT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._caller = caller
        self._rng = rng
        self._patience = patience
        self._clock = clock

    @asynccontextmanager
    async def ask(self, request: ProcessInferenceRequest, *, seconds: float, lost: Lost) -> AsyncIterator["ResumableStream"]:
        """``seconds``: for all of it. The iteration raises what is final, and what is not as soon as patience is over. Without an
        idempotency key everything is final, and leaving early is all it takes to end the generation."""
        answer = ResumableStream(request)
        try:
            async with aclosing(self._pieces(answer, self._clock() + seconds, lost)) as pieces:
                answer.pieces = pieces
                yield answer
        finally:
            if not answer.is_over:
                await self._cancel(answer)

    async def _pieces(self, answer: "ResumableStream", until: float, lost: Lost) -> AsyncGenerator[InferenceChunk]:
        failures, failed_at = 0, 0.0
        while True:
            try:
                left = max(0.0, until - self._clock())
                async with self._caller.stream(gateway.process_inference_request, answer.request, deadline_seconds=left) as stream:
                    answer.node = stream.node
                    async for chunk in stream:
                        failures = 0
                        answer.received(chunk)
                        yield chunk
                    answer.ended(stream.end)
                return
            except errors.AimeshError as error:
                now = self._clock()
                failed_at = failed_at if failures else now
                failures += 1
                trouble = FailureFacts(failures=failures, seconds=now - failed_at, was_taken=answer.node is not None)
                pause = self._find_pause(error, answer, trouble)
                if pause is None:
                    answer.is_over = True
                    raise
                if failures == 1:
                    lost(answer.last > 0)
            await asyncio.sleep(pause)

    def _find_pause(self, error: errors.AimeshError, answer: "ResumableStream", trouble: FailureFacts) -> float | None:
        if answer.request.idempotency_key is None:
            return None
        return retry_policy.find_pause(error, trouble, self._patience, self._rng.random())

    async def _cancel(self, answer: "ResumableStream") -> None:
        key = answer.request.idempotency_key
        if key is None or answer.node is None:
            return
        try:
            await self._caller.call(gateway.cancel_inference, CancelInference(key), to=answer.node, deadline_seconds=_CANCEL_SECONDS)
        except errors.AimeshError:
            return  # a gateway that is gone has ended it already, and one that cannot be reached ends it by its own time limit


class ResumableStream:
    """Iterate it, then read ``end``."""

    def __init__(self, request: ProcessInferenceRequest) -> None:
        self._asked = request
        #: The number of the newest piece.
        self.last = 0
        #: The gateway that was asked last.
        self.node: NodeId | None = None
        self.is_over = False
        self.pieces: AsyncIterator[InferenceChunk]
        self._end: InferenceResult | None = None

    def __aiter__(self) -> AsyncIterator[InferenceChunk]:
        return self.pieces

    @property
    def request(self) -> ProcessInferenceRequest:
        """What is to be asked now: all of it, or the rest."""
        return msgspec.structs.replace(self._asked, rest=Rest(self.last)) if self.last else self._asked

    @property
    def end(self) -> InferenceResult:
        if self._end is None:
            raise RuntimeError("the answer is not over yet")
        return self._end

    def received(self, chunk: InferenceChunk) -> None:
        """Raises ProtocolViolation where a piece is missing or comes again."""
        if chunk.sequence == 0:  # it says what the answer waits for, or comes from a gateway that numbers nothing
            return
        if chunk.sequence != self.last + 1:
            raise errors.ProtocolViolation(f"piece {chunk.sequence} of the answer came behind piece {self.last}", hint="ask again")
        self.last = chunk.sequence

    def ended(self, end: InferenceResult) -> None:
        self._end = end
        self.is_over = True
