"""Declares a method: its name, message types, and the roles of the nodes that may call it."""

import re
from collections.abc import AsyncIterator, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from shared.types import SERVICE_NAMES, Credential, NodeId, Role

Request = TypeVar("Request", bound=msgspec.Struct)
Reply = TypeVar("Reply", bound=msgspec.Struct)
Item = TypeVar("Item", bound=msgspec.Struct)
End = TypeVar("End", bound=msgspec.Struct)
ItemT_co = TypeVar("ItemT_co", covariant=True)
EndT_co = TypeVar("EndT_co", covariant=True)

#: The roles of the nodes through which users and operators call.
PEOPLE = {Role.CLIENT, Role.WEB, Role.OPERATOR}
#: The same for methods of other services, which the gateway forwards from HTTP.
PEOPLE_OR_GATEWAY = PEOPLE | {Role.GATEWAY}

#: The first part of a method's name -> the role of the nodes that serve it. Every service serves `node.` methods.
SERVED_BY = {name: role for role, name in SERVICE_NAMES.items()}

_CAMEL_HUMP = re.compile(r"(?<=[a-z0-9])[A-Z]")


def field_name(written: str) -> str:
    """Return the snake_case name of a field in either spelling."""
    return _CAMEL_HUMP.sub(lambda hump: "_" + hump[0].lower(), written)


class Body(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A message of the contract. Fields are camelCase on the wire; unknown ones are ignored, so that versions can mix."""


class Nothing(Body, frozen=True):
    """An empty message."""

    #: False: it is done, but the recovery log on disk lacks it for now.
    logged: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Method(Generic[Request, Reply]):
    """One request, one reply."""

    name: str
    request: type[Request]
    reply: type[Reply]
    callers: Set[Role]
    #: If a node is slow to answer, ask another one as well. Only for methods that may run twice, and that users' requests wait for.
    asks_another: bool = False
    #: The role to look up in the directory; None if every service serves it and the caller names the node.
    served_by: Role | None = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "served_by", _served_by(self.name, self.callers))


class Whole(Protocol):
    """A struct with everything that a stream sends, for callers that want one reply."""

    @classmethod
    def parts_of(cls, item: Any) -> Sequence[object]:
        """Return the parts of an item that go into the reply: texts and lists to be joined with those of other items."""
        ...

    @classmethod
    def of(cls, items: Sequence[Any], end: Any) -> msgspec.Struct: ...


@dataclass(frozen=True, slots=True, eq=False)
class StreamMethod(Generic[Request, Item, End]):
    """One request, a stream of items, and one end."""

    name: str
    request: type[Request]
    item: type[Item]
    end: type[End]
    callers: Set[Role]
    #: What the callee may send before the first item, when it accepts the call.
    accepted: type[msgspec.Struct] = Nothing
    #: The single reply for stock clients that do not stream; None if they must stream.
    whole: type[Whole] | None = None
    #: Requests are prompts, which may be longer than a message.
    takes_long_requests: bool = False
    served_by: Role | None = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "served_by", _served_by(self.name, self.callers))


class MethodCaller(Protocol):
    """Calls methods; raises AimeshError only."""

    async def call(
        self,
        method: Method[Request, Reply],
        request: Request,
        *,
        to: NodeId | None = None,
        deadline_seconds: float = 10,
        credential: Credential | None = None,
    ) -> Reply:
        """Call ``method`` at a service or one of its nodes. Waits a moment for the service."""
        ...


class StreamAnswer(Protocol[ItemT_co, EndT_co]):
    """A running stream: iterate it to the end, then read ``end``."""

    @property
    def node(self) -> NodeId:
        """Return the node that answers."""
        ...

    @property
    def end(self) -> EndT_co: ...

    def __aiter__(self) -> AsyncIterator[ItemT_co]: ...


def _served_by(name: str, callers: Set[Role]) -> Role | None:
    if not callers:
        raise ValueError(f"{name} has no callers: list the roles that may call it")
    service = name.partition(".")[0]
    if service not in (*SERVED_BY, "node"):
        raise ValueError(f"{name}: there is no service {service!r}")
    return SERVED_BY.get(service)
