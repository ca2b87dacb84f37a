"""The lifecycle of a slot on a worker."""

from contextlib import aclosing

import pytest

from services.gateway.scheduling.worker_claims import Claim
from shared import errors
from tests.services.gateway.fakes import node_id
from tests.services.gateway.scheduling.asking import M, dispatch_harness, requirements, settled, tenant


async def test_an_unused_claim_is_released_with_the_search() -> None:
    async with dispatch_harness() as harness:
        harness.worker(1)
        async with aclosing(harness.dispatch.find(requirements())) as steps:
            assert isinstance(await anext(steps), Claim)
            assert harness.dispatch.in_flight == 1
        assert harness.dispatch.in_flight == 0


async def test_a_conversion_that_waited_never_counts_as_a_held_slot() -> None:
    """Its tenant would never again hold nothing, so that it could not get a slot from others."""
    async with dispatch_harness() as harness:
        harness.worker(1)
        conversion = await harness.ask(takes_slot=False)
        assert conversion.claim is not None
        assert harness.dispatch._held(M) == {}
        await conversion.leave()
        assert harness.dispatch._held(M) == {}


async def test_a_worker_that_fails_five_times_in_a_row_is_ejected_while_there_is_another() -> None:
    async with dispatch_harness() as harness:
        harness.worker(1, slots=50)
        harness.worker(2, slots=50)
        failures = 0
        while failures < 5:
            caller = await harness.ask()
            assert caller.claim is not None
            if caller.node == node_id(1):
                caller.claim.record_failure(errors.LinkLost("x"))
                failures += 1
            await caller.leave()
        assert {(await harness.ask()).node for _ in range(20)} == {node_id(2)}


async def test_a_failed_call_affects_neither_turns_nor_the_mean_duration() -> None:
    async with dispatch_harness() as harness:
        harness.worker(1)
        caller = await harness.ask()
        model_queue = harness.dispatch.model_queue(M)
        assert model_queue.queue.counter_of(tenant(1)) > 0
        assert caller.claim is not None
        caller.claim.record_failure(errors.LinkLost("x"))
        await caller.leave()
        assert model_queue.queue.counter_of(tenant(1)) == 0
        assert model_queue.mean_seconds == 0


async def test_delivered_tokens_of_a_failed_call_are_charged_up_to_the_bound() -> None:
    async with dispatch_harness() as harness:
        harness.worker(1)
        caller = await harness.ask()
        assert caller.claim is not None
        caller.claim.record_tokens(10**9, 5)
        caller.claim.record_failure(errors.LinkLost("x"))
        assert harness.dispatch.model_queue(M).queue.counter_of(tenant(1)) == 40 + 2 * 5


async def test_the_queue_and_the_claim_charge_the_same_despite_a_changed_mean() -> None:
    async with dispatch_harness() as harness:
        harness.worker(1)
        first, second = await harness.ask(1, max_tokens=1000), await harness.ask(1, max_tokens=1000)
        third = await harness.ask(2, max_tokens=1000)
        assert first.claim is not None
        before = harness.dispatch.model_queue(M).queue.counter_of(tenant(2))
        # The mean length of the answers changes while the third waits.
        first.claim.record_tokens(40, 1000)
        await first.leave()
        await second.leave()
        await settled()
        assert third.claim is not None
        third.claim.record_failure(errors.NotReachable("its engine died"))
        assert harness.dispatch.model_queue(M).queue.counter_of(tenant(2)) == pytest.approx(before)
