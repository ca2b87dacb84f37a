"""Sends answers over the mesh."""

from collections import defaultdict

from services.gateway.facts.call_parts import CallParts
from services.gateway.facts.reader import AnswerHead, Reader
from services.gateway.facts.tally import Tally
from shared.api.embedding import RankingNotice, Vectors, read_scores
from shared.api.gateway import InferenceChunk
from shared.api.inference import Chunk
from shared.rpc import StreamCall
from shared.types import RequestId


class RpcReader(Reader[AnswerHead, Chunk]):
    def __init__(self, stream: StreamCall[InferenceChunk], *, after: int, wants_parts: bool) -> None:
        """``after``: the chunk that the caller already has. ``wants_parts``: the caller takes calls in parts."""
        self._stream = stream
        #: Until the first chunk, which names the answer.
        self._first_id: RequestId | None = None
        self._after, self._wants_parts = after, wants_parts
        self._calls: defaultdict[int, CallParts] = defaultdict(CallParts)

    def begin(self, head: AnswerHead) -> None:
        self._first_id = head.request_id

    async def take(self, number: int, piece: Chunk, at: Tally) -> bool:
        followed = self._calls[piece.answer]
        parts, complete = (tuple(followed.add(piece)), ()) if self._wants_parts else ((), followed.complete(piece))
        if 0 < number <= self._after:
            return True
        first_id, self._first_id = self._first_id, None
        await self._stream.send(
            InferenceChunk(piece.text, piece.answer, piece.logprobs, complete, piece.waiting, number, first_id, piece.reasoning, parts)
        )
        return True


class VectorReader(Reader[AnswerHead, Vectors]):
    def __init__(self, stream: StreamCall[Vectors]) -> None:
        self._stream = stream

    async def take(self, number: int, piece: Vectors, at: Tally) -> bool:
        await self._stream.send(piece)
        return True


class ScoreReader(Reader[AnswerHead, Vectors]):
    """Keeps the scores of texts, and sends what the request waits for."""

    def __init__(self, stream: StreamCall[RankingNotice]) -> None:
        self._stream = stream
        #: Of each text, in their order.
        self.scores: list[float] = []

    async def take(self, number: int, piece: Vectors, at: Tally) -> bool:
        if piece.waiting:
            await self._stream.send(RankingNotice(piece.waiting))
        self.scores += read_scores(piece)
        return True
