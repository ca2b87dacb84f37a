"""Define the calls that web makes over the mesh, as a Protocol. `rpc.Client` and the test fake implement it."""

from contextlib import AbstractAsyncContextManager
from typing import Protocol

from shared.api.method import End, Item, MethodCaller, Request, StreamAnswer, StreamMethod
from shared.types import Credential


class MeshCalls(MethodCaller, Protocol):
    def stream(
        self,
        method: StreamMethod[Request, Item, End],
        request: Request,
        *,
        deadline_seconds: float = 300,
        credential: Credential | None = None,
    ) -> AbstractAsyncContextManager[StreamAnswer[Item, End]]:
        """Open a stream, as rpc.Client.stream does. Leaving the block early cancels it.

        Iteration raises what ``call`` raises.
        """
        ...
