"""Reads an answer under an idempotency key, from its run or from the store."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, Protocol, TypeVar

from services.gateway.billing.request_record import RouteUse
from services.gateway.idempotency.answer_buffer import Piece
from services.gateway.idempotency.answer_runs import AnswerRunReader
from services.gateway.idempotency.idempotency_keys import End, KeptAnswer
from services.gateway.limits.limit_rules import TightestLimit
from shared import errors
from shared.types import ModelName, RequestId


class RepeatedAnswerFacts(Protocol):
    """What is known about an answer before its first chunk."""

    @property
    def request_id(self) -> RequestId:
        """The id of the call that started the answer."""

    @property
    def model(self) -> ModelName | None: ...

    @property
    def began_at(self) -> datetime: ...

    @property
    def shown_route(self) -> RouteUse | None:
        """The route that serves it, as the caller may see it; None without one, and for a stored answer."""

    @property
    def cached(self) -> bool:
        """Whether it comes from the response cache; known with the first chunk."""

    @property
    def allowance(self) -> TightestLimit | None:
        """The remaining limits."""

    @property
    def clamped_to(self) -> int | None:
        """The lowered max_tokens, if the credits didn't cover the requested value."""


Head = TypeVar("Head", bound=RepeatedAnswerFacts)


class StoredAnswers(Generic[Piece, End]):
    """Reads a stored answer after the chunk ``after``."""

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
        assert self.answer.result is not None  # set if `problem` is None
        return self.answer.result


@dataclass(frozen=True, slots=True)
class AnswerReader(Generic[Head, Piece, End]):
    """The answer to a request under a key, generated for this call or an earlier call. Iterate it for its numbered chunks; number 0 is a
    waiting notice. Read ``result`` after them."""

    source: AnswerRunReader[Head, Piece, End] | StoredAnswers[Piece, End]
    head: Head | KeptAnswer[Piece, End]
    #: The answer was made for another call.
    is_repeat: bool

    def __aiter__(self) -> "AnswerReader[Head, Piece, End]":
        return self

    async def __anext__(self) -> tuple[int, Piece]:
        """Raise what the run raised, after the chunks before it."""
        return await anext(self.source)

    @property
    def result(self) -> End:
        return self.source.end
