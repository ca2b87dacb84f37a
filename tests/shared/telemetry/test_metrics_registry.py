import re
from importlib import import_module
from pathlib import Path

import pytest
from prometheus_client import Histogram
from prometheus_client.parser import text_string_to_metric_families

from shared import features, telemetry
from shared.telemetry import instruments, metrics_registry
from shared.telemetry.instrument import Instrument, InstrumentKind
from shared.telemetry.metrics_registry import LabelledGauge, Metrics
from tests.cases import case

ROOT = Path(__file__).parents[3]


#: Labels that are bounded by what the operator runs, never by callers.
BOUNDED = {
    "service",
    "method",
    "status",
    "model",
    "scope",
    "tier",
    "time_window",
    "server",
    "type",
    "state",
    "reason",
    "currency",
    "sink",
    "device",
    "source",
    "event",
    "path",
    "node",
    "version",
    "kind",
    "outcome",
    "python",
    "result",
    "peer",
    "decision",
    "action",
    "dialect",
    "field",
    "pool",
    "store",
    "place",
    "route",
    "provider",
    "target",
    "variant",
    "gpu",
    "machine",
    "disk",
    "gen_ai_operation_name",
    "gen_ai_provider_name",
    "gen_ai_request_model",
    "gen_ai_token_type",
    "error_type",
    "job",
    "task",
    "site",
    "role",
    "schema",
}


def test_an_instrument_keeps_the_naming_rules() -> None:
    for instrument in instruments.ALL:
        with case(instrument.name):
            assert re.fullmatch(r"(ai_platform|gen_ai)_[a-z][a-z0-9_]*", instrument.name)
            assert instrument.name.endswith("_total") == (instrument.kind is InstrumentKind.COUNTER)
            assert set(instrument.labels) <= BOUNDED
            assert bool(instrument.buckets) == (instrument.kind is InstrumentKind.HISTOGRAM)
            assert list(instrument.buckets) == sorted(set(instrument.buckets))
            assert not instrument.help.endswith(".")
            if instrument.kind is InstrumentKind.HISTOGRAM:
                assert instrument.name.endswith(f"_{instrument.unit}")


def test_every_instrument_is_an_attribute_once() -> None:
    assert all(getattr(Metrics, one.attribute) is one for one in instruments.OWN)
    assert len({one.name for one in instruments.OWN}) == len(instruments.OWN)


def test_somebody_measures_it() -> None:
    places = [path for folder in ("services", "shared") for path in (ROOT / folder).rglob("*.py")]
    used = {name for path in places for name in re.findall(r"(?:metrics|self)\.(?=(\w+))", path.read_text(encoding="utf-8"))}
    assert [one.name for one in instruments.OWN if one.attribute not in used] == []


def test_each_metric_of_a_feature_is_used_there() -> None:
    for name in features.having("instruments"):
        declared = vars(import_module(f"features.{name}.instruments"))
        texts = [path.read_text(encoding="utf-8") for path in (features.FOLDER / name).rglob("*.py")]
        for attribute in (one for one, value in declared.items() if isinstance(value, Instrument)):
            assert any(f"instruments.{attribute}" in text for text in texts), f"{name}: nobody measures {attribute}"


def test_what_is_declared_is_what_is_rendered() -> None:
    for instrument in instruments.ALL:
        with case(instrument.name):
            node = telemetry.Metrics("gateway")
            family = node.family(instrument)
            labelled = family.labels(**dict.fromkeys(instrument.labels, "x")) if instrument.labels else family
            labelled.observe(1) if instrument.kind is InstrumentKind.HISTOGRAM else labelled.inc()
            name = instrument.name.removesuffix("_total")
            rendered = {one.name: one for one in text_string_to_metric_families(node.render())}
            assert rendered[name].type == instrument.kind
            assert rendered[name].documentation == instrument.help
            assert set(instrument.labels) <= {label for sample in rendered[name].samples for label in sample.labels}


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("ai_platform_requests_total", ("service", "method", "status")),
        ("ai_platform_request_duration_seconds", ("service", "method", "model")),
        ("ai_platform_active_users", ("time_window",)),
        ("ai_platform_rate_limit_violations_total", ("scope", "tier", "model")),
    ],
)
def test_the_seeds_metrics_are_on_every_service_from_the_start(name: str, labels: tuple[str, ...]) -> None:
    assert f"# TYPE {name} " in telemetry.Metrics("web").render()
    assert next(one for one in instruments.ALL if one.name == name).labels == labels


def test_known_labels_are_there_as_zero_before_anything_is_counted() -> None:
    for instrument in (one for one in instruments.ALL if one.known):
        with case(instrument.name):
            assert instrument.kind is InstrumentKind.COUNTER
            node = telemetry.Metrics("gateway")
            node.family(instrument)
            for values in instrument.known:
                assert node.registry.get_sample_value(instrument.name, dict(zip(instrument.labels, values, strict=True))) == 0


def test_two_nodes_in_one_process_count_apart() -> None:
    one, two = telemetry.Metrics("auth"), telemetry.Metrics("gateway")
    one.requests.labels(service="auth", method="loginUser", status="success").inc()
    assert 'method="loginUser"' in one.render()
    assert "loginUser" not in two.render()


def test_the_process_shows_itself() -> None:
    text = telemetry.Metrics("auth").render()
    for name in ("resident_memory_bytes", "cpu_seconds_total", "open_fds", "start_time_seconds"):
        assert re.search(rf"^ai_platform_process_{name} [0-9.e+-]+$", text, re.MULTILINE), name
    assert 'ai_platform_build_info{python="' in text


def test_no_created_series() -> None:
    node = telemetry.Metrics("auth")
    node.requests.labels(service="auth", method="loginUser", status="success").inc()
    node.ttft_seconds.labels(model="m").observe(0.1)
    assert "_created" not in node.render()


def test_removed_series_are_no_longer_shown() -> None:
    metrics = Metrics("web")
    series = LabelledGauge(lambda: metrics.gpu_usage)
    series.show({("m", "0"): 0.5, ("m", "1"): 0.25})
    assert 'ai_platform_gpu_usage_ratio{gpu="1",machine="m"} 0.25' in metrics.render()
    series.show({("m", "0"): 0.75})
    text = metrics.render()
    assert 'ai_platform_gpu_usage_ratio{gpu="0",machine="m"} 0.75' in text
    assert 'gpu="1"' not in text
    series.show({})
    assert 'gpu="0"' not in metrics.render()


def test_an_empty_gauge_is_omitted() -> None:
    metrics = Metrics("web")
    LabelledGauge(lambda: metrics.gpu_usage).show({})
    assert "gpu" not in metrics.render()


def test_a_histogram_chooses_buckets_as_prometheus_does() -> None:
    bounds = (0.1, 1.0, 2.5)
    ours, theirs = metrics_registry.Histogram("h", "", buckets=bounds, registry=None), Histogram("h", "", buckets=bounds, registry=None)
    for amount in (-1, 0, 0.1, 0.100001, 1, 2.5, 2.6, 1e9, float("inf")):
        ours.observe(amount)
        theirs.observe(amount)
        assert [sample.value for sample in next(iter(ours.collect())).samples[:-1]] == [
            sample.value for sample in next(iter(theirs.collect())).samples[:-1]
        ]


def test_labels_by_position_and_by_name_are_one_series() -> None:
    metrics = Metrics("gateway")
    series = metrics.requests.labels("gateway", "infer", "success")
    assert metrics.requests.labels("gateway", "infer", "success") is series
    assert metrics.requests.labels(status="success", method="infer", service="gateway") is series
