"""The gateway's request metrics on its real code paths; the number of series doesn't grow with the number of users."""

import contextlib
from uuid import UUID

import pytest

from services.gateway.requests import generation
from services.gateway.requests.workers import Workers
from shared import context, errors
from shared.api.auth import Principal
from shared.api.gateway import InferenceRequest
from shared.telemetry import Metrics
from shared.types import KeyId, ModelName, Tier, UserId, UserRole
from tests.services.gateway import fakes
from tests.services.gateway.fakes import OWNER, FakeWorker, RunningService

TENANTS = 1_000
MODELS = 20
#: The most series of one service; see OBSERVABILITY.md §6.2.
MAX_SERIES = 10_000


async def _ask(running_service: RunningService, who: Principal = OWNER, model: str = "smollm2", **fields: object) -> None:
    context.start()  # as an HTTP route does
    request = InferenceRequest(prompt="hi", model=ModelName(model), **fields)  # type: ignore[arg-type]  # of the right types by name
    async with running_service.pulled.run(who, request, seconds=10) as running:
        async for _ in running:
            pass


def _series(metrics: Metrics) -> set[str]:
    return {line.rpartition(" ")[0] for line in metrics.render().split("\n") if line and not line.startswith("#")}


def _value(metrics: Metrics, start: str) -> float:
    (line,) = [line for line in metrics.render().split("\n") if line.startswith(start)]
    return float(line.rpartition(" ")[2])


async def test_an_answer_is_in_both_metric_families(running_service: RunningService) -> None:
    await _ask(running_service, model="llama3")  # an alias
    labels = 'gen_ai_operation_name="chat",gen_ai_provider_name="aimesh",gen_ai_request_model="smollm2"'
    metrics = running_service.metrics
    assert _value(metrics, f'gen_ai_client_operation_duration_seconds_count{{error_type="",{labels}}}') == 1
    assert _value(metrics, f"gen_ai_client_operation_time_to_first_chunk_seconds_count{{{labels}}}") == 1
    assert _value(metrics, f"gen_ai_client_operation_time_per_output_chunk_seconds_count{{{labels}}}") == 1
    assert _value(metrics, f'gen_ai_client_token_usage_tokens_sum{{{labels},gen_ai_token_type="input"}}') == 7
    assert _value(metrics, f'gen_ai_client_token_usage_tokens_sum{{{labels},gen_ai_token_type="output"}}') == 3
    assert _value(metrics, 'ai_platform_inter_token_seconds_count{model="smollm2"}') == 1


async def test_a_failed_answer_has_its_error_type_and_no_time_between_tokens(running_service: RunningService) -> None:
    running_service.worker.fails_with, running_service.worker.fails_after = errors.LinkLost("gone"), 2
    with pytest.raises(errors.WorkerLost):
        await _ask(running_service)
    assert _value(running_service.metrics, 'gen_ai_client_operation_duration_seconds_count{error_type="worker_lost"') == 1
    assert "inter_token_seconds_count" not in running_service.metrics.render()


async def test_a_limited_request_never_reached_a_worker() -> None:
    async with fakes.running_service(free=1) as running_service:
        await _ask(running_service)
        with pytest.raises(errors.Limited):
            await _ask(running_service)
        assert _value(running_service.metrics, "gen_ai_client_operation_duration_seconds_count") == 1
        assert (
            _value(running_service.metrics, 'ai_platform_request_duration_seconds_count{method="processInferenceRequest",model="smollm2"')
            == 2
        )


async def test_an_unserved_model_creates_no_series(running_service: RunningService) -> None:
    with pytest.raises(errors.UnknownModel):
        await _ask(running_service, model="gpt-0")
    before = _series(running_service.metrics)
    for number in range(1, 50):
        with pytest.raises(errors.UnknownModel):
            await _ask(running_service, model=f"gpt-{number}")
    assert _series(running_service.metrics) == before
    assert not any("gpt" in one for one in before)


def _tenant(number: int) -> Principal:
    ids = UUID(int=1_000 + number)
    return Principal(UserId(ids), f"user{number}", UserRole.USER, (Tier.FREE, Tier.PRO)[number % 2], KeyId(ids), "laptop")


async def test_a_thousand_tenants_create_no_more_series_than_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    # Retries that don't wait would fill it with attempts.
    monkeypatch.setattr(generation, "FIRST_WAIT_SECONDS", 0.005)
    async with fakes.running_service(free=30) as running_service:
        models = [f"model-{number}" for number in range(MODELS)]
        worker = FakeWorker()
        running_service.add_worker(2, worker, *models)
        # A retry doesn't wait.
        relay = Workers(running_service.rpc, running_service.dispatch, draw=lambda: 0.0)
        running_service.runs = running_service.new_runs(workers=relay)
        ways = [None, *(kind("it failed") for kind in errors.BY_CODE.values())]

        async def ask(who: Principal, model: str, fails_with: errors.AimeshError | None) -> None:
            worker.fails_with, worker.fails_after = fails_with, 0
            with contextlib.suppress(errors.AimeshError):
                await _ask(running_service, who, model)

        # Every kind of request once, and a limit that is reached.
        for number in range(len(ways) * MODELS):
            await ask(_tenant(TENANTS + number), models[number % MODELS], ways[number // MODELS])
        greedy = _tenant(2 * TENANTS + len(ways) * MODELS)
        for model in models[:1] * 30 + models:
            await ask(greedy, model, None)
        few = _series(running_service.metrics)
        for number in range(TENANTS):
            await ask(_tenant(number), models[number % MODELS], ways[number % len(ways)])
        assert len(running_service.store.rows) >= TENANTS
        assert _series(running_service.metrics) == few
        assert 1_000 < len(few) <= MAX_SERIES
        assert not any("user" in one.replace('scope="user"', "") for one in few)
