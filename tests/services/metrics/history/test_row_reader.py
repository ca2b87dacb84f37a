"""One sample becomes a row per node: growth for counters, values for gauges, within bounds."""

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from services.metrics.export import prometheus_merge
from services.metrics.export.prometheus_merge import MetricSource
from services.metrics.history import kept_series
from services.metrics.history.row_reader import MeshReading, RowReader
from shared.telemetry import Metrics

AT = datetime(2026, 1, 1, tzinfo=UTC)


def text(*nodes: tuple[str, str, str]) -> str:
    """Return the merged text of nodes, each given by service, node and its own text."""
    return prometheus_merge.render(
        prometheus_merge.Merger().merge([MetricSource(own, {"service": service, "node": node}) for service, node, own in nodes])
    )


def tokens(*values: float, model: str = "m") -> str:
    name = "ai_platform_tokens_total"
    lines = [f'{name}{{type="{number}",model="{model}"}} {value}' for number, value in enumerate(values)]
    return "\n".join([f"# HELP {name} t", f"# TYPE {name} counter", *lines, ""])


def values(look: MeshReading, node: str = "n") -> dict[str, float]:
    (row,) = [row for row in look.rows if row.node == node]
    return dict(zip(row.names, row.values, strict=True))


def test_real_metrics_are_read() -> None:
    metrics = Metrics("gateway")
    metrics.queue_depth.labels(model="m").set(3)
    metrics.host_cpu.labels("laptop-1").set(0.5)
    metrics.gpu_usage.labels("laptop-1", "0").set(0.9)
    reader = RowReader()
    reader.read(text(("gateway", "n", metrics.render())), AT)
    metrics.tokens.labels(type="output", model="m").inc(7)
    metrics.ttft_seconds.labels(model="m").observe(0.3)
    for status, times in (("success", 4), ("unavailable", 1), ("limited", 2)):
        metrics.requests.labels(service="gateway", method="infer", status=status).inc(times)
    metrics.request_duration.labels(service="gateway", method="infer", model="").observe(1)
    found = values(reader.read(text(("gateway", "n", metrics.render())), AT))
    wanted = {
        'ai_platform_queue_depth{model="m"}': 3,
        'ai_platform_host_cpu_usage_ratio{machine="laptop-1"}': 0.5,
        'ai_platform_gpu_usage_ratio{gpu="0",machine="laptop-1"}': 0.9,
        'ai_platform_tokens_total{model="m",type="output"}': 7,
        'ai_platform_ttft_seconds_bucket{le="0.1",model="m"}': 0,
        'ai_platform_ttft_seconds_bucket{le="0.5",model="m"}': 1,
        'ai_platform_ttft_seconds_bucket{le="+Inf",model="m"}': 1,
        'ai_platform_requests_total{status="success"}': 4,
        'ai_platform_requests_total{status="other"}': 3,
    }
    assert {name: round(found[name], 6) for name in wanted} == wanted
    assert not [name for name in found if name.startswith("ai_platform_request_duration")], "no model is involved"


def test_kind_is_known_by_name() -> None:
    for one in kept_series.ALL:
        assert kept_series.is_counter(one.name) == (one.instrument.kind != "gauge"), one.name
        own = {label.removeprefix("exported_") for label in one.labels}
        assert own - {"le"} <= set(one.instrument.labels)
        assert {float(bound) for bound in one.bounds} <= {*one.instrument.buckets, float("inf")}
    assert len(kept_series.BY_NAME) == len(kept_series.ALL), "one name in two rows of the list"


@given(st.lists(st.one_of(st.integers(0, 1000), st.none()), max_size=30))
def test_growth_adds_up_to_the_count(steps: list[int | None]) -> None:
    """None means that the program restarted."""
    reader = RowReader()
    reader.read(text(("inference", "n", tokens(5))), AT)
    total, counted, shown = 5.0, 0.0, 0.0
    for step in steps:
        total, counted = (total + step, counted + step) if step is not None else (0.0, counted)
        shown += values(reader.read(text(("inference", "n", tokens(total))), AT))['ai_platform_tokens_total{model="m",type="0"}']
    assert shown == counted


def test_new_node_has_no_growth_at_first() -> None:
    reader = RowReader()
    assert reader.read(text(("inference", "n", tokens(1e9))), AT).rows == ()
    grown = values(reader.read(text(("inference", "n", tokens(1e9, 8))), AT))
    assert sorted(grown.values()) == [0, 8], "the second series began after the first look"


def test_first_reading_has_gauges_but_no_counters() -> None:
    """As after a restart of the service: growth in the meantime is unknown, not zero."""
    gauge = "ai_platform_queue_depth"
    both = tokens(7) + f'# HELP {gauge} q\n# TYPE {gauge} gauge\n{gauge}{{model="m"}} 2\n'
    assert values(RowReader().read(text(("inference", "n", both)), AT)) == {f'{gauge}{{model="m"}}': 2}


def test_growth_during_a_missed_reading_is_added_later() -> None:
    reader = RowReader()
    reader.read(text(("inference", "n", tokens(10))), AT)
    ours = Metrics("metrics")
    ours.node_up.labels(service="inference", node="n").set(1)
    own = MetricSource(ours.render(), {"service": "metrics", "node": "us"}, trusted=True)
    look = reader.read(prometheus_merge.render(prometheus_merge.Merger().merge([own])), AT)
    assert values(look) == {"ai_platform_node_up": 1}
    assert list(values(reader.read(text(("inference", "n", tokens(25))), AT)).values()) == [15]


def test_too_many_series_are_bounded_and_counted() -> None:
    reader = RowReader()
    crowd = text(*((("inference", f"n{number}", tokens(1))) for number in range(kept_series.MAX_NODES + 7)))
    assert reader.read(crowd, AT).left_out == 7
    look = reader.read(crowd, AT)
    assert (len(look.rows), look.left_out) == (kept_series.MAX_NODES, 7)
    look = reader.read(text(("inference", "n0", tokens(*range(kept_series.MAX_SERIES + 5)))), AT)
    assert (len(look.rows[0].values), look.left_out) == (kept_series.MAX_SERIES, 5)


def test_no_value_exceeds_what_postgresql_can_store() -> None:
    name = "ai_platform_queue_depth"
    lie = f'# HELP {name} q\n# TYPE {name} gauge\n{name}{{model="a"}} NaN\n{name}{{model="b"}} 1e300\n{name}{{model="c"}} 3\n'
    long = tokens(1, model="m" * (kept_series.MAX_LABEL_VALUE + 1))
    assert values(RowReader().read(text(("inference", "n", lie + long)), AT)) == {'ai_platform_queue_depth{model="c"}': 3}
