"""Callers of one dispatch, with workers that are announced but never called: a caller holds its claim until the test ends it."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from typing import Any
from uuid import UUID

from msgspec import structs

from services.gateway.facts.placements import ANYWHERE
from services.gateway.facts.worker_requirements import WorkerRequirements
from services.gateway.scheduling.dispatch import Dispatch
from services.gateway.scheduling.fair_queue import QueueSettings
from services.gateway.scheduling.worker_claims import Claim
from services.gateway.scheduling.worker_records import WorkerStats
from services.gateway.scheduling.worker_starts import WorkerStarts
from shared import errors
from shared.protocol.directory import WorkerLoad
from shared.telemetry import Metrics
from shared.types import ModelName, NodeId, UserId
from shared.worker_pools import WorkerPool
from tests.services.gateway.fakes import FakeDirectory

M = ModelName("m")


def tenant(number: int) -> UserId:
    return UserId(UUID(int=number))


def requirements(of: int = 1, **more: Any) -> WorkerRequirements:
    return structs.replace(WorkerRequirements(M, tenant(of), tenant(of), prompt_tokens=40, max_tokens=10, placement=ANYWHERE), **more)


class Caller:
    """A request that waits, holds its slot until ``leave``, and records the notices that it gets."""

    def __init__(self, harness: "DispatchHarness", wanted: WorkerRequirements) -> None:
        self.notices: list[str] = []
        self.claim: Claim | None = None
        self.error: errors.AimeshError | None = None
        #: CPU time until the caller had its slot or its error; the machine's other work doesn't count.
        self.seconds = 0.0
        self.began = asyncio.Event()
        self._may_leave = asyncio.Event()
        self._noticed = asyncio.Condition()
        self._harness = harness
        self.task = harness.tasks.create_task(self._run(wanted))

    async def _run(self, wanted: WorkerRequirements) -> None:
        asked_at = time.thread_time()
        try:
            async with aclosing(self._harness.dispatch.find(wanted)) as steps:
                async for step in steps:
                    if isinstance(step, str):
                        self.notices.append(step)
                        async with self._noticed:
                            self._noticed.notify_all()
                    else:
                        self.claim = step
        except errors.AimeshError as error:
            self.error = error
            return
        finally:
            self.seconds = time.thread_time() - asked_at
        assert self.claim is not None
        with self.claim:
            self._harness.began.append(self)
            self.began.set()
            await self._may_leave.wait()

    @property
    def node(self) -> NodeId:
        assert self.claim is not None
        return self.claim.worker.node

    async def wait_for_notice(self, beginning: str) -> None:
        async with self._noticed:
            await self._noticed.wait_for(lambda: self.notices and self.notices[-1].startswith(beginning))

    async def leave(self) -> None:
        self._may_leave.set()
        await self.task

    async def cancel(self) -> None:
        self.task.cancel()
        await asyncio.wait((self.task,))


class DispatchHarness:
    def __init__(self, tasks: asyncio.TaskGroup, rules: QueueSettings, pools: tuple[WorkerPool, ...]) -> None:
        self.tasks = tasks
        self.directory = FakeDirectory()
        self.metrics = Metrics("gateway")
        self.pools = pools
        stats = WorkerStats(starts=WorkerStarts(self))
        self.dispatch = Dispatch(self.directory, random.Random(5), rules, self.metrics, worker_stats=stats)
        self.began: list[Caller] = []

    def worker(self, number: int, slots: int = 1, **more: Any) -> None:
        self.directory.worker(number, "m", load=WorkerLoad(slots=slots), **more)

    async def ask(self, of: int = 1, **more: Any) -> Caller:
        """Return a caller that has a slot or an error, or waits."""
        caller = Caller(self, requirements(of, **more))
        await settled()
        return caller

    def depth(self) -> float:
        return self.metrics.queue_depth.labels(model=M)._value.get()


async def settled() -> None:
    """Let every task run until it waits for something that takes time."""
    for _ in range(10):
        await asyncio.sleep(0)


@asynccontextmanager
async def dispatch_harness(*pools: WorkerPool, **rules: Any) -> AsyncIterator[DispatchHarness]:
    """Yield a harness; cancel what still runs at the end."""
    async with asyncio.TaskGroup() as tasks:
        harness = DispatchHarness(tasks, QueueSettings(**rules), pools)
        try:
            yield harness
        finally:
            for task in list(tasks._tasks):
                task.cancel()


async def finish(harness: DispatchHarness) -> Iterator[Caller]:
    """End the running requests one after the other until none runs; return them in the order in which they started."""
    done = 0
    while done < len(harness.began):
        await harness.began[done].leave()
        await settled()
        done += 1
    return iter(harness.began)
