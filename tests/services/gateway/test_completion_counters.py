"""What is counted of requests that ended: their cost, and answers that broke off."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from shared import context, errors
from shared.api.gateway import InferenceRequest, InferenceResult
from shared.telemetry.answer_metrics import MAX_MODELS, OTHER
from tests.services.gateway import fakes
from tests.services.gateway.fakes import OWNER, FakeWorker, House


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with fakes.house() as made:
        yield made


async def ask(house: House, model: str = "smollm2") -> InferenceResult:
    context.start()  # as a door does
    async with house.pipeline.run(OWNER, InferenceRequest(prompt="hi", model=model), seconds=10) as running:
        async for _ in running:
            pass
    return running.result


def cost(house: House, model: str) -> float | None:
    return house.metrics.registry.get_sample_value("ai_platform_cost_micro_total", {"model": model})


def aborted(house: House) -> dict[str, float]:
    """Without the known reasons that are shown as 0 from the start."""
    (family,) = house.metrics.streams_aborted.collect()
    return {sample.labels["reason"]: sample.value for sample in family.samples if sample.name.endswith("_total") and sample.value}


async def test_what_requests_cost_is_counted_by_their_model(house: House) -> None:
    first, second = await ask(house), await ask(house, "llama3")
    assert first.cost_micro > 0
    assert cost(house, "smollm2") == first.cost_micro + second.cost_micro
    assert aborted(house) == {}


async def test_a_worker_that_invents_models_makes_few_series(house: House) -> None:
    names = [f"model-{number}" for number in range(MAX_MODELS + 2)]
    house.add_worker(2, FakeWorker(), *names)
    paid = [(await ask(house, name)).cost_micro for name in names]
    assert (cost(house, names[MAX_MODELS - 1]), cost(house, names[MAX_MODELS])) == (paid[MAX_MODELS - 1], None)
    assert cost(house, OTHER) == sum(paid[MAX_MODELS:])


async def test_an_answer_that_breaks_off_is_counted_by_its_code(house: House) -> None:
    house.worker.fails_with, house.worker.fails_after = errors.LinkLost("gone"), 2
    with pytest.raises(errors.WorkerLost):
        await ask(house)
    assert aborted(house) == {"worker_lost": 1}


async def test_a_code_that_only_a_newer_worker_knows_is_none_of_ours(house: House) -> None:
    house.worker.fails_with = errors.RemoteError(errors.Problem(code="moon_phase", message="wrong moon"))
    house.worker.fails_after = 1
    with pytest.raises(errors.AimeshError):
        await ask(house)
    assert aborted(house) == {"other": 1}


async def test_a_reader_that_leaves_in_mid_answer_is_counted_as_cancelled(house: House) -> None:
    house.worker.hangs_after = 2
    asking = asyncio.create_task(ask(house))
    await house.worker.said.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert aborted(house) == {"cancelled": 1}


async def test_what_ended_before_its_first_token_was_no_answer_yet(house: House) -> None:
    house.worker.fails_with, house.worker.fails_after = errors.DeadlineExceeded("late"), 0
    with pytest.raises(errors.DeadlineExceeded):
        await ask(house)
    assert aborted(house) == {}
    assert cost(house, "smollm2") is None
