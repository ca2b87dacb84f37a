"""What a method is: a name, the types of its messages, and the roles of the nodes that may call it."""

from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

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
    #: The role to look for in the directory; None where every service serves it and the caller names the node.
    served_by: Role | None = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "served_by", _served_by(self.name, self.callers))


class Whole(Protocol):
    """A struct that holds all that a stream says, for callers that take one answer."""

    @classmethod
    def parts_of(cls, item: Any) -> Sequence[object]:
        """What the answer takes from an item: texts and lists, which it joins to those of the others."""
        ...

    @classmethod
    def of(cls, items: Sequence[Any], end: Any) -> msgspec.Struct: ...


@dataclass(frozen=True, slots=True, eq=False)
class StreamMethod(Generic[Request, Item, End]):
    """One question, perhaps a word that it was taken, a stream of items, and one end."""

    name: str
    request: type[Request]
    item: type[Item]
    end: type[End]
    callers: Set[Role]
    #: What the callee may say when it has taken the call and before the first item.
    accepted: type[msgspec.Struct] = Nothing
    #: What stock clients get that do not ask for a stream; None: they have to.
    whole: type[Whole] | None = None
    served_by: Role | None = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "served_by", _served_by(self.name, self.callers))


def _served_by(name: str, callers: Set[Role]) -> Role | None:
    if not callers:
        raise ValueError(f"{name} names no caller: say which roles may call it")
    service = name.partition(".")[0]
    if service not in (*SERVED_BY, "node"):
        raise ValueError(f"{name}: no service is called {service!r}")
    return SERVED_BY.get(service)
