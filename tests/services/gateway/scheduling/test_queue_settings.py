"""The limits of the queue, with a whole dispatch."""

import asyncio

import pytest

from shared import errors
from tests import stopwatch
from tests.services.gateway.scheduling.asking import Caller, M, dispatch_harness, finish, requirements, settled, tenant


async def test_over_the_bound_requests_are_refused_immediately_with_a_retry_time() -> None:
    async with dispatch_harness(queue_per_tenant=3, queue_most=5) as harness:
        harness.worker(1)
        mine = [await harness.ask(1) for _ in range(6)]
        assert isinstance(mine[-1].error, errors.Overloaded)
        assert "3 of your requests are already queued" in str(mine[-1].error)
        assert mine[-1].error.retry_after_seconds
        others = [await harness.ask(2) for _ in range(3)]
        assert [caller.error is None for caller in others] == [True, True, False]
        assert "5 requests are already queued" in str(others[-1].error)
        third = await harness.ask(3)
        assert isinstance(third.error, errors.Overloaded), "a tenant without waiting requests is refused too"
        assert harness.dispatch.waiting == harness.depth() == 5


async def test_an_organization_that_shares_its_founders_limits_shares_its_queue_bound() -> None:
    async with dispatch_harness(queue_per_tenant=2) as harness:
        harness.worker(1)
        for _ in range(2):
            await harness.ask(5)
        for of in (1, 2):
            await harness.ask(of, limited_as=tenant(1))
        third = await harness.ask(3, limited_as=tenant(1))
        assert isinstance(third.error, errors.Overloaded)
        assert third.error.message == "2 of your requests are already queued for m, which is the limit"
        assert (await harness.ask(4)).error is None


async def test_ensure_capacity_refuses_before_anything_is_reserved() -> None:
    async with dispatch_harness(queue_per_tenant=1, queue_most=2) as harness:
        harness.worker(1)
        for of in (1, 1, 1, 2):
            harness.dispatch.ensure_capacity(requirements(of))
            await harness.ask(of)
        for of in (1, 3):
            with pytest.raises(errors.Overloaded):
                harness.dispatch.ensure_capacity(requirements(of))
        assert (harness.dispatch.in_flight, harness.dispatch.waiting) == (2, 2)


async def test_a_request_with_too_long_a_wait_is_refused_but_not_a_tenant_whose_turn_it_is() -> None:
    async with dispatch_harness(queue_seconds=30) as harness:
        harness.worker(1)
        for _ in range(4):
            await harness.ask(1)
        harness.dispatch.model_queue(M).mean_seconds = 8
        assert (await harness.ask(1)).error is None  # the third in the queue: 24 s
        late = await harness.ask(1)  # the fourth: 32 s
        assert isinstance(late.error, errors.Overloaded)
        assert "expected wait is 32 s" in str(late.error)
        assert late.error.retry_after_seconds == 2
        assert (await harness.ask(2)).error is None


async def test_a_request_that_waited_too_long_is_refused() -> None:
    async with dispatch_harness(queue_seconds=0.02) as harness:
        harness.worker(1)
        callers = [await harness.ask() for _ in range(3)]
        await callers[2].task
        assert isinstance(callers[2].error, errors.Overloaded)
        assert "no worker of m became free within 0.02 s" in str(callers[2].error)
        assert harness.dispatch.waiting == 0


async def test_two_thousand_requests_for_one_thousand_slots() -> None:
    """800 requests run on ten workers and 200 are queued; they come from 50 tenants."""
    async with dispatch_harness(queue_most=200, queue_per_tenant=50) as harness:
        for number in range(10):
            harness.worker(number, slots=72)  # the worker holds an eighth more
        callers = [Caller(harness, requirements(number % 50)) for number in range(2000)]
        async with asyncio.timeout(60):
            while len(harness.began) + sum(caller.error is not None for caller in callers) < 1800:  # noqa: ASYNC110 - no event
                await asyncio.sleep(0.01)
        await settled()
        refused = [caller for caller in callers if caller.error]
        assert len(harness.began) == 810
        assert len(refused) == 2000 - 810 - 200
        assert all(isinstance(caller.error, errors.Overloaded) and caller.error.retry_after_seconds for caller in refused)
        assert max(caller.seconds for caller in refused) <= 0.1 or not stopwatch.bounds_hold
        await finish(harness)
        assert len(harness.began) == 1010
        assert harness.dispatch.in_flight == harness.dispatch.waiting == 0
