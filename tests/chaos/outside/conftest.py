"""A stack without its own echo worker, two machines outside that serve the echo model, and a client outside."""

from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from shared.node.client_node import ClientNode
from shared.types import NodeId
from tests import outside, stacks
from tests.chaos.conftest import ECHO_TOKEN_MS, SETTINGS
from tests.outside import Machine, Running
from tests.people import Person
from tests.stacks import RunningStack, until

_SERVE = ("--backend", "echo")
_stack = stacks.OfFolders((Path(__file__).parent,), **SETTINGS)


@dataclass(slots=True)
class Lent:
    """A machine outside that runs a worker for the stack."""

    machine: Machine
    node: NodeId
    worker: Running

    def start(self) -> None:
        """Start its worker again, without a ticket."""
        self.worker = self.machine.start_worker(*_SERVE, ECHO_TOKEN_MS=ECHO_TOKEN_MS)

    async def row(self, stack: RunningStack) -> dict[str, Any]:
        """Return the machine's row in `aicli nodes`."""
        rows = (await stack.aicli("nodes", "--json")).json()
        return next((row for row in rows if row["id"] == self.node), {"usable": False, "why_not": "never heard of"})

    async def is_used(self, stack: RunningStack) -> bool:
        return bool((await self.row(stack))["usable"])

    async def is_left_out(self, stack: RunningStack) -> bool:
        return not await self.is_used(stack)


class _Lenders:
    """Keeps two such machines for as long as the stack is up."""

    def __init__(self) -> None:
        self._opened = ExitStack()
        self._found: list[Lent] = []

    async def get(self, stack: RunningStack) -> list[Lent]:
        while len(self._found) < 2:
            machine = self._opened.enter_context(outside.machine())
            worker = machine.start_worker("--join", await outside.ticket(stack, "worker"), *_SERVE, ECHO_TOKEN_MS=ECHO_TOKEN_MS)
            await worker.says("connected to gateway")
            node = (await machine.aicli("worker", "status", "--state", str(machine.state), "--json")).json()["status"]["node"]
            self._found.append(Lent(machine, node, worker))
        for lent in self._found:
            if lent.worker.process.poll() is not None:
                lent.start()
            await until(lambda lent=lent: lent.is_used(stack), seconds=15, what="both machines serve")  # type: ignore[misc]  # bound now
        return self._found

    def close(self) -> None:
        self._opened.close()
        self._found.clear()


_lenders = _Lenders()


def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    if nextitem is None or Path(__file__).parent not in nextitem.path.parents:
        _lenders.close()
    _stack.leave(nextitem)


@pytest.fixture
def stack(pytestconfig: pytest.Config) -> RunningStack:
    return _stack.get(pytestconfig)


@pytest.fixture
async def lent(stack: RunningStack) -> list[Lent]:
    return await _lenders.get(stack)


@pytest.fixture
async def cafe(stack: RunningStack, ann: Person) -> AsyncIterator[Machine]:
    """A machine outside with a profile and ann's key."""
    with outside.machine() as machine:
        await machine.connect(stack, ann.key.secret)
        yield machine


@pytest.fixture
async def caller(cafe: Machine) -> AsyncIterator[ClientNode]:
    """A client on that machine that keeps running until the test ends."""
    async with cafe.client() as mesh:
        yield mesh
