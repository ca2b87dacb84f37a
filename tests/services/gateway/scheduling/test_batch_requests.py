"""Requests of batches at the gateway's queue, behind live ones."""

from typing import Any

import msgspec
import pytest

from services.gateway.scheduling.worker_capacity import Occupancy
from shared import errors
from shared.protocol.directory import DirectoryEntry, ModelOffer, ResumeOrigin, WorkerLoad
from tests.services.gateway.fakes import FakeDirectory, announcement, node_id
from tests.services.gateway.scheduling.asking import DispatchHarness, M, dispatch_harness, finish, settled, tenant


def announce(harness: DispatchHarness | FakeDirectory, slots: int, *, yields: bool = True, busy: int = 0, batch: int = 0) -> None:
    offer = ModelOffer(M, 2048, slots=slots, busy=busy, yields=yields, batch_busy=batch)
    directory = harness if isinstance(harness, FakeDirectory) else harness.directory
    announced = msgspec.structs.replace(announcement(1, load=WorkerLoad(slots=slots)), models=(offer,))
    directory.apply_announcement(announced, "nats")


async def test_live_requests_come_before_those_of_batches() -> None:
    async with dispatch_harness() as harness:
        announce(harness, 1)
        first = await harness.ask(1)
        batches = [await harness.ask(2, batch=True) for _ in range(3)]
        live = [await harness.ask(1) for _ in range(3)]
        assert harness.dispatch.waiting == 5, "one live request waits at the worker"
        assert list(await finish(harness)) == [first, *live, *batches]


async def test_batch_requests_get_the_slots_that_live_ones_leave_and_take_none() -> None:
    async with dispatch_harness() as harness:
        announce(harness, 4)
        live = await harness.ask(1)
        batches = [await harness.ask(2, batch=True) for _ in range(5)]
        assert [one.began.is_set() for one in batches] == [True, True, True, False, False]
        more = [await harness.ask(1) for _ in range(3)]
        assert all(one.began.is_set() for one in more), "on the worker, they take the slots of batches"
        for one in (live, *more[1:]):
            await one.leave()
        await batches[0].leave()
        await settled()
        assert [one.began.is_set() for one in batches] == [True, True, True, True, False]


async def test_batch_requests_of_tenants_take_turns_and_cost_no_live_turn() -> None:
    async with dispatch_harness() as harness:
        announce(harness, 1)
        await harness.ask(9, batch=True)
        many = [await harness.ask(1, batch=True) for _ in range(3)]
        one = await harness.ask(2, batch=True)
        order = list(await finish(harness))
        assert order.index(one) < order.index(many[1])
        assert harness.dispatch.model_queue(M).queue.counter_of(tenant(1)) == 0


async def test_flood_of_batch_requests_refuses_no_live_one() -> None:
    async with dispatch_harness(queue_most=10, queue_per_tenant=10) as harness:
        announce(harness, 1)
        await harness.ask(1, batch=True)
        flood = [await harness.ask(2, batch=True) for _ in range(12)]
        assert [isinstance(one.error, errors.Overloaded) for one in flood] == [False] * 10 + [True] * 2
        live = [await harness.ask(2) for _ in range(5)]
        assert all(one.error is None for one in live)


async def test_batch_request_that_waits_too_long_is_told_so() -> None:
    async with dispatch_harness(batch_seconds=0.02) as harness:
        announce(harness, 1, busy=1)
        waiting = await harness.ask(1, batch=True)
        await waiting.task
        assert isinstance(waiting.error, errors.ResourceUnavailable)
        assert waiting.error.status == 429


async def test_batch_request_waits_no_longer_than_its_caller() -> None:
    async with dispatch_harness() as harness:
        announce(harness, 1, busy=1)
        waiting = await harness.ask(1, batch=True, most_wait_seconds=0.02)
        await waiting.task
        assert isinstance(waiting.error, errors.ResourceUnavailable)


@pytest.mark.parametrize("again", [{"is_preempted": True}, {"origin": ResumeOrigin("", "")}, {"excluded": frozenset({node_id(7)})}])
async def test_batch_request_that_continues_is_before_the_tenants_others_but_behind_live_ones(again: dict[str, Any]) -> None:
    async with dispatch_harness() as harness:
        announce(harness, 1)
        first = await harness.ask(1)
        later = await harness.ask(2, batch=True)
        continued = await harness.ask(2, batch=True, **again)
        live = [await harness.ask(1) for _ in range(2)]
        assert list(await finish(harness)) == [first, *live, continued, later]


async def test_live_request_takes_no_slot_of_a_tenant_for_its_batch() -> None:
    async with dispatch_harness() as harness:
        announce(harness, 2)
        for _ in range(2):
            await harness.ask(1, batch=True)
        assert not harness.dispatch._held_here(M)


# --- workers that don't yield ------------------------------------------------------------------------------------------------------


def entry(slots: int, *, yields: bool, busy: int = 0, batch: int = 0) -> tuple[DirectoryEntry, ModelOffer]:
    directory = FakeDirectory()
    announce(directory, slots, yields=yields, busy=busy, batch=batch)
    found = directory.find(node_id(1))
    assert found is not None
    return found, found.announcement.models[0]


@pytest.mark.parametrize(("slots", "free"), [(1, 1), (3, 1), (4, 1), (8, 2), (256, 64)])
def test_worker_that_does_not_yield_gives_batches_a_quarter_of_its_slots(slots: int, free: int) -> None:
    assert Occupancy().batch_capacity_of(*entry(slots, yields=False), 0.0).free == free


def test_worker_that_does_not_yield_runs_batches_only_after_a_second_without_live_calls() -> None:
    occupancy, worker = Occupancy(), entry(8, yields=False)
    occupancy.begin(node_id(1), M)
    assert occupancy.batch_capacity_of(*worker, 0.0).free == 0
    occupancy.end(node_id(1), M, 5.0)
    assert [occupancy.batch_capacity_of(*worker, now).free for now in (5.0, 5.9, 6.0)] == [0, 0, 2]
    occupancy.begin(node_id(1), M, is_batch=True)
    assert occupancy.batch_capacity_of(*worker, 6.0).free == 1, "its own batch is no live call"
    assert occupancy.capacity_of(*worker).free == 7, "a live call can't take its slot"


def test_calls_of_other_gateways_count_as_the_worker_says() -> None:
    occupancy = Occupancy()
    assert occupancy.batch_capacity_of(*entry(8, yields=False, busy=3), 0.0).free == 0
    assert Occupancy().batch_capacity_of(*entry(8, yields=False, busy=2, batch=2), 0.0).free == 0
    assert Occupancy().batch_capacity_of(*entry(8, yields=True, busy=3, batch=2), 0.0).free == 3
    assert Occupancy().capacity_of(*entry(8, yields=True, busy=3, batch=2)).free == 5
