"""What web needs of the mesh: unary calls. `rpc.Client` has it, and so has the fake of the tests."""

from typing import Protocol

from shared.api.method import Method, Reply, Request
from shared.types import Credential


class Caller(Protocol):
    async def call(
        self, method: Method[Request, Reply], request: Request, *, deadline_seconds: float = 10, credential: Credential | None = None
    ) -> Reply:
        """As rpc.Client.call: raises AimeshError, and nothing else."""
        ...
