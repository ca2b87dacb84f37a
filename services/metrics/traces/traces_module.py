"""The room of traces, opened and joined; and its RPC method."""

from services.metrics.export.otlp.otlp_outbox import OtlpOutbox
from services.metrics.export.otlp.span_records import NodeSpan
from services.metrics.traces.span_collector import Each, SpanCollector
from services.metrics.traces.trace_store import TraceStore
from shared import errors
from shared import node as nodes
from shared.api import traces as api
from shared.rpc import RpcCall, serves


class TracesModule:
    """Handlers; ``collect`` fills what they read."""

    def __init__(self) -> None:
        self._shelf = TraceStore()

    async def collect(self, node: nodes.Node, each: Each, outbox: OtlpOutbox[NodeSpan] | None) -> None:
        """For ever; without an outbox they are kept here alone."""
        await SpanCollector(node, each, self._shelf, outbox).run()

    @serves(api.get_trace)
    async def get_trace(self, request: api.GetTrace, call: RpcCall) -> api.FoundTrace:
        found = self._shelf.find(request.id.strip().lower())
        if not found:
            raise errors.NotFound(
                f"there is no trace of {request.id[:80]!r} here",
                hint="the latest are kept for a while: those that failed or were slow, and some of the others (OTEL_TRACES_SAMPLER_ARG)",
            )
        return api.FoundTrace(tuple(api.TracedSpan(one.service, one.node, one.span) for one in found))
