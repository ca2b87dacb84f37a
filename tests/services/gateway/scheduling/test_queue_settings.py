"""The limits of the queue, with a whole dispatch."""

import asyncio

import pytest

from shared import errors
from tests import stopwatch
from tests.services.gateway.scheduling.asking import Caller, M, finish, requirements, settled, site, tenant


async def test_over_the_bound_requests_are_refused_immediately_with_a_retry_time() -> None:
    async with site(queue_per_tenant=3, queue_most=5) as here:
        here.worker(1)
        mine = [await here.ask(1) for _ in range(6)]
        assert isinstance(mine[-1].error, errors.Overloaded)
        assert "3 of your requests are already queued" in str(mine[-1].error)
        assert mine[-1].error.retry_after_seconds
        others = [await here.ask(2) for _ in range(3)]
        assert [caller.error is None for caller in others] == [True, True, False]
        assert "5 requests are already queued" in str(others[-1].error)
        third = await here.ask(3)
        assert isinstance(third.error, errors.Overloaded), "a tenant without waiting requests is refused too"
        assert here.dispatch.waiting == here.depth() == 5


async def test_an_organization_that_shares_its_founders_limits_shares_its_queue_bound() -> None:
    async with site(queue_per_tenant=2) as here:
        here.worker(1)
        for _ in range(2):
            await here.ask(5)
        for of in (1, 2):
            await here.ask(of, limited_as=tenant(1))
        third = await here.ask(3, limited_as=tenant(1))
        assert isinstance(third.error, errors.Overloaded)
        assert third.error.message == "2 of your requests are already queued for m, which is the limit"
        assert (await here.ask(4)).error is None


async def test_ensure_capacity_refuses_before_anything_is_reserved() -> None:
    async with site(queue_per_tenant=1, queue_most=2) as here:
        here.worker(1)
        for of in (1, 1, 1, 2):
            here.dispatch.ensure_capacity(requirements(of))
            await here.ask(of)
        for of in (1, 3):
            with pytest.raises(errors.Overloaded):
                here.dispatch.ensure_capacity(requirements(of))
        assert (here.dispatch.in_flight, here.dispatch.waiting) == (2, 2)


async def test_a_request_with_too_long_a_wait_is_refused_but_not_a_tenant_whose_turn_it_is() -> None:
    async with site(queue_seconds=30) as here:
        here.worker(1)
        for _ in range(4):
            await here.ask(1)
        here.dispatch.model_queue(M).mean_seconds = 8
        assert (await here.ask(1)).error is None  # the third in the queue: 24 s
        late = await here.ask(1)  # the fourth: 32 s
        assert isinstance(late.error, errors.Overloaded)
        assert "expected wait is 32 s" in str(late.error)
        assert late.error.retry_after_seconds == 2
        assert (await here.ask(2)).error is None


async def test_a_request_that_waited_too_long_is_refused() -> None:
    async with site(queue_seconds=0.02) as here:
        here.worker(1)
        callers = [await here.ask() for _ in range(3)]
        await callers[2].task
        assert isinstance(callers[2].error, errors.Overloaded)
        assert "no worker of m became free within 0.02 s" in str(callers[2].error)
        assert here.dispatch.waiting == 0


async def test_two_thousand_requests_for_one_thousand_places() -> None:
    """800 requests on ten workers and 200 in the queue, of 50 tenants."""
    async with site(queue_most=200, queue_per_tenant=50) as here:
        for number in range(10):
            here.worker(number, slots=72)  # and an eighth of them held
        callers = [Caller(here, requirements(number % 50)) for number in range(2000)]
        async with asyncio.timeout(60):
            while len(here.began) + sum(caller.error is not None for caller in callers) < 1800:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.01)
        await settled()
        refused = [caller for caller in callers if caller.error]
        assert len(here.began) == 810
        assert len(refused) == 2000 - 810 - 200
        assert all(isinstance(caller.error, errors.Overloaded) and caller.error.retry_after_seconds for caller in refused)
        assert max(caller.seconds for caller in refused) <= 0.1 or not stopwatch.bounds_hold
        await finish(here)
        assert len(here.began) == 1010
        assert here.dispatch.in_flight == here.dispatch.waiting == 0
