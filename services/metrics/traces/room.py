"""The room of traces, opened and joined: what reads them, what keeps them, what hands them on; and its RPC method."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.metrics.traces import endpoint
from services.metrics.traces.collector import Collector, Each
from services.metrics.traces.outbox import Outbox
from services.metrics.traces.shelf import Shelf
from shared import errors
from shared import node as nodes
from shared.api import traces as api
from shared.api.gateway import Check
from shared.rpc import Call, serves


class Traces:
    """Handlers, and what its health is."""

    def __init__(self, shelf: Shelf, outbox: Outbox | None) -> None:
        self._shelf = shelf
        self._outbox = outbox

    def checks(self) -> tuple[Check, ...]:
        """Only where there is an endpoint to hand them to. Nothing else waits for it."""
        if self._outbox is None:
            return ()
        return (Check("OTLP", ok=not self._outbox.trouble, detail=self._outbox.trouble, needed=False),)

    @serves(api.get_trace)
    async def get_trace(self, request: api.GetTrace, call: Call) -> api.FoundTrace:
        # The request's id is written with hyphens, the trace's without.
        found = self._shelf.find(request.id.strip().lower())
        if not found:
            raise errors.NotFound(
                f"there is no trace of {request.id[:80]!r} here",
                hint="the latest are kept for a while: those that failed or were slow, and some of the others (OTEL_TRACES_SAMPLER_ARG)",
            )
        return api.FoundTrace(tuple(api.TracedSpan(one.service, one.node, one.span) for one in found))


@asynccontextmanager
async def opened(node: nodes.Node, each: Each, *, otlp_url: str, otlp_headers: str) -> AsyncIterator[Traces]:
    """``otlp_url`` empty: they are kept here alone. Its tasks are the node's."""
    shelf = Shelf()
    if not otlp_url:
        node.tasks.create_task(Collector(node, each, shelf, None).run(), name="traces")
        yield Traces(shelf, None)
        return
    async with endpoint.opened(otlp_url, endpoint.read_headers(otlp_headers)) as send:
        outbox = Outbox(send, node.metrics.spans_lost.labels(reason="not_taken").inc)
        node.tasks.create_task(outbox.run(), name="OTLP")
        node.tasks.create_task(Collector(node, each, shelf, outbox).run(), name="traces")
        yield Traces(shelf, outbox)
