"""`aicli nodes`: list the nodes of the mesh, and why a node gets no requests."""

from typing import TYPE_CHECKING

import click

from cli.cli_context import CliContext
from cli.output import printing, watching
from cli.output.printing import TableColumn
from shared import api

if TYPE_CHECKING:
    from shared.api.gateway import NodeRow


@click.command()
@watching.listing_options("Print a JSON list.")
@click.pass_obj
def nodes(here: CliContext, /, *, as_json: bool) -> None:
    """List the nodes of the mesh, and show why a node gets no requests.

    PATH is how the gateway reaches the node: nats, direct, punched (NAT hole punching) or relayed (via a blind relay).
    """
    found = here.call(api.gateway.list_nodes, api.gateway.ListNodes(), key_needed=False)
    columns: list[TableColumn[NodeRow]] = [
        # The start of an id identifies a node for people; scripts get all of it.
        TableColumn("NODE", lambda node: node.id[:9], full=lambda node: node.id),
        TableColumn("SERVICE", lambda node: node.service),
        TableColumn("PATH", lambda node: node.path or "–", rank=3),
        TableColumn("RTT", lambda node: printing.round_trip(node.round_trip_ms), rank=5),
        TableColumn("STATE", _state, _style, wraps=True),
        TableColumn("SINCE", lambda node: printing.ago(node.since), rank=4),
        TableColumn("LOAD", lambda node: printing.load(node.running, node.slots, node.queued), rank=2),
        TableColumn("MODELS", lambda node: printing.names(node.models), rank=2, wraps=True),
    ]
    printing.show_rows(found.nodes, columns, as_json=as_json, empty="No nodes. Start the services: make up")


def _state(node: "NodeRow") -> str:
    if node.usable:
        return f"used, but {node.trouble or node.warning}" if node.trouble or node.warning else "used"
    if node.free:
        return f"{node.free}: {node.why_not}"
    word = "not used" if node.alive else "not admitted" if node.refused else "gone"
    return f"{word}: {node.why_not}"


def _style(node: "NodeRow") -> str:
    if node.usable:
        return "yellow" if node.trouble or node.warning else "green"
    return "yellow" if node.alive else "red"
