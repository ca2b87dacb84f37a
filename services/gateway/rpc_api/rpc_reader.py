"""Sends the chunks of an answer over the mesh."""

from collections import defaultdict

from services.gateway.facts.call_parts import CallParts
from shared.api.gateway import InferenceChunk
from shared.api.inference import Chunk
from shared.rpc import StreamCall
from shared.types import RequestId


class RpcReader:
    def __init__(self, stream: StreamCall[InferenceChunk], request_id: RequestId, *, after: int, wants_parts: bool) -> None:
        """``after``: the chunk that the caller already has. ``wants_parts``: the caller takes calls in parts."""
        self._stream = stream
        #: Until the first chunk, which names the answer.
        self._first_id: RequestId | None = request_id
        self._after, self._wants_parts = after, wants_parts
        self._calls: defaultdict[int, CallParts] = defaultdict(CallParts)

    async def take(self, number: int, chunk: Chunk) -> None:
        followed = self._calls[chunk.answer]
        parts, complete = (tuple(followed.add(chunk)), ()) if self._wants_parts else ((), followed.complete(chunk))
        if 0 < number <= self._after:
            return
        first_id, self._first_id = self._first_id, None
        await self._stream.send(
            InferenceChunk(chunk.text, chunk.answer, chunk.logprobs, complete, chunk.waiting, number, first_id, chunk.reasoning, parts)
        )
