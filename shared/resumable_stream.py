"""Streams an answer that survives connection losses: it is requested again and continues after the last chunk.

    asking = StreamRequest(caller, random.Random())
    async with asking.ask(request, seconds=600, lost=report) as answer:
        async for chunk in answer: …
    answer.end

A gateway continues a request with an idempotency key for a while without a reader. So leaving the block early also cancels it there.
"""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import Protocol

import msgspec

from shared import errors
from shared.api import gateway
from shared.api.gateway import CancelInference, InferenceChunk, InferenceResult, ProcessInferenceRequest, Rest
from shared.api.method import End, Item, Method, Reply, Request, StreamAnswer, StreamMethod
from shared.timing import retry_policy
from shared.timing.retry_policy import RetryPolicy
from shared.types import NodeId

#: The user pressed Ctrl-C and waits. A gateway of the mesh answers within milliseconds; over HTTPS, it takes four round trips.
_CANCEL_SECONDS = 1.0

#: Called once per loss, with whether any of the answer had arrived, and why it is asked again.
Lost = Callable[[bool, errors.AimeshError], None]


class StreamCaller(Protocol):
    """The part of ``RpcClient`` that is needed. Raises only AimeshError."""

    async def call(
        self, method: Method[Request, Reply], request: Request, *, to: NodeId | None = None, deadline_seconds: float = 10
    ) -> Reply: ...

    def stream(
        self, method: StreamMethod[Request, Item, End], request: Request, *, deadline_seconds: float = 300
    ) -> AbstractAsyncContextManager[StreamAnswer[Item, End]]: ...


class StreamRequest:
    def __init__(
        self,
        caller: StreamCaller,
        rng: random.Random,
        policy: RetryPolicy = retry_policy.DEFAULT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._caller = caller
        self._rng = rng
        self._policy = policy
        self._clock = clock

    @asynccontextmanager
    async def ask(self, request: ProcessInferenceRequest, *, seconds: float, lost: Lost) -> AsyncIterator["ResumableStream"]:
        """Open the stream. The iteration raises final errors, and others once the retry policy gives up. Without an idempotency key every
        error is final, and leaving the block is enough to end the generation. ``seconds`` limits the whole answer."""
        answer = ResumableStream(request)
        try:
            async with aclosing(self._pieces(answer, self._clock() + seconds, lost)) as pieces:
                answer.pieces = pieces
                yield answer
        finally:
            if not answer.is_over:
                await self._cancel(answer)

    async def _pieces(self, answer: "ResumableStream", until: float, lost: Lost) -> AsyncGenerator[InferenceChunk]:
        policy = retry_policy.NONE if answer.request.idempotency_key is None else self._policy
        failures, failed_at = 0, 0.0
        while True:
            was_accepted = answer.node is not None
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
                seconds, drawn = now - failed_at, self._rng.random()
                pause = retry_policy.find_pause(error, policy, failures=failures, seconds=seconds, was_accepted=was_accepted, drawn=drawn)
                if pause is None:
                    answer.is_over = True
                    raise
                if failures == 1:
                    lost(answer.last > 0, error)
            await asyncio.sleep(pause)

    async def _cancel(self, answer: "ResumableStream") -> None:
        key = answer.request.idempotency_key
        if key is None:
            return
        try:
            await self._caller.call(gateway.cancel_inference, CancelInference(key), to=answer.node, deadline_seconds=_CANCEL_SECONDS)
        except errors.AimeshError:
            return  # a lost gateway has ended it already, and an unreachable one ends it by its time limit


class ResumableStream:
    """Iterate it, then read ``end``."""

    def __init__(self, request: ProcessInferenceRequest) -> None:
        self._request = request
        self.last = 0
        self.node: NodeId | None = None
        self.is_over = False
        self.pieces: AsyncIterator[InferenceChunk]
        self._end: InferenceResult | None = None

    def __aiter__(self) -> AsyncIterator[InferenceChunk]:
        return self.pieces

    @property
    def request(self) -> ProcessInferenceRequest:
        """Return the request to send now: for everything, or for the rest."""
        return msgspec.structs.replace(self._request, rest=Rest(self.last)) if self.last else self._request

    @property
    def end(self) -> InferenceResult:
        if self._end is None:
            raise RuntimeError("the answer has not ended yet")
        return self._end

    def received(self, chunk: InferenceChunk) -> None:
        """Raises ProtocolViolation if a chunk is missing or repeated."""
        if chunk.sequence == 0:  # only has ``waiting``, or comes from a gateway that does not number chunks
            return
        if chunk.sequence != self.last + 1:
            raise errors.ProtocolViolation(f"chunk {chunk.sequence} of the answer arrived after chunk {self.last}", hint="try again")
        self.last = chunk.sequence

    def ended(self, end: InferenceResult) -> None:
        self._end = end
        self.is_over = True
