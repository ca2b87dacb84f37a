"""What a method is: a name, the types of its messages, and the roles of the nodes that may call it."""

from collections.abc import Set
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec

from shared.types import Role

Request = TypeVar("Request", bound=msgspec.Struct)
Reply = TypeVar("Reply", bound=msgspec.Struct)
Item = TypeVar("Item", bound=msgspec.Struct)
End = TypeVar("End", bound=msgspec.Struct)

#: The first word of a method's name -> the role of the nodes that serve it. `node.` is served by every service.
SERVED_BY = {"auth": Role.AUTH, "gateway": Role.GATEWAY, "inference": Role.WORKER, "metrics": Role.METRICS, "web": Role.WEB}


class Body(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A message of the contract. Fields are camelCase on the wire, as the seed documents have them; unknown fields are
    ignored, so that two versions can talk during an upgrade."""


class Nothing(Body, frozen=True):
    """A message without content."""


@dataclass(frozen=True, slots=True, eq=False)
class Method(Generic[Request, Reply]):
    """One question, one answer."""

    name: str
    request: type[Request]
    reply: type[Reply]
    callers: Set[Role]

    def __post_init__(self) -> None:
        _check(self.name, self.callers)

    @property
    def served_by(self) -> Role | None:
        """The role to look for in the directory; None where every service serves it and the caller names the node."""
        return SERVED_BY.get(self.name.partition(".")[0])


@dataclass(frozen=True, slots=True, eq=False)
class StreamMethod(Generic[Request, Item, End]):
    """One question, a stream of items, and one end."""

    name: str
    request: type[Request]
    item: type[Item]
    end: type[End]
    callers: Set[Role]

    def __post_init__(self) -> None:
        _check(self.name, self.callers)

    @property
    def served_by(self) -> Role | None:
        return SERVED_BY.get(self.name.partition(".")[0])


def _check(name: str, callers: Set[Role]) -> None:
    if not callers:
        raise ValueError(f"{name} names no caller: say which roles may call it")
    if name.partition(".")[0] not in (*SERVED_BY, "node"):
        raise ValueError(f"{name}: no service is called {name.partition('.')[0]!r}")
