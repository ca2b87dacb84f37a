"""metrics: recording and reading metrics, traces, history and system health."""

from enum import StrEnum
from typing import Annotated

import msgspec

from shared.api.method import PEOPLE_OR_GATEWAY, Body, Method, Nothing
from shared.spans import Span
from shared.types import Moment, NodeId, Role


class GetTrace(Body, frozen=True):
    #: A trace id (32 hex digits), or a request id as in an answer's X-Request-ID.
    id: str


class TracedSpan(Body, frozen=True, omit_defaults=False):
    service: str
    #: The first 12 characters of the node's id.
    node: str
    span: Span


class FoundTrace(Body, frozen=True, omit_defaults=False):
    #: Ordered by start.
    spans: tuple[TracedSpan, ...]


get_trace = Method("metrics.getTrace", GetTrace, FoundTrace, callers=PEOPLE_OR_GATEWAY)


#: Per answer.
MAX_STEPS, MAX_LINES = 1000, 200
MAX_NAMES = 20


class HistoryGrouping(StrEnum):
    """What distinguishes lines. Values are summed over everything else."""

    SERVICE = "service"
    NODE = "node"
    MODEL = "model"


class GetHistory(Body, frozen=True):
    """A name is a metric (histograms: with _bucket or _sum), optionally prefixed by `max:` for the maximum, or by `p50:`, `p95:` etc. for a
    quantile of a histogram."""

    names: tuple[str, ...]
    since: Moment
    until: Moment
    #: A multiple of 15. The largest is about 30 years.
    step_seconds: Annotated[int, msgspec.Meta(le=10**9)] = 60
    by: tuple[HistoryGrouping, ...] = ()
    #: Only this machine: its node id or at least the first 12 characters; None for all.
    node: str | None = None


class HistoryLine(Body, frozen=True, omit_defaults=False):
    #: As requested.
    name: str
    #: The labels of `by`, and the metric's other labels, such as status or gpu.
    labels: dict[str, str]
    #: One per step: the rate per second for counters, otherwise the mean; null where nothing is known.
    values: tuple[float | None, ...]


class History(Body, frozen=True, omit_defaults=False):
    #: The start of the first step.
    since: Moment
    step_seconds: int
    #: The sampling interval of the underlying data: 15, or 60 or 3600 if rolled up.
    resolution_seconds: int
    lines: tuple[HistoryLine, ...]


get_history = Method("metrics.getHistory", GetHistory, History, callers=PEOPLE_OR_GATEWAY)


JOULES_PER_KWH = 3_600_000


class GetEnergy(Body, frozen=True):
    """Of whole UTC days."""

    since: Moment
    until: Moment


class NodeEnergy(Body, frozen=True, omit_defaults=False):
    """What a worker's machine used. A GPU or machine of several workers is only in one of them."""

    #: The first 12 characters of the node's id.
    node: str
    joules: float
    #: In credits; None without a price.
    cost: float | None
    #: How it was measured: counter, power or watts, sorted.
    sources: tuple[str, ...]

    def __add__(self, other: "NodeEnergy") -> "NodeEnergy":
        costs = [cost for cost in (self.cost, other.cost) if cost is not None]
        sources = tuple(sorted({*self.sources, *other.sources}))
        return NodeEnergy(self.node, self.joules + other.joules, sum(costs) if costs else None, sources)


class Energy(Body, frozen=True, omit_defaults=False):
    nodes: tuple[NodeEnergy, ...]


get_energy = Method("metrics.getEnergy", GetEnergy, Energy, callers={Role.GATEWAY})


EVERYONE = {Role.AUTH, Role.GATEWAY, Role.WORKER, Role.WEB, Role.OPERATOR}


class RecordMetric(Body, frozen=True):
    metric_name: str
    value: float
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    #: The time of measurement; None for now.
    at: Moment | None = None


class RecordMetrics(Body, frozen=True):
    samples: tuple[RecordMetric, ...]


class RecordedMetrics(Body, frozen=True, omit_defaults=False):
    taken: int
    #: Samples that were refused. The others are recorded.
    refused: int
    #: The reasons for the first ten.
    problems: tuple[str, ...]


class MetricsTextFormat(StrEnum):
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
    """A component of the platform, or something that it depends on."""

    name: str
    #: service, server or worker; queue, one per model with waiting requests; path and certificate, one each for all nodes.
    kind: str
    #: healthy, degraded or down.
    status: str
    since: Moment
    #: What is wrong and what to do. If nothing is wrong: empty, or useful information such as the next certificate to expire.
    detail: str = ""


class NodeView(Body, frozen=True, omit_defaults=False):
    """A node as seen by the metrics service."""

    id: NodeId
    service: str
    #: nats; direct, punched or relayed over Hyperswarm; self for the metrics service itself; empty if there never was one.
    path: str
    #: Null if there is no link.
    round_trip_ms: float | None
    alive: bool
    #: Since when it is alive or gone.
    since: Moment
    #: Why it gets no requests; empty if it does.
    why_not: str


class SystemHealth(Body, frozen=True, omit_defaults=False):
    #: The worst state of the components: healthy, degraded or down.
    status: str
    components: tuple[ComponentHealth, ...]
    nodes: tuple[NodeView, ...] = ()


record_metric = Method("metrics.recordMetric", RecordMetric, Nothing, callers=EVERYONE)
record_metrics = Method("metrics.recordMetrics", RecordMetrics, RecordedMetrics, callers=EVERYONE)
get_metrics = Method("metrics.getMetrics", GetMetrics, MetricsText, callers={Role.GATEWAY, Role.WEB, Role.OPERATOR})
get_system_health = Method(
    "metrics.getSystemHealth", GetSystemHealth, SystemHealth, callers={Role.GATEWAY, Role.WEB, Role.CLIENT, Role.OPERATOR}
)
