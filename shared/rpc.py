"""stub: being written"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, TypeVar, overload

from shared.api.method import End, Item, Method, Reply, Request, StreamMethod
from shared.types import Credential, NodeId, Role


class Peer:
    role: Role
    node: NodeId


class Call:
    """What a handler knows of the call it serves."""

    caller: Peer
    credential: Credential | None

    def remaining_seconds(self) -> float:
        """Until the caller's deadline."""
        raise NotImplementedError


class StreamCall(Call, Generic[Item]):
    async def accept(self) -> None:
        """Tell the caller that work has begun; optional, the first item does so too."""
        raise NotImplementedError

    async def send(self, item: Item) -> None:
        """Waits for the reader's credit. Raises CancelledError when the caller cancelled or the link died."""
        raise NotImplementedError


S = TypeVar("S")


@overload
def serves(
    method: Method[Request, Reply],
) -> Callable[[Callable[[S, Request, Call], Awaitable[Reply]]], Callable[[S, Request, Call], Awaitable[Reply]]]: ...
@overload
def serves(
    method: StreamMethod[Request, Item, End],
) -> Callable[[Callable[[S, Request, StreamCall[Item]], Awaitable[End]]], Callable[[S, Request, StreamCall[Item]], Awaitable[End]]]: ...
def serves(method: Any) -> Any:
    """Mark a method of a service class as the handler of a contract method."""

    def mark(function: Any) -> Any:
        function.serves = method
        return function

    return mark


class Answer(Generic[Item, End]):
    """A running stream: iterate it, then read ``end``."""

    #: The node that answers.
    node: NodeId
    #: Set when the iteration is over.
    end: End

    def __aiter__(self) -> AsyncIterator[Item]:
        raise NotImplementedError


class Client:
    async def call(
        self,
        method: Method[Request, Reply],
        request: Request,
        *,
        to: NodeId | None = None,
        deadline_seconds: float = 10,
        credential: Credential | None = None,
    ) -> Reply:
        """Ask ``to``, or the least loaded live node that serves the method. Raises AimeshError (the peer's own, or
        NotReachable, LinkLost, DeadlineExceeded). Cancelling the task cancels the call on the peer."""
        raise NotImplementedError

    def stream(
        self,
        method: StreamMethod[Request, Item, End],
        request: Request,
        *,
        to: NodeId | None = None,
        deadline_seconds: float = 300,
        credential: Credential | None = None,
    ) -> AbstractAsyncContextManager[Answer[Item, End]]:
        """Leaving the block early cancels the call on the peer."""
        raise NotImplementedError
