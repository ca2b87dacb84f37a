"""An endpoint that rejects some items: they are counted, logged once, and shown in the health with advice; over real sockets."""

import json

import pytest

from services.metrics.collection import log_and_trace_collectors
from services.metrics.export import otlp_outbox, otlp_records
from services.metrics.export.otlp_outbox import OtlpOutboxes
from services.metrics.export.otlp_records import LogLine, NodeSpan
from services.metrics.service import MetricsService
from services.metrics.settings import MetricsSettings
from shared.api.gateway import Check
from shared.spans import Span, SpanKind
from shared.types import Role
from tests import otlp_receiver
from tests.otlp_receiver import Receiver
from tests.testnet import MESH, RunningNode, TestNet, free_port, until

LINE = LogLine("auth", "node", '{"ts": "2026-11-21T12:00:00Z", "level": "info", "event": "x"}')


def _node_spans(count: int) -> list[NodeSpan]:
    return [
        NodeSpan("auth", "node", Span("a" * 32, f"{number:016x}", "", "work", SpanKind.INTERNAL, 0, 1, "", {})) for number in range(count)
    ]


class FakeLog:
    def __init__(self) -> None:
        self.lines: list[tuple[str, str, int, str]] = []

    def warning(self, event: str, *, what: str, rejected: int, why: str) -> None:
        self.lines.append((event, what, rejected, why))


def _boxes(running: RunningNode) -> OtlpOutboxes:
    assert isinstance(running.service, MetricsService)
    assert running.service._outboxes is not None
    return running.service._outboxes


def _check(running: RunningNode) -> Check:
    (check,) = _boxes(running).checks()
    return check


def _counted(running: RunningNode, name: str) -> float:
    head = f'ai_platform_{name}_total{{reason="rejected"'
    return sum(float(line.rpartition(" ")[2]) for line in running.node.read_own_metrics().text.splitlines() if line.startswith(head))


async def _sent(running: RunningNode, spans: int = 0, lines: int = 0) -> None:
    boxes = _boxes(running)
    boxes.spans.put(_node_spans(spans))
    boxes.logs.put([LINE] * lines)
    await until(lambda: not (len(boxes.spans) or len(boxes.logs) or boxes.spans._has_waiting.is_set() or boxes.logs._has_waiting.is_set()))


async def test_partial_rejections_are_counted_logged_once_and_shown(net: TestNet, monkeypatch: pytest.MonkeyPatch) -> None:
    log = FakeLog()
    monkeypatch.setattr(otlp_outbox, "_log", log)
    # The service's own lines are sent at the start and not again.
    monkeypatch.setattr(log_and_trace_collectors, "EVERY_SECONDS", 3600)
    port = free_port()
    with otlp_receiver.receiving(port) as receiver:
        running = await _start(net, port)
        await _sent(running, spans=5, lines=5)
        assert (_check(running).ok, log.lines) == (True, [])

        _reject(receiver, otlp_records.SPANS_PATH, rejectedSpans="2", errorMessage="span 7 is too old")
        await _sent(running, spans=5)
        _reject(receiver, otlp_records.SPANS_PATH, rejectedSpans="9", errorMessage="span 8 is too old")
        await _sent(running, spans=3)
        _reject(receiver, otlp_records.LOGS_PATH, rejectedLogRecords="4", errorMessage="no room")
        await _sent(running, lines=5)
        assert (_counted(running, "spans_lost"), _counted(running, "log_lines_lost")) == (2 + 3, 4), "no more than there were"
        event = "the OTLP endpoint rejected some items"
        assert log.lines == [(event, "spans", 2, "span 7 is too old"), (event, "log lines", 4, "no room")]
        check = _check(running)
        assert (check.name, check.ok, check.needed) == ("OTLP", False, False)
        assert "5 spans, the last one because: span 8 is too old" in check.detail
        assert "4 log lines, the last one because: no room" in check.detail
        assert "docs/runbooks/spans_lost.md" in check.detail
        assert len(receiver.spans) == 13, "what was rejected is not sent again"


BROKEN = {
    "nothing": b"",
    "half": b"{",
    "deep": b"[" * 60_000,
    "negative": b'{"partialSuccess":{"rejectedSpans":-5}}',
    "long": b'{"partialSuccess":{"rejectedSpans":5}}' + b" " * 100_000,
}


@pytest.mark.parametrize("answer", BROKEN.values(), ids=BROKEN.keys())
async def test_broken_response_changes_nothing(net: TestNet, answer: bytes) -> None:
    port = free_port()
    with otlp_receiver.receiving(port) as receiver:
        running = await _start(net, port)
        receiver.answers[otlp_records.SPANS_PATH] = answer
        await _sent(running, spans=5)
        await _sent(running, spans=5)
        assert len(receiver.spans) == 10
        assert _check(running).ok
        assert _counted(running, "spans_lost") == 0


def _reject(receiver: Receiver, path: str, **success: str) -> None:
    receiver.answers[path] = json.dumps({"partialSuccess": success}).encode()


async def _start(net: TestNet, port: int) -> RunningNode:
    settings = MetricsSettings(
        node_key_file=net.server.key("metrics", Role.METRICS),
        port=0,
        prometheus_port=0,
        mesh=MESH,
        nats_url=net.server.url,
        otlp_endpoint=f"http://127.0.0.1:{port}",
    )
    return await net.start(MetricsService, settings)
