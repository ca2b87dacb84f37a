"""The reading of an answer under an idempotency key, whether it is made just now or lies in the store."""

from collections.abc import Iterator
from datetime import datetime
from typing import Generic, Protocol, TypeVar

from services.gateway.idempotency.answer_buffer import Piece
from services.gateway.idempotency.answer_runs import AnswerRunReader
from services.gateway.idempotency.idempotency_keys import End, KeptAnswer
from shared import errors
from shared.types import ModelName, RequestId


class RepeatedAnswerFacts(Protocol):
    """What is known of a request before its first chunk."""

    @property
    def request_id(self) -> RequestId: ...

    @property
    def model(self) -> ModelName | None: ...

    @property
    def began_at(self) -> datetime: ...


Head = TypeVar("Head", bound=RepeatedAnswerFacts)


class StoredAnswers(Generic[Piece, End]):
    """Reads an answer from the store, behind the chunk ``after``."""

    def __init__(self, answer: KeptAnswer[Piece, End], after: int) -> None:
        self.answer = answer
        self._rest: Iterator[tuple[int, Piece]] = iter([*enumerate(answer.chunks or (), start=1)][after:])

    async def __anext__(self) -> tuple[int, Piece]:
        for found in self._rest:
            return found
        _ = self.end
        raise StopAsyncIteration

    @property
    def end(self) -> End:
        if self.answer.problem is not None:
            raise errors.from_problem(self.answer.problem)
        assert self.answer.result is not None  # one of both is there
        return self.answer.result


class AnswerReader(Generic[Head, Piece, End]):
    """An answer, whether it is made for this call or was made, or is being made, for another. Iterate it for its numbered chunks;
    with the number 0 what it waits for. ``result`` is there behind them."""

    def __init__(self, source: AnswerRunReader[Head, Piece, End] | StoredAnswers[Piece, End], head: Head | KeptAnswer[Piece, End]) -> None:
        self._source = source
        #: What its maker told; of an answer from the store, the same three facts.
        self.head = head

    def __aiter__(self) -> "AnswerReader[Head, Piece, End]":
        return self

    async def __anext__(self) -> tuple[int, Piece]:
        """Raises what the making of the answer raised, when all that came before it was read."""
        return await anext(self._source)

    @property
    def result(self) -> End:
        return self._source.end
