"""Defines what the gateway needs of its node. shared.node implements it; tests use fakes."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeVar

import msgspec

from shared.api.method import End, Item, MethodCaller, Request, StreamMethod
from shared.protocol.directory import DirectoryEntry
from shared.types import Credential, NodeId, Role

Item_co = TypeVar("Item_co", covariant=True)
End_co = TypeVar("End_co", covariant=True)


class RpcAnswer(Protocol[Item_co, End_co]):
    """A running stream: iterate it, then read ``end``."""

    @property
    def accepted(self) -> msgspec.Struct | None: ...

    @property
    def end(self) -> End_co: ...

    def __aiter__(self) -> AsyncIterator[Item_co]: ...


class NodeRpc(MethodCaller, Protocol):
    """Calls to other nodes. See ``shared.rpc.Client``."""

    def stream(
        self,
        method: StreamMethod[Request, Item, End],
        request: Request,
        *,
        to: NodeId | None = None,
        deadline_seconds: float = 300,
        credential: Credential | None = None,
    ) -> AbstractAsyncContextManager[RpcAnswer[Item, End]]: ...


class NodeDirectory(Protocol):
    """See ``shared.protocol.directory.Directory``."""

    def find(self, node: NodeId) -> DirectoryEntry | None: ...

    def entries(self, role: Role | None = None) -> Sequence[DirectoryEntry]: ...

    def usable(self, role: Role) -> Sequence[DirectoryEntry]: ...

    def watch(self, watcher: Callable[[DirectoryEntry], None]) -> None: ...
