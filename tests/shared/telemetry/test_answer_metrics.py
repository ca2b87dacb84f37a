"""One measurement counts in two metric families."""

import asyncio
from contextlib import nullcontext

import pytest

from shared import context, errors, telemetry
from shared.telemetry import answer_metrics
from shared.telemetry.answer_metrics import GatewayAnswers, MeasuredAnswer, WorkerAnswers
from shared.telemetry.metrics_registry import PAUSE_SECONDS, Exemplars
from shared.telemetry.tracing import ServingSpan, Traces
from shared.types import ModelName

LLAMA = ModelName("llama3")
TRACE = "0af7651916cd43dd8448eb211c80319c"


def _answer(**fields: object) -> MeasuredAnswer:
    usual = {"operation": "chat", "method": "m", "model": LLAMA, "seconds": 2.5, "first_text_seconds": 0.5}
    return MeasuredAnswer(**{**usual, "input_tokens": 7, "output_tokens": 5, **fields})  # type: ignore[arg-type] # of the right types by name


def _request(*, sampled: bool) -> ServingSpan:
    """Return the span of a request from another node that samples the trace, or doesn't."""
    serving = Traces(ratio=0).join("chat", f"00-{TRACE}-b7ad6b7169203331-{int(sampled):02x}", context.new_request_id())
    assert serving is not None
    return serving


def _values(metrics: telemetry.Metrics, name: str) -> dict[tuple[str, ...], float]:
    """Return values by the values of their labels, in the order of the labels' names."""
    return {
        tuple(sample.labels[label] for label in sorted(sample.labels)): sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == name
    }


def test_a_worker_tells_both_families_the_same() -> None:
    metrics = telemetry.Metrics("inference")
    WorkerAnswers(metrics, "llama_cpp").ended(_answer())
    assert _values(metrics, "ai_platform_request_duration_seconds_sum") == {("m", "llama3", "inference"): 2.5}
    assert _values(metrics, "gen_ai_server_request_duration_seconds_sum") == {("", "chat", "llama_cpp", "llama3"): 2.5}
    assert _values(metrics, "ai_platform_ttft_seconds_sum") == {("llama3",): 0.5}
    assert _values(metrics, "gen_ai_server_time_to_first_token_seconds_sum") == {("chat", "llama_cpp", "llama3"): 0.5}
    # Two seconds for the four tokens after the first.
    assert _values(metrics, "gen_ai_server_time_per_output_token_seconds_sum") == {("chat", "llama_cpp", "llama3"): 0.5}
    assert _values(metrics, "ai_platform_tokens_total") == {("llama3", "input"): 7, ("llama3", "output"): 5}
    assert "gen_ai_client" not in metrics.render()


def test_a_gateway_tells_both_families_the_same() -> None:
    metrics = telemetry.Metrics("gateway")
    GatewayAnswers(metrics).ended(_answer(chunks=3), asked=True)
    labels = ("chat", "aimesh", "llama3")
    assert _values(metrics, "ai_platform_request_duration_seconds_sum") == {("m", "llama3", "gateway"): 2.5}
    assert _values(metrics, "gen_ai_client_operation_duration_seconds_sum") == {("", *labels): 2.5}
    assert _values(metrics, "ai_platform_ttft_seconds_sum") == {("llama3",): 0.5}
    assert _values(metrics, "gen_ai_client_operation_time_to_first_chunk_seconds_sum") == {labels: 0.5}
    assert _values(metrics, "gen_ai_client_operation_time_per_output_chunk_seconds_sum") == {labels: 1.0}
    assert _values(metrics, "ai_platform_inter_token_seconds_sum") == {("llama3",): 0.5}
    assert _values(metrics, "gen_ai_client_token_usage_tokens_sum") == {
        ("chat", "aimesh", "llama3", "input"): 7,
        ("chat", "aimesh", "llama3", "output"): 5,
    }
    assert "gen_ai_server" not in metrics.render()


def test_what_no_worker_was_asked_is_no_operation_of_a_client() -> None:
    metrics = telemetry.Metrics("gateway")
    GatewayAnswers(metrics).ended(_answer(), asked=False)
    GatewayAnswers(metrics).ended(_answer(model=None, error="unknown_model"), asked=True)
    text = metrics.render()
    assert "gen_ai_" not in text
    assert "inter_token" not in text
    assert _values(metrics, "ai_platform_request_duration_seconds_count") == {("m", "llama3", "gateway"): 1, ("m", "", "gateway"): 1}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param({}, 0.5, id="after the first"),
        pytest.param({"output_tokens": 10, "at_once": 2}, 0.5, id="two answers side by side"),
        pytest.param({"output_tokens": 1}, None, id="one token has no time between"),
        pytest.param({"output_tokens": 2, "at_once": 2}, None, id="nor have two answers of one token"),
        pytest.param({"first_text_seconds": None}, None, id="no text"),
        pytest.param({"error": "cancelled"}, None, id="cut off"),
        pytest.param({"seconds": 0.4996}, 0.0, id="a rounded end before the first text"),
    ],
)
def test_the_time_between_tokens(fields: dict[str, object], expected: float | None) -> None:
    answer = _answer(**fields)
    assert answer.seconds_per(answer.output_tokens) == expected


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (None, ""),
        (errors.Overloaded("full"), "overloaded"),
        (errors.Poison("twice"), answer_metrics.OTHER),
        (asyncio.CancelledError(), "cancelled"),
        (ZeroDivisionError(), answer_metrics.OTHER),
    ],
)
def test_an_error_is_one_of_a_short_list(error: BaseException | None, shown: str) -> None:
    metrics = telemetry.Metrics("inference")
    served = WorkerAnswers(metrics, "echo").serving("chat", "m", LLAMA)
    served.__enter__()
    served.__exit__(type(error) if error else None, error, None)
    assert _values(metrics, "gen_ai_server_request_duration_seconds_count") == {(shown, "chat", "echo", "llama3"): 1}


def test_a_block_that_serves_is_measured_with_what_is_said_in_it() -> None:
    metrics = telemetry.Metrics("inference")
    with WorkerAnswers(metrics, "echo").serving("embeddings", "embed", LLAMA) as served:
        served.input_tokens = 3
    assert _values(metrics, "ai_platform_tokens_total") == {("llama3", "input"): 3}
    assert _values(metrics, "gen_ai_server_request_duration_seconds_count") == {("", "embeddings", "echo", "llama3"): 1}
    assert "time_to_first_token" not in metrics.render()


def test_a_worker_that_claims_any_number_of_models_makes_a_bounded_number_of_series() -> None:
    metrics = telemetry.Metrics("gateway")
    gateway = GatewayAnswers(metrics)
    for number in range(answer_metrics.MAX_MODELS + 500):
        gateway.ended(_answer(model=ModelName(f"m{number}")), asked=True)
    counts = _values(metrics, "ai_platform_ttft_seconds_count")
    assert len(counts) == answer_metrics.MAX_MODELS + 1
    assert counts[answer_metrics.OTHER,] == 500


# --- exemplars --------------------------------------------------------------------------------------------------------


def test_a_request_whose_trace_is_kept_is_an_exemplar_of_its_buckets() -> None:
    metrics = telemetry.Metrics("gateway")
    with _request(sampled=True):
        GatewayAnswers(metrics).ended(_answer(), asked=True)
    found = {
        (sample.name, sample.labels["le"]): sample.exemplar
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.exemplar
    }
    assert ("ai_platform_ttft_seconds_bucket", "0.5") in found
    assert ("ai_platform_request_duration_seconds_bucket", "2.56") in found
    assert ("gen_ai_client_operation_duration_seconds_bucket", "2.56") in found
    assert ("gen_ai_client_operation_time_to_first_chunk_seconds_bucket", "0.5") in found
    assert {tuple(one.labels.items()) for one in found.values() if one} == {(("trace_id", TRACE),)}


@pytest.mark.parametrize("in_a_request", [True, False])
def test_a_request_whose_trace_is_not_kept_is_none(in_a_request: bool) -> None:
    metrics = telemetry.Metrics("inference")
    with _request(sampled=False) if in_a_request else nullcontext():
        assert Exemplars().of_request() is None
        WorkerAnswers(metrics, "echo").ended(_answer())
    assert not any(sample.exemplar for family in metrics.registry.collect() for sample in family.samples)


def test_of_a_crowd_of_requests_only_some_are_exemplars() -> None:
    now = 100.0
    exemplars = Exemplars(lambda: now)
    with _request(sampled=True):
        assert exemplars.of_request() == {"trace_id": TRACE}
        now += PAUSE_SECONDS / 2
        assert exemplars.of_request() is None
        now += PAUSE_SECONDS
        assert exemplars.of_request() == {"trace_id": TRACE}
