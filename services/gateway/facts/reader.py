"""What reads an answer, piece by piece."""

from typing import Generic, TypeVar

import msgspec

from services.gateway.facts.request_record import RouteUse
from services.gateway.facts.tally import Tally
from services.gateway.facts.tightest_limit import TightestLimit
from shared import errors
from shared.types import ModelName, Moment, RequestId

Head_contra = TypeVar("Head_contra", contravariant=True)
Piece_contra = TypeVar("Piece_contra", contravariant=True)


class AnswerHead(msgspec.Struct):
    """What is known about an answer before its first piece."""

    #: Of the call that started the answer.
    request_id: RequestId
    #: As the caller knows it.
    model: ModelName | None
    began_at: Moment
    #: The route that serves it, as the caller may see it; None without one. These four: None for a stored answer.
    shown_route: RouteUse | None = None
    #: The version of a pushed model that serves it, if the caller may see that.
    version: ModelName | None = None
    #: The remaining limits.
    allowance: TightestLimit | None = None
    #: The lowered max_tokens, if the credits didn't cover the requested value.
    clamped_to: int | None = None
    #: It comes from the response cache; set before the first piece.
    cached: bool = False
    #: It ran behind live requests.
    is_flex: bool = False


class Reader(Generic[Head_contra, Piece_contra]):
    """Reads one answer of a worker, of a request or of a recording. This one wants only the end."""

    #: When it stops to wait for more; None for never, and as long as it has nothing.
    cut_at: float | None = None

    def begin(self, head: Head_contra) -> None:
        """Take what is known before the first piece; of a worker's answer, again if another worker begins."""

    async def take(self, number: int, piece: Piece_contra, at: Tally) -> bool:
        """Take the next piece; number 0 is a waiting notice. ``at``: the count of the answer with it. Return whether more is wanted. Raises
        an AimeshError if the caller can't take more; what reads a worker's answer never raises one, because it would be the worker's."""
        return True


def left_early() -> errors.Cancelled:
    """Return how an answer ends whose reader wants no more of it."""
    return errors.Cancelled("the reader wanted no more of the answer")
