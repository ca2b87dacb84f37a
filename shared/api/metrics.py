"""metrics: numbers in, Prometheus text and the health of the whole out."""

from datetime import datetime
from enum import StrEnum

import msgspec

from shared.api.method import Body, Method, Nothing
from shared.spans import Span
from shared.types import NodeId, Role


class GetTrace(Body, frozen=True):
    #: Of the trace (32 hex digits), or of the request as an answer's X-Request-ID has it.
    id: str


class TracedSpan(Body, frozen=True, omit_defaults=False):
    service: str
    #: The first 12 characters of its id.
    node: str
    span: Span


class FoundTrace(Body, frozen=True, omit_defaults=False):
    #: By their beginning.
    spans: tuple[TracedSpan, ...]


get_trace = Method("metrics.getTrace", GetTrace, FoundTrace, callers={Role.WEB, Role.CLIENT, Role.OPERATOR})


#: Of one answer.
MOST_STEPS, MOST_LINES = 1000, 200
MOST_NAMES = 20


class HistoryGrouping(StrEnum):
    """What a line is told apart by; over the others it is summed."""

    SERVICE = "service"
    NODE = "node"
    MODEL = "model"


class GetHistory(Body, frozen=True):
    """A name is a metric's (of a histogram: with _bucket or _sum), with `max:` before it for the highest that was seen, or `p50:`, `p95:`
    and so on before a histogram for that quantile."""

    names: tuple[str, ...]
    since: datetime
    until: datetime
    #: A multiple of 15.
    step_seconds: int = 60
    by: tuple[HistoryGrouping, ...] = ()
    #: Of one machine alone: the id of its node, or at least its first 12 letters. All where it is left out.
    node: str | None = None


class HistoryLine(Body, frozen=True, omit_defaults=False):
    #: As it was asked for.
    name: str
    #: Those of `by`, and those that the metric has besides, such as status or gpu.
    labels: dict[str, str]
    #: One for each step. Of counters per second of the time that was seen, of others the mean; null where nothing is known.
    values: tuple[float | None, ...]


class History(Body, frozen=True, omit_defaults=False):
    #: When the first step begins.
    since: datetime
    step_seconds: int
    #: Seconds between two looks that this is made of: 15, or 60 or 3600 where it was rolled up.
    resolution_seconds: int
    lines: tuple[HistoryLine, ...]


get_history = Method("metrics.getHistory", GetHistory, History, callers={Role.WEB, Role.CLIENT, Role.OPERATOR})


EVERYONE = {Role.AUTH, Role.GATEWAY, Role.WORKER, Role.WEB, Role.OPERATOR}


class RecordMetric(Body, frozen=True):
    metric_name: str
    value: float
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    #: When it was measured; without it, now.
    at: datetime | None = None


class RecordMetrics(Body, frozen=True):
    samples: tuple[RecordMetric, ...]


class RecordedMetrics(Body, frozen=True, omit_defaults=False):
    taken: int
    #: Samples that were not; the others are recorded all the same.
    refused: int
    #: Why, of the first ten of them.
    problems: tuple[str, ...]


class MetricsTextFormat(StrEnum):
    """How metrics are written."""

    #: The Prometheus text format 0.0.4.
    PROMETHEUS = "prometheus"
    #: OpenMetrics 1.0.0, with exemplars.
    OPENMETRICS = "openmetrics"


class GetMetrics(Body, frozen=True):
    format: MetricsTextFormat = MetricsTextFormat.PROMETHEUS


class MetricsText(Body, frozen=True, omit_defaults=False):
    content_type: str
    text: str


class GetSystemHealth(Body, frozen=True):
    pass


class ComponentHealth(Body, frozen=True, omit_defaults=False):
    """A part of the whole: something that runs, or something that it needs."""

    name: str
    #: "service", "server", "worker"; "queue", one for each model that somebody waits for; "path" and "certificate", one for all nodes.
    kind: str
    #: "healthy", "degraded" or "down".
    status: str
    since: datetime
    #: What is wrong and what to do. When nothing is: empty, or what is good to know, such as which certificate ends next.
    detail: str = ""


class NodeView(Body, frozen=True, omit_defaults=False):
    """A node as the metrics service reaches it."""

    id: NodeId
    service: str
    #: nats; direct, punched or relayed over Hyperswarm; self for the metrics service itself; empty where there never was one.
    path: str
    #: Null where there is no link to measure it on.
    round_trip_ms: float | None
    alive: bool
    #: Alive, or gone, since then.
    since: datetime
    #: Why it is not used; empty when it is.
    why_not: str


class SystemHealth(Body, frozen=True, omit_defaults=False):
    #: The worst of what matters: "healthy", "degraded" or "down".
    status: str
    components: tuple[ComponentHealth, ...]
    nodes: tuple[NodeView, ...] = ()


record_metric = Method("metrics.recordMetric", RecordMetric, Nothing, callers=EVERYONE)
record_metrics = Method("metrics.recordMetrics", RecordMetrics, RecordedMetrics, callers=EVERYONE)
get_metrics = Method("metrics.getMetrics", GetMetrics, MetricsText, callers={Role.GATEWAY, Role.WEB, Role.OPERATOR})
get_system_health = Method(
    "metrics.getSystemHealth", GetSystemHealth, SystemHealth, callers={Role.GATEWAY, Role.WEB, Role.CLIENT, Role.OPERATOR}
)
