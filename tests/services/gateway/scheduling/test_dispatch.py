"""The queue in front of the workers."""

import asyncio
import gc
from collections.abc import Iterator

import msgspec
import pytest

from services.gateway.facts.placements import Placement
from services.gateway.scheduling.peer_queues import PeerOffer, PeerWaiting, QueueReport
from shared import errors
from shared.config_documents import Machines
from shared.protocol.directory import WorkerLoad
from tests.services.gateway.fakes import node_id
from tests.services.gateway.scheduling.asking import M, dispatch_harness, finish, requirements, settled, tenant
from tests.stopwatch import HANG_SECONDS


async def test_a_request_starts_immediately_without_a_notice_if_a_worker_is_free() -> None:
    async with dispatch_harness() as harness:
        harness.worker(1, slots=2)
        first, second = await harness.ask(), await harness.ask()
        assert first.began.is_set()
        assert second.began.is_set()
        assert first.notices == []
        assert harness.dispatch.in_flight == 2
        await finish(harness)
        assert (harness.dispatch.in_flight, harness.dispatch.waiting) == (0, 0)


async def test_a_worker_queues_one_call_and_the_others_wait_at_the_gateway() -> None:
    async with dispatch_harness() as harness:
        harness.worker(1, slots=2)
        callers = [await harness.ask() for _ in range(6)]
        assert [caller.began.is_set() for caller in callers] == [True] * 3 + [False] * 3
        assert (harness.dispatch.in_flight, harness.dispatch.waiting, harness.depth()) == (3, 3, 3)
        await callers[1].leave()
        await settled()
        assert [caller.began.is_set() for caller in callers] == [True] * 4 + [False] * 2
        assert list(await finish(harness)) == callers
        assert (harness.dispatch.in_flight, harness.depth()) == (0, 0)


async def test_one_request_is_served_next_although_another_tenant_has_queued_500() -> None:
    async with dispatch_harness(queue_per_tenant=500) as harness:
        harness.worker(1)
        flood = [await harness.ask(1) for _ in range(500)]
        late = await harness.ask(2)
        assert not late.began.is_set()
        await flood[0].leave()
        await settled()
        assert harness.began[-1] is late


async def test_two_waiting_tenants_take_turns_by_service_received() -> None:
    async with dispatch_harness() as harness:
        harness.worker(1)
        for _ in range(20):
            await harness.ask(1)
            await harness.ask(2)
        for caller in harness.began[:2]:
            await caller.leave()
        served = {tenant(1): 0, tenant(2): 0}
        done = 0
        while done < 22:
            caller = harness.began[done]
            done += 1
            assert caller.claim is not None
            owner = caller.claim.requirements.tenant
            # The first tenant's answers are four times as long.
            long = 40 if owner == tenant(1) else 10
            caller.claim.record_tokens(10, long)
            served[owner] += 1
            await caller.leave()
            await settled()
        assert served[tenant(2)] / served[tenant(1)] >= 2


async def test_a_cancellation_frees_the_place_in_the_queue() -> None:
    async with dispatch_harness() as harness:
        harness.worker(1)
        callers = [await harness.ask() for _ in range(5)]
        await callers[2].cancel()
        await callers[3].cancel()
        assert harness.dispatch.waiting == harness.depth() == 1
        await callers[0].leave()
        await settled()
        assert callers[4].began.is_set()


async def test_canceling_a_request_that_was_just_assigned_passes_its_slot_on() -> None:
    async with dispatch_harness() as harness:
        harness.worker(1)
        first, _, second, third = [await harness.ask() for _ in range(4)]
        first._may_leave.set()
        # The first request ends in this turn of the loop: the slot is assigned, but the second hasn't run yet.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert harness.dispatch.waiting == 1
        assert not second.began.is_set()
        second.task.cancel()
        await settled()
        assert third.began.is_set()
        assert harness.dispatch.in_flight == 2


async def test_a_claim_that_its_caller_does_not_take_is_released() -> None:
    async with dispatch_harness() as harness:
        harness.worker(1)
        finding = harness.dispatch.find(requirements())
        await anext(finding)
        assert harness.dispatch.in_flight == 1
        await finding.aclose()
        assert harness.dispatch.in_flight == 0


async def test_announcements_of_new_or_free_workers_wake_the_queue() -> None:
    async with dispatch_harness() as harness:
        harness.directory.worker(1, "m", load=WorkerLoad(slots=1, running=3))
        callers = [await harness.ask() for _ in range(5)]
        assert harness.began == []
        harness.directory.worker(1, "m", load=WorkerLoad(slots=1))
        await settled()
        assert len(harness.began) == 2
        harness.worker(2)
        await settled()
        assert harness.began == callers[:4]


async def test_if_one_of_two_workers_dies_the_other_serves_the_queue() -> None:
    async with dispatch_harness() as harness:
        harness.worker(1)
        harness.worker(2)
        callers = [await harness.ask() for _ in range(8)]
        harness.directory.mark_gone(node_id(1), "its link died")
        await settled()
        assert all(caller.error is None for caller in callers)
        for caller in [caller for caller in callers[:4] if caller.node == node_id(1)]:
            await caller.leave()
        assert len(harness.began) == 4, "a request that ends on a lost worker frees no slot"
        await finish(harness)
        assert len(harness.began) == 8
        assert {caller.node for caller in callers[4:]} == {node_id(2)}


async def test_if_no_worker_is_left_all_waiting_requests_are_refused_immediately() -> None:
    async with dispatch_harness(queue_per_tenant=400) as harness:
        harness.worker(1)
        callers = [await harness.ask() for _ in range(300)]
        harness.directory.mark_gone(node_id(1), "its link died")
        await settled()
        assert all(isinstance(caller.error, errors.NotReachable) for caller in callers[2:])
        assert harness.dispatch.waiting == 0
        assert (await harness.ask()).error is not None


async def test_requests_keep_waiting_while_a_worker_loads_the_model() -> None:
    async with dispatch_harness() as harness:
        harness.worker(1)
        callers = [await harness.ask() for _ in range(4)]
        [entry] = harness.directory.entries()
        ready = entry.announcement
        loading = msgspec.structs.replace(
            ready, models=tuple(msgspec.structs.replace(offer, ready=False) for offer in ready.models), not_ready="loading m"
        )
        harness.directory.apply_announcement(loading, "nats")
        await settled()
        late = await harness.ask()
        for caller in callers[:2]:
            await caller.leave()
        await settled()
        assert (harness.dispatch.in_flight, harness.dispatch.waiting) == (0, 3)
        harness.directory.apply_announcement(ready, "nats")
        await settled()
        assert callers[2].began.is_set()
        assert late.error is None
        harness.directory.apply_announcement(msgspec.structs.replace(ready, not_ready="paused by its owner"), "nats")
        await settled()
        assert isinstance(late.error, errors.NotReachable), "it is unknown when a pause ends"


TRUSTED = Placement(Machines.TRUSTED)


async def test_if_only_ineligible_workers_are_left_the_request_is_refused() -> None:
    async with dispatch_harness() as harness:
        harness.worker(1)
        harness.worker(2, slots=50, owner=str(tenant(9)))
        callers = [await harness.ask(placement=TRUSTED) for _ in range(4)]
        owner = await harness.ask(9, placement=TRUSTED)
        assert owner.node == node_id(2)
        assert {caller.node for caller in callers[:2]} == {node_id(1)}
        assert harness.dispatch.waiting == 2, "a free worker that they may not use is not used"
        harness.directory.mark_gone(node_id(1), "its link died")
        await settled()
        assert [str(caller.error) for caller in callers[2:]] == [
            f"no worker of m may run this request: {node_id(2)[:8]}… is not one of the machines that the policy allows (trusted)"
        ] * 2


async def test_a_slot_that_earlier_requests_may_not_use_goes_to_its_owner() -> None:
    async with dispatch_harness() as harness:
        harness.worker(1)
        harness.worker(2, owner=str(tenant(9)))
        for _ in range(3):
            await harness.ask(1, placement=TRUSTED)
        mine = [await harness.ask(9, placement=TRUSTED) for _ in range(3)]
        assert [caller.began.is_set() for caller in mine] == [True, True, False]
        await mine[0].leave()
        await settled()
        assert harness.began[-1] is mine[2]


async def test_an_organizations_own_worker_serves_it_while_its_founder_waits_for_another() -> None:
    async with dispatch_harness() as harness:
        harness.worker(1)
        harness.worker(2, owner=str(tenant(7)), labels={"shared": "no"})
        for _ in range(2):
            await harness.ask(1)
            await harness.ask(7, limited_as=tenant(1))
        founders, organizations = await harness.ask(1), await harness.ask(7, limited_as=tenant(1))
        assert [founders.began.is_set(), organizations.began.is_set()] == [False, False]
        mine = next(caller for caller in harness.began if caller.node == node_id(2))
        await mine.leave()
        await settled()
        assert organizations.began.is_set()
        assert not founders.began.is_set()


async def test_an_idle_worker_serves_its_owner_although_many_of_their_organizations_requests_wait() -> None:
    async with dispatch_harness(queue_per_tenant=1) as harness:
        harness.worker(1)
        harness.worker(2, owner=str(tenant(1)), labels={"shared": "no"})
        while (other := await harness.ask(2)).began.is_set():
            assert other.node == node_id(1)
        assert not (await harness.ask(7, limited_as=tenant(1))).began.is_set()
        full = await harness.ask(7, limited_as=tenant(1))
        assert "1 of your requests are already queued" in str(full.error)
        harness.dispatch.ensure_capacity(requirements(1))
        mine = await harness.ask(1)
        assert mine.error is None
        assert mine.node == node_id(2)
        while (late := await harness.ask(1)).began.is_set():
            assert late.node == node_id(2)
        assert "of your requests are already queued" in str(late.error)


async def test_a_resumed_answer_is_served_first_and_not_refused_for_the_queue() -> None:
    async with dispatch_harness(queue_most=2) as harness:
        harness.worker(1)
        harness.worker(2)
        callers = [await harness.ask() for _ in range(6)]
        again = await harness.ask(excluded=frozenset({node_id(1)}))
        assert again.error is None
        assert not again.began.is_set()
        on_two = next(caller for caller in callers if caller.claim and caller.node == node_id(2))
        await on_two.leave()
        await settled()
        assert harness.began[-1] is again


async def test_waiting_callers_learn_their_new_position(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.gateway.scheduling.dispatch.FIRST_NOTICE_SECONDS", 0.001)
    monkeypatch.setattr("services.gateway.scheduling.dispatch.NOTICE_SECONDS", 0.001)
    monkeypatch.setattr("services.gateway.scheduling.fair_queue._POSITIONS_SECONDS", 0.0)
    async with dispatch_harness() as harness:
        harness.worker(1)
        callers = [await harness.ask() for _ in range(5)]
        harness.dispatch.model_queue(M).mean_seconds = 8
        last = callers[-1]
        async with asyncio.timeout(HANG_SECONDS):
            await last.wait_for_notice("position 3 of 3")
            for place in (2, 1):
                await harness.began[-1].leave()
                await last.wait_for_notice(f"position {place} of {place}")
        assert last.notices[0] == "position 3 of 3, about 24 s"
        assert len(last.notices) == len(set(last.notices)), "only new notices are sent"


@pytest.fixture
def no_collector() -> Iterator[None]:
    """A full garbage collection of the test process takes 100 ms, which isn't the queue's fault."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
async def test_the_wait_of_every_request_is_measured() -> None:
    async with dispatch_harness() as harness:
        harness.worker(1)
        for _ in range(4):
            await harness.ask()
        await finish(harness)
        assert 'ai_platform_queue_wait_seconds_count{model="m"} 4.0' in harness.metrics.render()


async def test_an_offered_slot_goes_to_the_next_request_if_the_first_is_refused() -> None:
    async with dispatch_harness() as harness:
        harness.directory.worker(1, "m", load=WorkerLoad(1, 1, 1))
        harness.worker(2)
        for _ in range(2):
            await harness.ask()
        hopeless = await harness.ask(excluded=frozenset({node_id(1)}))
        waiting = await harness.ask(2)
        assert not waiting.began.is_set()
        harness.dispatch.worker_stats.dishonest_workers.learn({node_id(2): 3600.0}, harness.dispatch.clock())
        harness.dispatch.apply_report(QueueReport("other", M, offers=(PeerOffer("", node_id(1)),)))
        await settled()
        assert isinstance(hopeless.error, errors.NotReachable)
        assert waiting.began.is_set()
        assert waiting.node == node_id(1)


async def test_oldest_wait_and_refusals_are_measured_for_autoscaling() -> None:
    async with dispatch_harness(queue_most=1) as harness:
        now = 1000.0
        harness.dispatch.clock = lambda: now
        harness.worker(1)
        for _ in range(2):  # one runs, and the worker queues one
            await harness.ask()
        harness.dispatch.apply_report(QueueReport("other", M, (PeerWaiting(tenant(2), 1, 0, requirements(2).kind),)))
        now += 3
        assert harness.dispatch.oldest_wait(M) == 0, "another gateway's request is measured there"
        harness.dispatch.forget_peers()
        waiting = await harness.ask()
        now += 7
        assert 'ai_platform_oldest_wait_seconds{model="m"} 7.0' in harness.metrics.render()
        with pytest.raises(errors.Overloaded, match="1 requests are already queued"):
            harness.dispatch.ensure_capacity(requirements())
        assert 'ai_platform_model_requests_total{model="m",result="refused"} 1.0' in harness.metrics.render()
        await waiting.cancel()
        assert harness.dispatch.oldest_wait(M) == 0
