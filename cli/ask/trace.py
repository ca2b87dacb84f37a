"""`aicli trace`: show where the time of a request went, on every node."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click
import msgspec

from cli.cli_context import CliContext
from cli.output import printing, watching
from cli.output.printing import TableColumn
from shared import api

if TYPE_CHECKING:
    from shared.api.metrics import TracedSpan


class TraceLine(msgspec.Struct, frozen=True):
    """A span, as a line of the tree."""

    #: Indented by its depth in the tree.
    span: str
    service: str
    node: str
    #: Since the start of the first span.
    start_ms: float
    took_ms: float
    #: The error code it ended with.
    error: str
    attributes: dict[str, str | int | float | bool]


@click.command()
@click.argument("request_id", metavar="ID")
@watching.listing_options("Print a JSON list.")
@click.pass_obj
def trace(here: CliContext, /, *, request_id: str, as_json: bool) -> None:
    """Show the trace of a request: where its time went. Admins only.

    ID is a trace ID or a request ID (from the X-Request-ID header, `aicli infer --json` or the request log).
    """
    found = here.call(api.metrics.get_trace, api.metrics.GetTrace(request_id))
    columns: list[TableColumn[TraceLine]] = [
        TableColumn("SPAN", lambda line: line.span),
        TableColumn("SERVICE", lambda line: line.service, rank=2),
        TableColumn("NODE", lambda line: line.node, rank=4),
        TableColumn("START", lambda line: f"{line.start_ms:.1f} ms", rank=3),
        TableColumn("TOOK", lambda line: f"{line.took_ms:.1f} ms"),
        TableColumn("ERROR", lambda line: line.error, lambda line: "red" if line.error else ""),
    ]
    printing.show_rows(lines(found.spans, indented=not as_json), columns, as_json=as_json, empty="This trace has no spans")


def lines(spans: "Sequence[TracedSpan]", *, indented: bool = True) -> list[TraceLine]:
    """Sort spans below their parents; spans with an unknown parent are roots."""
    known = {traced.span.span_id for traced in spans}
    below: dict[str, list[TracedSpan]] = {}
    for traced in sorted(spans, key=lambda traced: (traced.span.start_ns, traced.span.end_ns)):
        below.setdefault(traced.span.parent_id if traced.span.parent_id in known else "", []).append(traced)
    began_ns = min((traced.span.start_ns for traced in spans), default=0)
    found: list[TraceLine] = []
    left = [(root, 0) for root in reversed(below.get("", []))]
    while left:
        traced, depth = left.pop()
        span = traced.span
        found.append(
            TraceLine(
                span=("  " * depth if indented else "") + span.name,
                service=traced.service,
                node=traced.node,
                start_ms=round((span.start_ns - began_ns) / 1e6, 3),
                took_ms=round((span.end_ns - span.start_ns) / 1e6, 3),
                error=span.error,
                attributes=span.attributes,
            )
        )
        # Each span is shown once. A cycle, which only a faulty node can send, has no root and is not shown.
        left += [(part, depth + 1) for part in reversed(below.pop(span.span_id, []))]
    return found
