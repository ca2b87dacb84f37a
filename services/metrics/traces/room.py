"""The room of traces, opened and joined; and its RPC method."""

from services.metrics.otlp.outbox import Outbox
from services.metrics.otlp.spans import Told
from services.metrics.traces.collector import Collector, Each
from services.metrics.traces.shelf import Shelf
from shared import errors
from shared import node as nodes
from shared.api import traces as api
from shared.rpc import RpcCall, serves


class Traces:
    """Handlers; ``collect`` fills what they read."""

    def __init__(self) -> None:
        self._shelf = Shelf()

    async def collect(self, node: nodes.Node, each: Each, outbox: Outbox[Told] | None) -> None:
        """For ever; without an outbox they are kept here alone."""
        await Collector(node, each, self._shelf, outbox).run()

    @serves(api.get_trace)
    async def get_trace(self, request: api.GetTrace, call: RpcCall) -> api.FoundTrace:
        found = self._shelf.find(request.id.strip().lower())
        if not found:
            raise errors.NotFound(
                f"there is no trace of {request.id[:80]!r} here",
                hint="the latest are kept for a while: those that failed or were slow, and some of the others (OTEL_TRACES_SAMPLER_ARG)",
            )
        return api.FoundTrace(tuple(api.TracedSpan(one.service, one.node, one.span) for one in found))
