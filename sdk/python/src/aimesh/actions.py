"""The actions that a conversation requests and the replies it gets.  Pure: conversations decide, a wire acts."""

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from aimesh.answers import AnswerPiece

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRequest:
    """Close the previous request, send this one and wait for the head of the response."""

    verb: str
    path: str
    headers: Mapping[str, str]
    body: bytes | None
    #: The longest allowed silence, now and while the body is read.
    silence_seconds: float
    #: For the whole request.
    seconds: float
    #: The body arrives in pieces, with pauses between them.
    is_stream: bool = False


@dataclass(frozen=True, slots=True)
class Read:
    """Read the next piece of the body; the reply is empty at its end."""

    seconds: float


@dataclass(frozen=True, slots=True)
class PauseAction:
    seconds: float


@dataclass(frozen=True, slots=True)
class Renew:
    """Replace the access token that was refused. Concurrent calls share one renewal."""

    spent: str
    seconds: float


@dataclass(frozen=True, slots=True)
class EmitPiece:
    """Give the caller a piece of the answer."""

    piece: AnswerPiece


@dataclass(frozen=True, slots=True)
class AnswerHead:
    """The head of a response."""

    status: int
    #: By name in lower case.
    headers: Mapping[str, str]


Action = OpenRequest | Read | PauseAction | Renew | EmitPiece
#: AnswerHead for OpenRequest, bytes for Read, None for the others.
Reply = AnswerHead | bytes | None
Steps = Generator[Action, Reply, T]


class WireLost(Exception):
    """The connection failed. Thrown into the conversation, which decides what follows."""

    def __init__(self, why: str, *, may_have_arrived: bool = True) -> None:
        super().__init__(why)
        self.why = why
        #: Whether the gateway may have received the request.
        self.may_have_arrived = may_have_arrived
