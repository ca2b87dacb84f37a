"""The queue before the workers, with workers that are announced and never asked: a caller here holds its claim for as long as it likes."""

import asyncio
import gc
import random
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any
from uuid import UUID

import msgspec
import pytest

from services.gateway.placing.dispatch import Claim, Dispatch, Rules, Waiting
from services.gateway.placing.peer_queues import Offer, QueueReport
from services.gateway.placing.policy import Policy
from services.gateway.placing.routing import Wish
from shared import errors
from shared.directory import Load
from shared.telemetry import Metrics
from shared.types import ModelName, NodeId, UserId
from tests.services.gateway.fakes import FakeDirectory, node_id

M = ModelName("m")


def tenant(number: int) -> UserId:
    return UserId(UUID(int=number))


def wish(of: int = 1, **more: Any) -> Wish:
    return replace(Wish(M, tenant(of), tenant(of), prompt_tokens=40, max_tokens=10), **more)


class Caller:
    """One request: waits, holds its place until ``leave``, and remembers what it was told."""

    def __init__(self, site: "Site", wished: Wish) -> None:
        self.said: list[str] = []
        self.claim: Claim | None = None
        self.error: errors.AimeshError | None = None
        #: Of the processor, until it had its place or its error: what else this machine does is not counted.
        self.seconds = 0.0
        self.began = asyncio.Event()
        self._may_leave = asyncio.Event()
        self._heard = asyncio.Condition()
        self._site = site
        self.task = site.tasks.create_task(self._run(wished))

    async def _run(self, wished: Wish) -> None:
        asked_at = time.thread_time()
        try:
            async with aclosing(self._site.dispatch.find(wished)) as steps:
                async for step in steps:
                    if isinstance(step, Waiting):
                        self.said.append(step.why)
                        async with self._heard:
                            self._heard.notify_all()
                    else:
                        self.claim = step
        except errors.AimeshError as error:
            self.error = error
            return
        finally:
            self.seconds = time.thread_time() - asked_at
        assert self.claim is not None
        with self.claim:
            self._site.began.append(self)
            self.began.set()
            await self._may_leave.wait()

    @property
    def node(self) -> NodeId:
        assert self.claim is not None
        return self.claim.worker.node

    async def hears(self, beginning: str) -> None:
        async with self._heard:
            await self._heard.wait_for(lambda: self.said and self.said[-1].startswith(beginning))

    async def leave(self) -> None:
        self._may_leave.set()
        await self.task

    async def cancel(self) -> None:
        self.task.cancel()
        await asyncio.wait((self.task,))


class Site:
    def __init__(self, tasks: asyncio.TaskGroup, rules: Rules) -> None:
        self.tasks = tasks
        self.directory = FakeDirectory()
        self.metrics = Metrics("gateway")
        self.dispatch = Dispatch(self.directory, random.Random(5), rules, self.metrics)
        self.began: list[Caller] = []

    def worker(self, number: int, slots: int = 1, **more: Any) -> None:
        self.directory.worker(number, "m", load=Load(slots=slots), **more)

    async def ask(self, of: int = 1, **more: Any) -> Caller:
        """Returns when it has its place, its error, or waits."""
        caller = Caller(self, wish(of, **more))
        await settled()
        return caller

    def depth(self) -> float:
        return self.metrics.queue_depth.labels(model=M)._value.get()


async def settled() -> None:
    """Every task has done what it could without time passing."""
    for _ in range(10):
        await asyncio.sleep(0)


@asynccontextmanager
async def site(**rules: Any) -> AsyncIterator[Site]:
    """Ends whatever still runs."""
    async with asyncio.TaskGroup() as tasks:
        here = Site(tasks, Rules(**rules))
        try:
            yield here
        finally:
            for task in list(tasks._tasks):
                task.cancel()


async def finish(here: Site) -> Iterator[Caller]:
    """Let whoever runs leave, one after the other, until nobody runs; gives them in the order in which they began."""
    done = 0
    while done < len(here.began):
        await here.began[done].leave()
        await settled()
        done += 1
    return iter(here.began)


async def test_who_finds_room_begins_at_once_and_is_told_nothing() -> None:
    async with site() as here:
        here.worker(1, slots=2)
        first, second = await here.ask(), await here.ask()
        assert first.began.is_set()
        assert second.began.is_set()
        assert first.said == []
        assert here.dispatch.in_flight == 2
        await finish(here)
        assert (here.dispatch.in_flight, here.dispatch.waiting) == (0, 0)


async def test_a_worker_holds_one_call_and_the_others_wait_here_until_one_ends() -> None:
    async with site() as here:
        here.worker(1, slots=2)
        callers = [await here.ask() for _ in range(6)]
        assert [caller.began.is_set() for caller in callers] == [True] * 3 + [False] * 3
        assert (here.dispatch.in_flight, here.dispatch.waiting, here.depth()) == (3, 3, 3)
        await callers[1].leave()
        await settled()
        assert [caller.began.is_set() for caller in callers] == [True] * 4 + [False] * 2
        assert list(await finish(here)) == callers
        assert (here.dispatch.in_flight, here.depth()) == (0, 0)


async def test_one_request_is_served_next_though_another_tenant_has_sent_five_hundred() -> None:
    async with site(queue_per_tenant=500) as here:
        here.worker(1)
        flood = [await here.ask(1) for _ in range(500)]
        one = await here.ask(2)
        assert not one.began.is_set()
        await flood[0].leave()
        await settled()
        assert here.began[-1] is one


async def test_two_tenants_that_both_wait_take_turns_by_what_they_were_served() -> None:
    async with site() as here:
        here.worker(1)
        for _ in range(20):
            await here.ask(1)
            await here.ask(2)
        for caller in here.began[:2]:
            await caller.leave()
        served = {tenant(1): 0, tenant(2): 0}
        done = 0
        while done < 22:
            caller = here.began[done]
            done += 1
            assert caller.claim is not None
            owner = caller.claim._wish.tenant
            # The answers of the first are four times as long.
            long = 40 if owner == tenant(1) else 10
            caller.claim.tokens(10, long)
            served[owner] += 1
            await caller.leave()
            await settled()
        assert served[tenant(2)] / served[tenant(1)] >= 2


async def test_a_cancel_gives_the_place_in_the_queue_back() -> None:
    async with site() as here:
        here.worker(1)
        callers = [await here.ask() for _ in range(5)]
        await callers[2].cancel()
        await callers[3].cancel()
        assert here.dispatch.waiting == here.depth() == 1
        await callers[0].leave()
        await settled()
        assert callers[4].began.is_set()


async def test_a_cancel_of_one_whose_turn_has_just_come_gives_the_place_to_the_next() -> None:
    async with site() as here:
        here.worker(1)
        first, _, second, third = [await here.ask() for _ in range(4)]
        first._may_leave.set()
        # The first leaves in this turn of the loop: the claim is given out, and the second has not run yet.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert here.dispatch.waiting == 1
        assert not second.began.is_set()
        second.task.cancel()
        await settled()
        assert third.began.is_set()
        assert here.dispatch.in_flight == 2


async def test_a_claim_that_nobody_enters_is_given_back_with_the_search() -> None:
    async with site() as here:
        here.worker(1)
        async with aclosing(here.dispatch.find(wish())) as steps:
            claim = await anext(steps)
            assert here.dispatch.in_flight == 1
        assert here.dispatch.in_flight == 0
        assert isinstance(claim, Claim)
        with claim:
            assert here.dispatch.in_flight == 1
        assert here.dispatch.in_flight == 0


async def test_workers_that_join_or_become_free_by_their_own_word_wake_the_queue() -> None:
    async with site() as here:
        here.directory.worker(1, "m", load=Load(slots=1, running=3))
        callers = [await here.ask() for _ in range(5)]
        assert here.began == []
        here.directory.worker(1, "m", load=Load(slots=1))
        await settled()
        assert len(here.began) == 2
        here.worker(2)
        await settled()
        assert here.began == callers[:4]


async def test_when_one_of_two_workers_dies_the_queue_goes_on_with_the_other() -> None:
    async with site() as here:
        here.worker(1)
        here.worker(2)
        callers = [await here.ask() for _ in range(8)]
        here.directory.gone(node_id(1), "its link died")
        await settled()
        assert all(caller.error is None for caller in callers)
        for caller in [caller for caller in callers[:4] if caller.node == node_id(1)]:
            await caller.leave()
        assert len(here.began) == 4, "what ends on a worker that is gone frees nothing"
        await finish(here)
        assert len(here.began) == 8
        assert {caller.node for caller in callers[4:]} == {node_id(2)}


async def test_when_no_worker_is_left_all_that_wait_are_told_at_once() -> None:
    async with site(queue_per_tenant=400) as here:
        here.worker(1)
        callers = [await here.ask() for _ in range(300)]
        here.directory.gone(node_id(1), "its link died")
        await settled()
        assert all(isinstance(caller.error, errors.NotReachable) for caller in callers[2:])
        assert here.dispatch.waiting == 0
        assert (await here.ask()).error is not None


async def test_while_a_worker_loads_the_model_those_that_wait_go_on_waiting() -> None:
    async with site() as here:
        here.worker(1)
        callers = [await here.ask() for _ in range(4)]
        [entry] = here.directory.entries()
        ready = entry.announcement
        loading = msgspec.structs.replace(
            ready, models=tuple(msgspec.structs.replace(offer, ready=False) for offer in ready.models), not_ready="loading m"
        )
        here.directory.heard(loading, "nats")
        await settled()
        late = await here.ask()
        for caller in callers[:2]:
            await caller.leave()
        await settled()
        assert (here.dispatch.in_flight, here.dispatch.waiting) == (0, 3)
        here.directory.heard(ready, "nats")
        await settled()
        assert callers[2].began.is_set()
        assert late.error is None
        here.directory.heard(msgspec.structs.replace(ready, not_ready="paused by its owner"), "nats")
        await settled()
        assert isinstance(late.error, errors.NotReachable), "there is no telling when a pause ends"


async def test_when_only_workers_that_may_not_have_it_are_left_it_is_told_so() -> None:
    async with site(policy=Policy.TRUSTED) as here:
        here.worker(1)
        here.worker(2, slots=50, owner=str(tenant(9)))
        callers = [await here.ask() for _ in range(4)]
        owner = await here.ask(9)
        assert owner.node == node_id(2)
        assert {caller.node for caller in callers[:2]} == {node_id(1)}
        assert here.dispatch.waiting == 2, "a free worker that they may not use is not used"
        here.directory.gone(node_id(1), "its link died")
        await settled()
        assert [str(caller.error) for caller in callers[2:]] == [
            f"no worker of m may run this request: {node_id(2)[:8]}… is not labelled trusted=yes (ROUTING_POLICY=trusted)"
        ] * 2


async def test_a_place_that_those_before_may_not_have_goes_to_its_owner() -> None:
    async with site(policy=Policy.TRUSTED) as here:
        here.worker(1)
        here.worker(2, owner=str(tenant(9)))
        for _ in range(3):
            await here.ask(1)
        mine = [await here.ask(9) for _ in range(3)]
        assert [caller.began.is_set() for caller in mine] == [True, True, False]
        await mine[0].leave()
        await settled()
        assert here.began[-1] is mine[2]


async def test_an_organization_that_shares_its_founders_limits_shares_its_bound() -> None:
    async with site(queue_per_tenant=2) as here:
        here.worker(1)
        for _ in range(2):
            await here.ask(5)
        for of in (1, 2):
            await here.ask(of, limited_as=tenant(1))
        third = await here.ask(3, limited_as=tenant(1))
        assert isinstance(third.error, errors.Overloaded)
        assert third.error.message == "2 of your requests wait for m already, which is the most"
        assert (await here.ask(4)).error is None


async def test_a_machine_of_an_organizations_own_serves_it_while_its_founder_waits_for_another() -> None:
    async with site() as here:
        here.worker(1)
        here.worker(2, owner=str(tenant(7)), labels={"shared": "no"})
        for _ in range(2):
            await here.ask(1)
            await here.ask(7, limited_as=tenant(1))
        founders, organizations = await here.ask(1), await here.ask(7, limited_as=tenant(1))
        assert [founders.began.is_set(), organizations.began.is_set()] == [False, False]
        mine = next(caller for caller in here.began if caller.node == node_id(2))
        await mine.leave()
        await settled()
        assert organizations.began.is_set()
        assert not founders.began.is_set()


async def test_an_answer_that_goes_on_elsewhere_is_served_before_all_that_begin_and_not_refused_for_the_queue() -> None:
    async with site(queue_most=2) as here:
        here.worker(1)
        here.worker(2)
        callers = [await here.ask() for _ in range(6)]
        again = await here.ask(not_on=frozenset({node_id(1)}))
        assert again.error is None
        assert not again.began.is_set()
        on_two = next(caller for caller in callers if caller.claim and caller.node == node_id(2))
        await on_two.leave()
        await settled()
        assert here.began[-1] is again


async def test_over_the_bound_it_is_refused_at_once_with_a_time_to_come_back() -> None:
    async with site(queue_per_tenant=3, queue_most=5) as here:
        here.worker(1)
        mine = [await here.ask(1) for _ in range(6)]
        assert isinstance(mine[-1].error, errors.Overloaded)
        assert "3 of your requests wait" in str(mine[-1].error)
        assert mine[-1].error.retry_after_seconds
        others = [await here.ask(2) for _ in range(3)]
        assert [caller.error is None for caller in others] == [True, True, False]
        assert "5 requests wait already" in str(others[-1].error)
        third = await here.ask(3)
        assert isinstance(third.error, errors.Overloaded), "nor is there a place for one that has none yet"
        assert here.dispatch.waiting == here.depth() == 5


async def test_who_would_be_refused_can_be_told_before_anything_is_reserved() -> None:
    async with site(queue_per_tenant=1, queue_most=2) as here:
        with pytest.raises(errors.NotReachable):
            here.dispatch.ensure_place(wish())
        here.worker(1)
        for of in (1, 1, 1, 2):
            here.dispatch.ensure_place(wish(of))
            await here.ask(of)
        for of in (1, 3):
            with pytest.raises(errors.Overloaded):
                here.dispatch.ensure_place(wish(of))
        assert (here.dispatch.in_flight, here.dispatch.waiting) == (2, 2)


async def test_who_would_wait_too_long_is_refused_at_once_and_a_tenant_with_a_turn_is_not() -> None:
    async with site(queue_seconds=30) as here:
        here.worker(1)
        for _ in range(4):
            await here.ask(1)
        here.dispatch.lane(M).mean_seconds = 8
        assert (await here.ask(1)).error is None  # the third in the queue: 24 s
        late = await here.ask(1)  # the fourth: 32 s
        assert isinstance(late.error, errors.Overloaded)
        assert "about 32 s" in str(late.error)
        assert late.error.retry_after_seconds == 2
        assert (await here.ask(2)).error is None


async def test_who_has_waited_long_enough_is_refused() -> None:
    async with site(queue_seconds=0.02) as here:
        here.worker(1)
        callers = [await here.ask() for _ in range(3)]
        await callers[2].task
        assert isinstance(callers[2].error, errors.Overloaded)
        assert "no worker of m became free within 0.02 s" in str(callers[2].error)
        assert here.dispatch.waiting == 0


async def test_who_waits_hears_its_place_when_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.gateway.placing.dispatch.FIRST_WORD_SECONDS", 0.001)
    monkeypatch.setattr("services.gateway.placing.dispatch.WORDS_SECONDS", 0.001)
    monkeypatch.setattr("services.gateway.placing.lanes._PLACES_SECONDS", 0.0)
    async with site() as here:
        here.worker(1)
        callers = [await here.ask() for _ in range(5)]
        here.dispatch.lane(M).mean_seconds = 8
        last = callers[-1]
        async with asyncio.timeout(5):
            await last.hears("position 3 of 3")
            for place in (2, 1):
                await here.began[-1].leave()
                await last.hears(f"position {place} of {place}")
        assert last.said[0] == "position 3 of 3, about 24 s"
        assert len(last.said) == len(set(last.said)), "only what is new is said"


@pytest.fixture
def no_collector() -> Iterator[None]:
    """A full collection of all that a test process holds takes 100 ms, which nobody here is to be blamed for."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
async def test_two_thousand_offered_when_one_thousand_fit() -> None:
    """800 places on ten workers and 200 in the queue, of 50 tenants."""
    async with site(queue_most=200, queue_per_tenant=50) as here:
        for number in range(10):
            here.worker(number, slots=72)  # and an eighth of them held
        callers = [Caller(here, wish(number % 50)) for number in range(2000)]
        await asyncio.sleep(0.05)
        refused = [caller for caller in callers if caller.error]
        assert len(here.began) == 810
        assert len(refused) == 2000 - 810 - 200
        assert all(isinstance(caller.error, errors.Overloaded) and caller.error.retry_after_seconds for caller in refused)
        assert max(caller.seconds for caller in refused) <= 0.1
        await finish(here)
        assert len(here.began) == 1010
        assert here.dispatch.in_flight == here.dispatch.waiting == 0


async def test_a_worker_that_fails_five_times_in_a_row_rests_while_there_is_another() -> None:
    async with site() as here:
        here.worker(1, slots=50)
        here.worker(2, slots=50)
        failures = 0
        while failures < 5:
            caller = await here.ask()
            assert caller.claim is not None
            if caller.node == node_id(1):
                caller.claim.failed(errors.LinkLost("x"))
                failures += 1
            await caller.leave()
        assert {(await here.ask()).node for _ in range(20)} == {node_id(2)}


async def test_what_failed_counts_for_nobodys_turns_and_not_for_how_long_an_answer_takes() -> None:
    async with site() as here:
        here.worker(1)
        caller = await here.ask()
        lane = here.dispatch.lane(M)
        assert lane.queue.counter_of(tenant(1)) > 0
        assert caller.claim is not None
        caller.claim.failed(errors.LinkLost("x"))
        await caller.leave()
        assert lane.queue.counter_of(tenant(1)) == 0
        assert lane.mean_seconds == 0


async def test_what_was_delivered_counts_though_the_worker_failed_and_no_more_than_can_be() -> None:
    async with site() as here:
        here.worker(1)
        caller = await here.ask()
        assert caller.claim is not None
        caller.claim.tokens(10**9, 5)
        caller.claim.failed(errors.LinkLost("x"))
        assert here.dispatch.lane(M).queue.counter_of(tenant(1)) == 40 + 2 * 5


async def test_the_wait_of_every_request_is_measured() -> None:
    async with site() as here:
        here.worker(1)
        for _ in range(4):
            await here.ask()
        await finish(here)
        assert 'ai_platform_queue_wait_seconds_count{model="m"} 4.0' in here.metrics.render()


async def test_a_place_that_is_offered_goes_to_the_next_where_the_first_has_to_be_refused() -> None:
    async with site() as here:
        here.directory.worker(1, "m", load=Load(1, 1, 1))
        here.worker(2)
        for _ in range(2):
            await here.ask()
        hopeless = await here.ask(not_on=frozenset({node_id(1)}))
        waiting = await here.ask(2)
        assert not waiting.began.is_set()
        here.dispatch.knowledge.strikes.learn({node_id(2): 3600.0}, here.dispatch.clock())
        here.dispatch.heard(QueueReport("other", M, offers=(Offer("", node_id(1)),)))
        await settled()
        assert isinstance(hopeless.error, errors.NotReachable)
        assert waiting.began.is_set()
        assert waiting.node == node_id(1)


async def test_the_queue_and_the_claim_charge_the_same_though_the_mean_of_answers_has_changed() -> None:
    async with site() as here:
        here.worker(1)
        first, second = await here.ask(1, max_tokens=1000), await here.ask(1, max_tokens=1000)
        third = await here.ask(2, max_tokens=1000)
        assert first.claim is not None
        before = here.dispatch.lane(M).queue.counter_of(tenant(2))
        # The mean length of the answers changes while the third waits.
        first.claim.tokens(40, 1000)
        await first.leave()
        await second.leave()
        await settled()
        assert third.claim is not None
        third.claim.failed(errors.NotReachable("its engine died"))
        assert here.dispatch.lane(M).queue.counter_of(tenant(2)) == pytest.approx(before)
