"""node: what every service serves about itself over any link, so that monitoring needs no open port."""

from typing import Annotated

import msgspec

from shared.api.gateway import Check
from shared.api.method import Body, Method
from shared.spans import Span
from shared.types import MeshName, Moment, NodeId, Role


class ReadMetrics(Body, frozen=True):
    pass


class Exemplar(Body, frozen=True):
    """A traced request in a histogram bucket."""

    trace_id: str
    value: float
    #: Seconds since 1970.
    at: float


class NodeMetrics(Body, frozen=True):
    #: Prometheus text, as on the node's /metrics.
    text: str
    #: By the bucket's line without its value.
    exemplars: dict[str, Exemplar] = msgspec.field(default_factory=dict)


class ReadSpans(Body, frozen=True):
    #: ``next`` of the previous answer; 0 at first.
    after: int = 0
    #: Traces that another node keeps. This node keeps its spans of them from now on.
    wanted: tuple[str, ...] = ()


class Spans(Body, frozen=True, omit_defaults=False):
    #: Each has trace, span and parent id, name, kind, start and end in nanoseconds since 1970, error code and attributes.
    spans: tuple[Span, ...]
    #: Where to continue.
    next: int
    #: Spans that were overwritten before they were read.
    lost: int


class ReadLogs(Body, frozen=True):
    #: ``next`` of the previous answer; 0 at first.
    after: int = 0


class LogLines(Body, frozen=True, omit_defaults=False):
    #: JSON objects, as on stdout. Empty for a worker, whose log belongs to its owner.
    lines: tuple[str, ...]
    #: Where to continue.
    next: int
    #: Lines that were overwritten before they were read.
    lost: int


class ReadHealth(Body, frozen=True):
    pass


#: The check of a worker that has no model and waits for people to give it one.
FIRST_MODEL = "first model"


class NodeHealth(Body, frozen=True, omit_defaults=False):
    ready: bool
    checks: tuple[Check, ...]


class ReadRevocations(Body, frozen=True):
    pass


class Revocations(Body, frozen=True):
    #: The signed list, see shared.identity.certificates; empty if the node has none.
    body: bytes


#: Every node with links. The list is signed, so it does not matter which node sends it.
EVERYBODY = {Role.AUTH, Role.GATEWAY, Role.WORKER, Role.METRICS, Role.WEB, Role.CLIENT, Role.BACKUP}

read_revocations = Method("node.readRevocations", ReadRevocations, Revocations, callers=EVERYBODY)
read_metrics = Method("node.readMetrics", ReadMetrics, NodeMetrics, callers={Role.METRICS})
read_spans = Method("node.readSpans", ReadSpans, Spans, callers={Role.METRICS})
read_logs = Method("node.readLogs", ReadLogs, LogLines, callers={Role.METRICS})
read_health = Method("node.readHealth", ReadHealth, NodeHealth, callers={Role.METRICS, Role.GATEWAY})


# --- the status file that a worker writes beside its key, in JSON: `aicli worker status` shows it -----------------------

Line = Annotated[str, msgspec.Meta(max_length=2000)]


class Reached(Body, frozen=True, omit_defaults=False):
    """A gateway that this worker is connected to."""

    role: Role
    node: NodeId
    #: nats, direct, punched or relayed.
    path: str
    #: None until measured.
    round_trip_ms: float | None


class WorkerStatus(Body, frozen=True, omit_defaults=False):
    told_at: Moment
    mesh: MeshName
    node: NodeId
    #: The worker's state, in sentences.
    lines: tuple[Line, ...]
    is_paused: bool
    gateways: tuple[Reached, ...]
    #: Models that accept requests now.
    models: tuple[str, ...]
    running: int
    queued: int


encode_status = msgspec.json.Encoder().encode
decode_status = msgspec.json.Decoder(WorkerStatus).decode
