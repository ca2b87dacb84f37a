"""Reads an answer under an idempotency key from the store; ``AnswerRunReader`` reads one from its run."""

from collections.abc import Iterator
from datetime import datetime
from typing import Generic, Protocol, TypeVar

from services.gateway.facts.request_record import RouteUse
from services.gateway.facts.tightest_limit import TightestLimit
from services.gateway.idempotency.answer_buffer import Piece
from services.gateway.idempotency.idempotency_keys import End, KeptAnswer
from shared import errors
from shared.types import ModelName, RequestId


class InferenceReplyHead(Protocol):
    """What is known about an answer before its first chunk."""

    @property
    def request_id(self) -> RequestId:
        """Return the id of the call that started the answer."""

    @property
    def model(self) -> ModelName | None: ...

    @property
    def began_at(self) -> datetime: ...

    @property
    def shown_route(self) -> RouteUse | None:
        """Return the route that serves it, as the caller may see it; None without one, and for a stored answer."""

    @property
    def cached(self) -> bool:
        """Return whether it comes from the response cache; known with the first chunk."""

    @property
    def allowance(self) -> TightestLimit | None:
        """Return the remaining limits."""

    @property
    def clamped_to(self) -> int | None:
        """Return the lowered max_tokens, if the credits didn't cover the requested value."""


Head = TypeVar("Head", bound=InferenceReplyHead)


class StoredAnswerReader(Generic[Piece, End]):
    """Yields the numbered chunks of a stored answer after the chunk ``after``. Its result is for another call."""

    is_repeat = True

    def __init__(self, answer: KeptAnswer[Piece, End], after: int) -> None:
        self.head = answer
        self._rest: Iterator[tuple[int, Piece]] = iter([*enumerate(answer.chunks or (), start=1)][after:])

    def __aiter__(self) -> "StoredAnswerReader[Piece, End]":
        return self

    async def __anext__(self) -> tuple[int, Piece]:
        """Raise the error with which the answer ended, after the chunks before it."""
        for found in self._rest:
            return found
        _ = self.result
        raise StopAsyncIteration

    @property
    def result(self) -> End:
        if self.head.problem is not None:
            raise errors.from_problem(self.head.problem)
        assert self.head.result is not None  # set if `problem` is None
        return self.head.result
