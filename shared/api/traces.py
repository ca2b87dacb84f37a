"""metrics: the spans of one request, from every node that worked on it."""

from shared.api.method import Body, Method
from shared.spans import Span
from shared.types import Role


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
