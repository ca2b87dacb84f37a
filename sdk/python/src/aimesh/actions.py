"""What a conversation asks of its wire, and what it is told: the border between what decides and what sends.  Pure."""

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRequest:
    """Send a request and wait for the head of its answer. What was open before is closed."""

    verb: str
    path: str
    headers: Mapping[str, str]
    body: bytes | None
    #: The longest time in which nothing comes, now and while its body is read.
    silence_seconds: float
    #: For all of it.
    seconds: float
    #: Its body comes in pieces, with pauses between them.
    slowly: bool = False


@dataclass(frozen=True, slots=True)
class Read:
    """The next piece of the body; nothing but empty at its end."""

    seconds: float


@dataclass(frozen=True, slots=True)
class PauseAction:
    seconds: float


@dataclass(frozen=True, slots=True)
class Renew:
    """Get another access token than the one that was refused; of all who want one, one asks the other side."""

    spent: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Say:
    """A piece of the text, for whoever asked."""

    text: str


@dataclass(frozen=True, slots=True)
class AnswerHead:
    """The beginning of an answer."""

    status: int
    #: By their names in lower case.
    headers: Mapping[str, str]


Action = OpenRequest | Read | PauseAction | Renew | Say
#: A Head for Open, bytes for Read, nothing for the others.
Reply = AnswerHead | bytes | None
Steps = Generator[Action, Reply, T]


class WireLost(Exception):
    """The wire could not do what it was asked. Thrown into the conversation, which knows what it means."""

    def __init__(self, why: str, *, may_have_arrived: bool = True) -> None:
        super().__init__(why)
        self.why = why
        #: Whether the other side may have got the request.
        self.may_have_arrived = may_have_arrived
