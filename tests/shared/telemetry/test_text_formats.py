from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics

from shared import context, telemetry
from shared.api.metrics import MetricsTextFormat
from shared.telemetry import instruments, text_formats
from shared.telemetry.answer_metrics import MeasuredAnswer, WorkerAnswers
from shared.telemetry.instrument import InstrumentKind
from shared.telemetry.tracing import Traces
from shared.types import ModelName

OPENMETRICS, PROMETHEUS = MetricsTextFormat.OPENMETRICS, MetricsTextFormat.PROMETHEUS
TRACE = "0af7651916cd43dd8448eb211c80319c"
#: Sent by Prometheus 2.42.
PROMETHEUS_SERVER = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("", PROMETHEUS),
        ("*/*", PROMETHEUS),
        ("text/plain", PROMETHEUS),
        ("text/html,application/xhtml+xml,*/*;q=0.8", PROMETHEUS),
        (PROMETHEUS_SERVER, OPENMETRICS),
        ("application/openmetrics-text", OPENMETRICS),
        ("Application/OpenMetrics-Text; Version=1.0.0; charset=utf-8", OPENMETRICS),
        ('application/openmetrics-text; version="1.0.0"', OPENMETRICS),
        ("application/openmetrics-text; version=2.0.0", PROMETHEUS),
        ("application/openmetrics-text;q=0", PROMETHEUS),
        ("application/openmetrics-text;q=0.1, text/plain;q=0.9", PROMETHEUS),
        ("application/openmetrics-text;q=nan", PROMETHEUS),
        ("application/openmetrics-text;q=x", PROMETHEUS),
        ("application/openmetrics-text;q", PROMETHEUS),
        (",;,=;q=", PROMETHEUS),
    ],
)
def test_which_text_is_given(accept: str, chosen: MetricsTextFormat) -> None:
    assert text_formats.choose([(b"host", b"here"), (b"accept", accept.encode())]) is chosen


def test_several_headers_are_one() -> None:
    assert text_formats.choose([(b"accept", b"text/plain;q=0.5"), (b"accept", b"application/openmetrics-text")]) is OPENMETRICS


def _every_metric() -> telemetry.Metrics:
    node = telemetry.Metrics("gateway")
    for instrument in instruments.ALL:
        family: Any = node.family(instrument)
        series = family.labels(**dict.fromkeys(instrument.labels, 'a "b"\n\\')) if instrument.labels else family
        series.observe(1) if instrument.kind is InstrumentKind.HISTOGRAM else series.inc()
    return node


def test_every_metric_can_be_read_as_openmetrics() -> None:
    text = _every_metric().render(OPENMETRICS)
    assert text.endswith("# EOF\n")
    read = list(read_openmetrics(text))
    assert not any(sample.name.endswith("_created") for family in read for sample in family.samples)
    families = {family.name: family.type for family in read}
    assert families.items() >= {one.name.removesuffix("_total"): str(one.kind) for one in instruments.ALL}.items()


def test_a_bucket_has_its_exemplar_in_openmetrics_and_for_the_metrics_service() -> None:
    node = telemetry.Metrics("inference")
    serving = Traces(ratio=0).join("chat", f"00-{TRACE}-b7ad6b7169203331-01", context.new_request_id())
    assert serving is not None
    with serving:
        model = ModelName('a "b"\\')
        WorkerAnswers(node, "echo").ended(MeasuredAnswer(operation="chat", method="m", model=model, seconds=2, first_text_seconds=0.3))
    assert f'# {{trace_id="{TRACE}"}} 0.3 ' in node.render(OPENMETRICS)
    assert TRACE not in node.render()
    read = node.read()
    assert "# TYPE ai_platform_ttft_seconds histogram\n" in read.text
    heads = {line.rpartition(" ")[0] for line in read.text.split("\n")}
    assert read.exemplars.keys() <= heads
    found = read.exemplars['ai_platform_ttft_seconds_bucket{le="0.5",model="a \\"b\\"\\\\"}']
    assert (found.trace_id, found.value) == (TRACE, 0.3)
    assert found.at > 1_700_000_000
