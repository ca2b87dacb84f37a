"""Define the calls that web makes over the mesh, as a Protocol. `rpc.Client` and the test fake implement it."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeVar

from shared.api.method import End, Item, Method, Reply, Request, StreamMethod
from shared.types import Credential, NodeId

SomeItem_co = TypeVar("SomeItem_co", covariant=True)
SomeEnd_co = TypeVar("SomeEnd_co", covariant=True)


class MeshAnswer(Protocol[SomeItem_co, SomeEnd_co]):
    """A running stream. Iterate it to the end, then read ``end``."""

    @property
    def node(self) -> NodeId:
        """Return the node that answers."""
        ...

    @property
    def end(self) -> SomeEnd_co: ...

    def __aiter__(self) -> AsyncIterator[SomeItem_co]: ...


class MeshCalls(Protocol):
    async def call(
        self,
        method: Method[Request, Reply],
        request: Request,
        *,
        to: NodeId | None = None,
        deadline_seconds: float = 10,
        credential: Credential | None = None,
    ) -> Reply:
        """Call a method, as rpc.Client.call does. Raises only AimeshError."""
        ...

    def stream(
        self,
        method: StreamMethod[Request, Item, End],
        request: Request,
        *,
        deadline_seconds: float = 300,
        credential: Credential | None = None,
    ) -> AbstractAsyncContextManager[MeshAnswer[Item, End]]:
        """Open a stream, as rpc.Client.stream does. Leaving the block early cancels it.

        Iteration raises what ``call`` raises.
        """
        ...
