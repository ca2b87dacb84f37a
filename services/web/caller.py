"""What web needs of the mesh: unary calls and streams. `rpc.Client` has both, and so has the fake of the tests."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeVar

from shared.api.method import End, Item, Method, Reply, Request, StreamMethod
from shared.types import Credential, NodeId

SomeItem_co = TypeVar("SomeItem_co", covariant=True)
SomeEnd_co = TypeVar("SomeEnd_co", covariant=True)


class Answer(Protocol[SomeItem_co, SomeEnd_co]):
    """A running stream: iterate it to its end, then read ``end``."""

    @property
    def node(self) -> NodeId:
        """The node that answers."""
        ...

    @property
    def end(self) -> SomeEnd_co: ...

    def __aiter__(self) -> AsyncIterator[SomeItem_co]: ...


class Caller(Protocol):
    async def call(
        self,
        method: Method[Request, Reply],
        request: Request,
        *,
        to: NodeId | None = None,
        deadline_seconds: float = 10,
        credential: Credential | None = None,
    ) -> Reply:
        """As rpc.Client.call: raises AimeshError, and nothing else."""
        ...

    def stream(
        self,
        method: StreamMethod[Request, Item, End],
        request: Request,
        *,
        deadline_seconds: float = 300,
        credential: Credential | None = None,
    ) -> AbstractAsyncContextManager[Answer[Item, End]]:
        """As rpc.Client.stream: leaving the block early cancels it on the peer; the iteration raises what ``call`` raises."""
        ...
