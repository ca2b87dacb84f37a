"""Several gateways over one pool of workers, in virtual time: the real ``Dispatch``, and workers and callers made of sleeps.

Nothing here depends on how fast the machine is: the loop's clock jumps to the next timer as soon as every task waits.
"""

import asyncio
import contextlib
import random
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence, Set
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol
from uuid import UUID

from services.gateway.facts.placements import ANYWHERE
from services.gateway.facts.worker_requirements import WorkerRequirements
from services.gateway.scheduling.dispatch import Dispatch
from services.gateway.scheduling.fair_queue import QueueSettings
from services.gateway.scheduling.queue_sharing import QueueSharing
from services.gateway.scheduling.worker_claims import Claim
from shared import errors
from shared.protocol.directory import Announcement, WorkerLoad
from shared.types import ModelName, NodeId, UserId
from tests.services.gateway.fakes import FakeDirectory, announcement, node_id
from tests.shared.timing.virtual_time import VirtualLoop

M = ModelName("m")
#: One-way delay between a gateway and a worker in the same network.
NEAR_SECONDS = 0.0005
#: Same as in ``shared.node.announcements``.
SETTLE_SECONDS = 0.05
PROMPT_TOKENS = 40
TOKEN_SECONDS = 0.02
#: A caller's pause between its requests, and after a refusal.
_THINKING_SECONDS, _REFUSED_SECONDS = 0.001, 0.5


def tenant(number: int) -> UserId:
    return UserId(UUID(int=number))


def requirements(of: int, tokens: int, founder: int | None = None) -> WorkerRequirements:
    return WorkerRequirements(M, tenant(of), tenant(of if founder is None else founder), PROMPT_TOKENS, tokens, placement=ANYWHERE)


class HasGateways(Protocol):
    @property
    def gateways(self) -> Sequence["HasDirectory"]: ...


class HasDirectory(Protocol):
    directory: FakeDirectory
    is_killed: bool


class Worker:
    """Runs ``slots`` calls at once and the others in order of arrival, and announces each change as a node does."""

    def __init__(self, mesh: "HasGateways", number: int, slots: int, distance_seconds: float) -> None:
        self.node = node_id(number)
        self.distance_seconds = distance_seconds
        self.slots = slots
        self._idle_slot_seconds = 0.0
        self._mesh = mesh
        self._number = number
        self._running = 0
        self._idle_since = 0.0
        self._waiting: deque[asyncio.Event] = deque()
        self._is_announcing = False
        self.announce()

    async def run(self, seconds: float, began: Callable[[], None]) -> None:
        await asyncio.sleep(self.distance_seconds)
        await self.take_slot()
        began()
        try:
            await asyncio.sleep(seconds)
        finally:
            self.free_slot()
        await asyncio.sleep(self.distance_seconds)

    async def take_slot(self) -> None:
        self._changed()
        if self._running < self.slots:
            self._count(1)
        else:
            turn = asyncio.Event()
            self._waiting.append(turn)
            try:
                await turn.wait()
            except asyncio.CancelledError:
                if turn.is_set():
                    self.free_slot()
                else:
                    self._waiting.remove(turn)
                raise

    def free_slot(self) -> None:
        if self._waiting:
            self._waiting.popleft().set()
        else:
            self._count(-1)
        self._changed()

    def _count(self, by: int) -> None:
        now = asyncio.get_running_loop().time()
        self._idle_slot_seconds += (self.slots - self._running) * (now - self._idle_since)
        self._running, self._idle_since = self._running + by, now

    def idle_slot_seconds(self) -> float:
        self._count(0)
        return self._idle_slot_seconds

    def _changed(self) -> None:
        if not self._is_announcing:
            self._is_announcing = True
            asyncio.get_running_loop().call_later(SETTLE_SECONDS, self.announce)

    def announce(self) -> None:
        self._is_announcing = False
        announced = self._describe(WorkerLoad(self.slots, self._running, len(self._waiting)))
        for gateway in self._mesh.gateways:
            if gateway.is_killed:
                continue
            if self.distance_seconds:
                asyncio.get_running_loop().call_later(self.distance_seconds, gateway.directory.apply_announcement, announced, "nats")
            else:
                gateway.directory.apply_announcement(announced, "nats")

    def _describe(self, load: WorkerLoad) -> Announcement:
        return announcement(self._number, M, load=load)


class SharedLog:
    """Like the stream in Valkey, with a delay."""

    def __init__(self) -> None:
        self.entries: list[bytes] = []
        self.is_away = False
        self._grown = asyncio.Event()

    async def append(self, log: str, entry: bytes, *, most: int) -> None:
        await self._reach()
        self.entries.append(entry)
        self._grown.set()
        self._grown = asyncio.Event()
        await asyncio.sleep(NEAR_SECONDS)

    async def log_end(self, log: str) -> bytes:
        await self._reach()
        return str(len(self.entries)).encode()

    async def read_log(self, log: str, after: bytes) -> tuple[list[bytes], bytes]:
        await self._reach()
        if int(after) == len(self.entries):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self._grown.wait()
        found = self.entries[int(after) :]
        await asyncio.sleep(NEAR_SECONDS)
        return found, str(int(after) + len(found)).encode()

    async def _reach(self) -> None:
        await asyncio.sleep(NEAR_SECONDS)
        if self.is_away:
            raise errors.Unavailable("Valkey does not answer")


@dataclass
class Gateway:
    directory: FakeDirectory
    dispatch: Dispatch
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    is_killed: bool = False


@dataclass
class Served:
    """What a tenant received."""

    #: For each request that began: the seconds to its first token, and how many others began while it waited.
    waits: list[float] = field(default_factory=list)
    passed_by: list[int] = field(default_factory=list)
    tokens: int = 0
    refused: int = 0


class Mesh:
    """``alone``: gateways that don't share their queues."""

    def __init__(self, tasks: asyncio.TaskGroup, gateways: int, rules: QueueSettings, alone: Set[int]) -> None:
        self.tasks = tasks
        self.served: defaultdict[int, Served] = defaultdict(Served)
        #: The tenants of the requests that began, in order.
        self.turns: list[int] = []
        self.workers: dict[NodeId, Worker] = {}
        #: The founder of each organization that shares its founder's limits.
        self.founder_of: dict[int, int] = {}
        self.gateways: list[Gateway] = []
        self.log = SharedLog()
        self._clock = asyncio.get_running_loop().time
        for number in range(gateways):
            name = f"gateway{number}"
            directory = FakeDirectory()
            dispatch = Dispatch(directory, random.Random(number), rules, clock=self._clock, name=name)
            self.gateways.append(Gateway(directory, dispatch))
            if number not in alone:
                self.start(number, QueueSharing(self.log, dispatch, name).run())

    def worker(self, slots: int, distance_seconds: float = NEAR_SECONDS) -> Worker:
        worker = Worker(self, 100 + len(self.workers), slots, distance_seconds)
        self.workers[worker.node] = worker
        return worker

    async def ask(self, at: int, of: int, tokens: int) -> None:
        """Run one request, from its arrival to its end."""
        served = self.served[of]
        asked_at = self._clock()
        turns_before = len(self.turns)

        def began() -> None:
            self.turns.append(of)
            served.waits.append(self._clock() + TOKEN_SECONDS - asked_at)
            served.passed_by.append(len(self.turns) - 1 - turns_before)

        claim: Claim | None = None
        try:
            async with aclosing(self.gateways[at].dispatch.find(requirements(of, tokens, founder=self.founder_of.get(of, of)))) as steps:
                async for step in steps:
                    if isinstance(step, Claim):
                        claim = step
        except errors.Overloaded:
            served.refused += 1
            await asyncio.sleep(_REFUSED_SECONDS)
            return
        assert claim is not None
        with claim:
            await self.workers[claim.worker.node].run(tokens * TOKEN_SECONDS, began)
            claim.record_tokens(PROMPT_TOKENS // 4, tokens)
        served.tokens += tokens

    async def _keep_asking(self, at: int, of: int, tokens: int) -> None:
        while True:
            await self.ask(at, of, tokens)
            await asyncio.sleep(_THINKING_SECONDS)

    async def _ask_now_and_then(self, at: int, of: int, tokens: int) -> None:
        pauses = random.Random(of)
        while True:
            await asyncio.sleep(pauses.uniform(0.3, 0.9))
            await self.ask(at, of, tokens)

    def flood(self, at: int, of: int, tokens: int = 50, at_once: int = 12) -> None:
        """Start a tenant that always has a request waiting."""
        for _ in range(at_once):
            self.start(at, self._keep_asking(at, of, tokens))

    def trickle(self, at: int, of: int, tokens: int = 20) -> None:
        """Start a tenant that sends a request now and then, only one at a time."""
        self.start(at, self._ask_now_and_then(at, of, tokens))

    def start(self, at: int, work: Coroutine[Any, Any, None]) -> None:
        self.gateways[at].tasks.append(self.tasks.create_task(work))

    def kill(self, at: int) -> None:
        """Stop this gateway: it sends nothing more, and the workers notice that its calls have ended."""
        for task in self.gateways[at].tasks:
            task.cancel()
        self.gateways[at].is_killed = True

    def idle_share(self) -> float:
        """Return the share of the slots' time that was idle."""
        whole = sum(worker.slots for worker in self.workers.values()) * self._clock()
        return sum(worker.idle_slot_seconds() for worker in self.workers.values()) / whole


def run(
    script: Callable[[Mesh], Awaitable[None]], gateways: int, rules: QueueSettings | None = None, *, alone: Set[int] = frozenset()
) -> None:
    """Run ``script`` in virtual time, and cancel the tasks that it started."""

    async def main() -> None:
        async with asyncio.TaskGroup() as tasks:
            mesh = Mesh(tasks, gateways, rules or QueueSettings(queue_seconds=1e6), alone)
            try:
                await script(mesh)
            finally:
                for gateway in range(gateways):
                    mesh.kill(gateway)

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main())
