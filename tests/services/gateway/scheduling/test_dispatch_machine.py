"""Whatever requests and workers do, no slot stays free while a request waits for it, none is lost, and none is assigned twice."""

import asyncio
import random
from contextlib import aclosing
from uuid import UUID

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.gateway.facts.placements import Placement
from services.gateway.facts.worker_requirements import WorkerRequirements
from services.gateway.scheduling.dispatch import Dispatch
from services.gateway.scheduling.fair_queue import QueueSettings
from services.gateway.scheduling.worker_claims import Claim
from shared import errors
from shared.config_documents import Machines
from shared.protocol.directory import WorkerLoad
from shared.types import ModelName, NodeId, Role, UserId
from tests.services.gateway.fakes import FakeDirectory, node_id

M = ModelName("m")
WORKERS, SLOTS, QUEUE = 3, 2, 12
#: The third worker belongs to the third tenant and is not trusted.
OWNER = UserId(UUID(int=3))
#: Two run, and the worker holds a third.
MAX = SLOTS + 1


class QueuedCaller:
    """One request."""

    def __init__(self, loop: asyncio.AbstractEventLoop, dispatch: Dispatch, requirements: WorkerRequirements) -> None:
        self.requirements = requirements
        self.node: NodeId | None = None
        self.claim: Claim | None = None
        self.refused: errors.AimeshError | None = None
        self.fails: errors.AimeshError | None = None
        self._ends = asyncio.Event()
        self.task = loop.create_task(self._run(dispatch))

    async def _run(self, dispatch: Dispatch) -> None:
        try:
            async with aclosing(dispatch.find(self.requirements)) as steps:
                async for step in steps:
                    if isinstance(step, Claim):
                        self.claim = step
        except errors.AimeshError as error:
            self.refused = error
            return
        assert self.claim is not None
        with self.claim:
            self.node = self.claim.worker.node
            try:
                await self._ends.wait()
            finally:
                self.node = None
        if self.fails is not None:
            self.claim.record_failure(self.fails)

    def end(self) -> None:
        self._ends.set()


TRUSTED = Placement(Machines.TRUSTED)


class Requests(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.directory = FakeDirectory()
        self.now = 0.0
        rules = QueueSettings(queue_seconds=1e9, queue_most=QUEUE, queue_per_tenant=QUEUE // 2)
        self.dispatch = Dispatch(self.directory, random.Random(1), rules, clock=lambda: self.now)
        self.callers: list[QueuedCaller] = []
        self.comes(0)

    def teardown(self) -> None:
        for caller in self.callers:
            caller.task.cancel()
        self.settle()
        assert (self.dispatch.in_flight, self.dispatch.waiting) == (0, 0)
        self.loop.close()

    def settle(self) -> None:
        async def turns() -> None:
            for _ in range(6):
                await asyncio.sleep(0)

        self.loop.run_until_complete(turns())

    @property
    def running(self) -> list[QueuedCaller]:
        return [caller for caller in self.callers if caller.node is not None]

    @property
    def waiting(self) -> list[QueuedCaller]:
        return [caller for caller in self.callers if not caller.task.done() and caller.node is None]

    @rule(tenant=st.integers(1, 3), failed=st.sets(st.integers(0, WORKERS - 1), max_size=1))
    def asks(self, tenant: int, failed: set[int]) -> None:
        asking = UserId(UUID(int=tenant))
        requirements = WorkerRequirements(M, asking, asking, 10, 10, excluded=frozenset(map(node_id, failed)), placement=TRUSTED)
        with_loop = self.loop
        asyncio.set_event_loop(with_loop)
        self.callers.append(QueuedCaller(with_loop, self.dispatch, requirements))
        self.settle()

    @precondition(lambda self: self.running)
    @rule(data=st.data(), fails=st.booleans())
    def ends(self, data: st.DataObject, fails: bool) -> None:
        request = data.draw(st.sampled_from(self.running))
        request.fails = errors.LinkLost("x") if fails else None
        request.end()
        self.settle()

    @precondition(lambda self: self.waiting or self.running)
    @rule(data=st.data(), also_ends=st.booleans())
    def is_cancelled(self, data: st.DataObject, also_ends: bool) -> None:
        """Cancel a request, possibly at the moment when the end of another one assigns it the slot."""
        request = data.draw(st.sampled_from(self.waiting + self.running))
        if also_ends and self.running:
            self.running[0].end()
            self.loop.run_until_complete(asyncio.sleep(0))
        request.task.cancel()
        self.settle()

    @rule(number=st.integers(0, WORKERS - 1))
    def comes(self, number: int) -> None:
        owner = str(OWNER) if number == 2 else ""
        self.directory.worker(number, "m", load=WorkerLoad(slots=SLOTS), owner=owner)
        self.settle()

    @rule(number=st.integers(0, WORKERS - 1))
    def goes(self, number: int) -> None:
        """Remove a worker; its requests end with the link."""
        self.directory.mark_gone(node_id(number), "its link died")
        for caller in self.running:
            if caller.node == node_id(number):
                caller.end()
        self.settle()

    @rule(seconds=st.floats(0, 40))
    def passes_by(self, seconds: float) -> None:
        """Let time pass. A waiting request checks once a second; here any announcement makes the gateway check."""
        self.now += seconds
        self.dispatch._assign_slots(M)
        self.settle()

    @invariant()
    def the_counts_are_right(self) -> None:
        assert self.dispatch.in_flight == len(self.running)
        assert self.dispatch.waiting == len(self.waiting)

    @invariant()
    def no_worker_has_more_than_fits(self) -> None:
        for number in range(WORKERS):
            assert sum(caller.node == node_id(number) for caller in self.running) <= MAX

    @invariant()
    def nobody_waits_for_a_free_slot(self) -> None:
        for caller in self.waiting:
            there = [entry for entry in self.directory.usable(Role.WORKER) if self.may(caller.requirements, entry.node)]
            assert there, "no worker can run it, and it wasn't notified"
            busy = {entry.node: sum(other.node == entry.node for other in self.running) for entry in there}
            resting = {node for node in busy if self.dispatch.worker_stats.outliers.ejection_seconds(node, M, self.now)}
            assert all(count == MAX for node, count in busy.items() if node not in resting)
            assert len(resting) < len(busy) or max(busy.values()) == MAX

    @invariant()
    def nobody_runs_where_it_may_not(self) -> None:
        for caller in self.running:
            assert caller.node is not None
            assert self.may(caller.requirements, caller.node)

    @invariant()
    def refused_requests_had_no_slot(self) -> None:
        for caller in self.callers:
            assert not isinstance(caller.refused, errors.Overloaded) or not caller.requirements.excluded
        self.callers = [caller for caller in self.callers if not caller.task.done()]

    @staticmethod
    def may(requirements: WorkerRequirements, node: NodeId) -> bool:
        return node not in requirements.excluded and (node != node_id(2) or requirements.tenant == OWNER)


Requests.TestCase.settings = settings(stateful_step_count=50, deadline=None)
test_requests = Requests.TestCase
