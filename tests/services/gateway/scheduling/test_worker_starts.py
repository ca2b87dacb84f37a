"""Requests that wait for the first worker of a pool."""

from types import SimpleNamespace

import msgspec
import pytest

from services.gateway.scheduling import worker_starts
from services.gateway.scheduling.peer_queues import PeerWaiting, QueueReport
from services.gateway.scheduling.worker_starts import WorkerStarts
from shared import errors
from shared.protocol.directory import ResumeOrigin, WorkerLoad
from shared.types import ModelName
from shared.worker_pools import PoolsFile, WorkerPool
from tests.services.gateway.fakes import FakeDirectory, node_id
from tests.services.gateway.scheduling.asking import DispatchHarness, M, dispatch_harness, finish, requirements, settled, tenant

POOL = WorkerPool(name="l4", models=("m",), min=0, max=3, start_seconds=90)


def oldest(harness: DispatchHarness) -> float:
    return next(
        sample.value for family in harness.metrics.oldest_wait.collect() for sample in family.samples if sample.labels["model"] == M
    )


async def test_a_request_waits_for_the_first_worker_and_is_told_at_once() -> None:
    async with dispatch_harness(POOL) as harness:
        caller = await harness.ask()
        await caller.wait_for_notice("waiting: a worker is starting, about 90 s")
        assert (harness.dispatch.waiting, harness.depth()) == (1, 1)
        assert oldest(harness) > 0
        harness.worker(1)
        await caller.began.wait()
        assert caller.claim is not None
        assert caller.claim.start_wait_seconds >= 0.1
        await finish(harness)
        assert (harness.depth(), oldest(harness)) == (0, 0)


async def test_a_model_outside_of_the_pools_is_refused_as_before() -> None:
    async with dispatch_harness(msgspec.structs.replace(POOL, models=("other",))) as harness:
        error = (await harness.ask()).error
        assert type(error) is errors.NotReachable


async def test_a_request_that_was_not_held_has_no_held_time() -> None:
    async with dispatch_harness(POOL) as harness:
        harness.worker(1)
        caller = await harness.ask()
        assert caller.claim is not None
        assert caller.claim.start_wait_seconds == 0.0


async def test_when_the_time_is_up_the_error_has_the_time_of_a_start() -> None:
    async with dispatch_harness(POOL, start_seconds=0.01) as harness:
        caller = await harness.ask()
        await caller.task
        assert isinstance(caller.error, errors.NotStarted)
        assert (caller.error.code, caller.error.status, caller.error.retry_after_seconds) == ("not_started", 503, 90)
        assert "no worker of m was ready after 0.01 s" in caller.error.message
        assert harness.depth() == 0


async def test_waiting_requests_keep_within_the_bounds_and_the_rest_is_told_when_to_retry() -> None:
    """A burst of ten times the bound, from many users."""
    async with dispatch_harness(POOL, queue_most=20, queue_per_tenant=2) as harness:
        # Earlier answers took long, but the retry time depends on the worker's start.
        harness.dispatch.model_queue(M).mean_seconds = 60
        callers = [await harness.ask(number % 50) for number in range(200)]
        refused = [caller.error for caller in callers if caller.error is not None]
        assert (harness.dispatch.waiting, harness.depth(), len(refused)) == (20, 20, 180)
        assert all(isinstance(error, errors.Overloaded) for error in refused)
        assert {round(error.retry_after_seconds or 0) for error in refused} == {90}
        assert "a worker of m is starting and 20 requests are already queued" in refused[0].message
        for of in (1, 49):
            with pytest.raises(errors.Overloaded, match="20 requests are already queued"):
                harness.dispatch.ensure_capacity(requirements(of))
        harness.worker(1, slots=20)
        await settled()
        assert len(harness.began) == 20


async def test_a_caller_that_leaves_frees_its_place_at_once() -> None:
    async with dispatch_harness(POOL, queue_per_tenant=1) as harness:
        first = await harness.ask()
        assert isinstance((await harness.ask()).error, errors.Overloaded)
        await first.cancel()
        assert (harness.dispatch.waiting, harness.depth(), oldest(harness)) == (0, 0, 0)
        assert (await harness.ask()).error is None


async def test_after_the_start_the_requests_wait_for_a_slot_as_long_as_others() -> None:
    """The first worker can't serve all of them at once."""
    async with dispatch_harness(POOL, start_seconds=0.2, queue_seconds=600) as harness:
        callers = [await harness.ask() for _ in range(3)]
        await callers[0].wait_for_notice("waiting")
        for waiter in harness.dispatch.model_queue(M).queue.order():
            waiter.entered_at -= 1000
        harness.directory.worker(1, "m", load=WorkerLoad(slots=1, running=9))
        await callers[2].wait_for_notice("position 3 of 3")
        assert all(
            harness.dispatch._waits_until(waiter) > harness.dispatch.clock() + 500
            for waiter in harness.dispatch.model_queue(M).queue.turns()
        )
        harness.worker(1)
        await settled()
        assert len(harness.began) == 2


async def test_requests_wait_again_if_the_last_worker_dies() -> None:
    async with dispatch_harness(POOL) as harness:
        harness.worker(1)
        callers = [await harness.ask() for _ in range(4)]
        harness.directory.mark_gone(node_id(1), "its link died")
        await callers[3].wait_for_notice("waiting: a worker is starting")
        assert harness.dispatch.waiting == 2
        harness.worker(2)
        await settled()
        assert {caller.node for caller in callers[2:]} == {node_id(2)}


async def test_a_started_answer_and_a_target_with_an_alternative_do_not_wait() -> None:
    async with dispatch_harness(POOL) as harness:
        for more in ({"origin": ResumeOrigin("d")}, {"has_alternative": True}):
            assert type((await harness.ask(**more)).error) is errors.NotReachable


async def test_a_pool_that_is_given_up_refuses_its_requests_with_the_reason() -> None:
    async with dispatch_harness(POOL) as harness:
        callers = [await harness.ask(number) for number in range(3)]
        harness.dispatch.give_up("l4", "no GPU in us-east1", 60)
        await settled()
        for caller in (*callers, await harness.ask(4)):
            assert isinstance(caller.error, errors.NotStarted)
            assert caller.error.message == "no worker of m can be started: no GPU in us-east1"
            assert caller.error.retry_after_seconds == 90
        assert harness.depth() == 0
        harness.dispatch.give_up("l4", "", 0)
        assert (await harness.ask()).error is None
        harness.dispatch.give_up("l4", "no GPU", 60)
        harness.worker(1)
        harness.directory.mark_gone(node_id(1), "stopped")
        assert (await harness.ask()).error is None, "a worker was ready meanwhile"


async def test_each_gateway_holds_its_own_requests_within_one_bound() -> None:
    async with dispatch_harness(POOL, queue_most=3) as harness:
        harness.dispatch.apply_report(QueueReport("0", M, (PeerWaiting(tenant(9), 2, 0, requirements(9).kind),), whole=True))
        assert (harness.depth(), oldest(harness)) == (0, 0), "the other gateway counts them"
        assert (await harness.ask()).error is None
        assert isinstance((await harness.ask()).error, errors.Overloaded)
        assert harness.depth() == 1
        assert oldest(harness) > 0


def test_a_pool_of_labels_has_the_models_that_its_workers_had() -> None:
    directory, pool = FakeDirectory(), WorkerPool(name="t4", labels={"gpu": "t4"}, min=0, max=3)
    starts = WorkerStarts(SimpleNamespace(pools=(pool,)))
    directory.watch(starts.apply_change)
    assert starts.pools == {}
    directory.worker(1, "m", labels={"gpu": "t4", "zone": "a"})
    directory.worker(2, "other", labels={"gpu": "l4"})
    directory.mark_gone(node_id(1), "stopped")
    assert starts.pools == {M: pool}
    directory.worker(1, *(f"m{number}" for number in range(200)), labels={"gpu": "t4"})
    assert len(starts.pools) == 100


def test_the_time_that_is_left_is_of_the_start_and_not_of_the_request() -> None:
    starts = WorkerStarts(SimpleNamespace(pools=POOLS))
    assert starts.seconds_left(requirements(), 1000.0) == 90
    assert starts.begin(requirements(), 1000.0)
    assert starts.begin(requirements(2), 1030.0)
    assert starts.seconds_left(requirements(2), 1030.0) == 60
    assert starts.seconds_left(requirements(2), 1100.0) == 0
    assert starts.begin(requirements(3), 1300.0), "a start that long ago is over"
    assert starts.seconds_left(requirements(3), 1300.0) == 90


def test_pools_are_read_again_when_they_change() -> None:
    file = PoolsFile(None)
    starts = WorkerStarts(file)
    assert not starts.begin(requirements(), 0.0)
    file.pools = POOLS
    assert starts.pools == {ModelName("m"): POOL}
    assert starts.begin(requirements(), 0.0)


@pytest.mark.parametrize(
    ("seconds_left", "shown"),
    [
        (90.0, "about 90 s"), (89.9, "about 90 s"), (80.1, "about 90 s"), (80.0, "about 80 s"),
        (10.1, "about 20 s"), (9.1, "about 10 s"), (0.2, "about 1 s"), (0.0, "and takes longer than usual"),
    ],
)  # fmt: skip
def test_the_notice_changes_every_ten_seconds(seconds_left: float, shown: str) -> None:
    assert worker_starts.describe(seconds_left).removeprefix("waiting: a worker is starting, ") == shown


POOLS = (POOL,)
