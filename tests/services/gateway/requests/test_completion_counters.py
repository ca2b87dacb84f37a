"""Counters of ended requests: their cost, and incomplete answers."""

import asyncio

import pytest

from shared import context, errors
from shared.api.gateway import InferenceRequest, InferenceResult
from shared.telemetry.answer_metrics import MAX_MODELS, OTHER
from tests.services.gateway.fakes import OWNER, FakeWorker, RunningService


async def ask(running_service: RunningService, model: str = "smollm2") -> InferenceResult:
    context.start()  # as an HTTP route does
    async with running_service.pulled.run(OWNER, InferenceRequest(prompt="hi", model=model), seconds=10) as running:
        async for _ in running:
            pass
    return running.result


def cost(running_service: RunningService, model: str) -> float | None:
    return running_service.metrics.registry.get_sample_value("ai_platform_cost_micro_total", {"model": model})


def aborted(running_service: RunningService) -> dict[str, float]:
    """Return the counters that are not 0. Known reasons start at 0."""
    (family,) = running_service.metrics.streams_aborted.collect()
    return {sample.labels["reason"]: sample.value for sample in family.samples if sample.name.endswith("_total") and sample.value}


async def test_costs_are_counted_by_model(running_service: RunningService) -> None:
    first, second = await ask(running_service), await ask(running_service, "llama3")
    assert first.cost_micro > 0
    assert cost(running_service, "smollm2") == first.cost_micro + second.cost_micro
    assert aborted(running_service) == {}


async def test_invented_model_names_create_few_series(running_service: RunningService) -> None:
    names = [f"model-{number}" for number in range(MAX_MODELS + 2)]
    running_service.add_worker(2, FakeWorker(), *names)
    paid = [(await ask(running_service, name)).cost_micro for name in names]
    assert (cost(running_service, names[MAX_MODELS - 1]), cost(running_service, names[MAX_MODELS])) == (paid[MAX_MODELS - 1], None)
    assert cost(running_service, OTHER) == sum(paid[MAX_MODELS:])


async def test_an_aborted_answer_is_counted_by_its_code(running_service: RunningService) -> None:
    running_service.worker.fails_with, running_service.worker.fails_after = errors.LinkLost("gone"), 2
    with pytest.raises(errors.WorkerLost):
        await ask(running_service)
    assert aborted(running_service) == {"worker_lost": 1}


async def test_unknown_codes_of_newer_workers_are_counted_as_other(running_service: RunningService) -> None:
    running_service.worker.fails_with = errors.RemoteError(errors.Problem(code="moon_phase", message="wrong moon"))
    running_service.worker.fails_after = 1
    with pytest.raises(errors.AimeshError):
        await ask(running_service)
    assert aborted(running_service) == {"other": 1}


async def test_a_reader_that_leaves_mid_answer_is_counted_as_canceled(running_service: RunningService) -> None:
    running_service.worker.hangs_after = 2
    asking = asyncio.create_task(ask(running_service))
    await running_service.worker.is_hanging.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert aborted(running_service) == {"cancelled": 1}


async def test_a_request_that_ended_before_its_first_token_is_not_an_aborted_answer(running_service: RunningService) -> None:
    running_service.worker.fails_with, running_service.worker.fails_after = errors.DeadlineExceeded("late"), 0
    with pytest.raises(errors.DeadlineExceeded):
        await ask(running_service)
    assert aborted(running_service) == {}
    assert cost(running_service, "smollm2") is None
