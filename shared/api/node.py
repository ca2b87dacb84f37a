"""node: what every service serves about itself, over any link, so that nothing needs an open port to be watched."""

import msgspec

from shared.api.gateway import Check
from shared.api.method import Body, Method
from shared.spans import Span
from shared.types import Role


class ReadMetrics(Body, frozen=True):
    pass


class Exemplar(Body, frozen=True):
    """A request in a bucket of a histogram."""

    trace_id: str
    #: What was observed.
    value: float
    #: When, in seconds since 1970.
    at: float


class NodeMetrics(Body, frozen=True):
    #: Prometheus text, as the node's own /metrics has it.
    text: str
    #: By what the line of the bucket has before its number.
    exemplars: dict[str, Exemplar] = msgspec.field(default_factory=dict)


class ReadSpans(Body, frozen=True):
    #: The number that the last answer ended with; 0 at first.
    after: int = 0
    #: Traces that another node kept: their spans here are kept as well from now on.
    wanted: tuple[str, ...] = ()


class Spans(Body, frozen=True, omit_defaults=False):
    #: Each is trace, span and parent id, name, kind, start and end in nanoseconds since 1970, error code, attributes.
    spans: tuple[Span, ...]
    #: Where to read on.
    next: int
    #: Spans that were overwritten before they were read.
    lost: int


class ReadLogs(Body, frozen=True):
    #: The number that the last answer ended with; 0 at first.
    after: int = 0


class LogLines(Body, frozen=True, omit_defaults=False):
    #: JSON objects, as the service writes them to stdout. None of a worker: its log is its owner's.
    lines: tuple[str, ...]
    #: Where to read on.
    next: int
    #: Lines that were overwritten before they were read.
    lost: int


class ReadHealth(Body, frozen=True):
    pass


class NodeHealth(Body, frozen=True, omit_defaults=False):
    ready: bool
    checks: tuple[Check, ...]


class ReadRevocations(Body, frozen=True):
    pass


class Revocations(Body, frozen=True):
    #: The signed list, as shared.identity.certificates has it; empty while the node has none.
    body: bytes


#: Every node that has links: a list is worth the same from whoever has it.
EVERYBODY = {Role.AUTH, Role.GATEWAY, Role.WORKER, Role.METRICS, Role.WEB, Role.CLIENT}

read_revocations = Method("node.readRevocations", ReadRevocations, Revocations, callers=EVERYBODY)
read_metrics = Method("node.readMetrics", ReadMetrics, NodeMetrics, callers={Role.METRICS})
read_spans = Method("node.readSpans", ReadSpans, Spans, callers={Role.METRICS})
read_logs = Method("node.readLogs", ReadLogs, LogLines, callers={Role.METRICS})
read_health = Method("node.readHealth", ReadHealth, NodeHealth, callers={Role.METRICS, Role.GATEWAY})
