"""`aicli nodes`: list the nodes of the mesh, and why a node gets no requests."""

import click

from cli.cli_context import CliContext
from cli.output import printing, watching
from shared import api


@click.command()
@watching.listing_options("Print a JSON list.")
@click.pass_obj
def nodes(here: CliContext, /, *, as_json: bool) -> None:
    """List the nodes of the mesh, and show why a node gets no requests.

    CONNECTION is how the gateway reaches the node: NATS, Direct, Direct (NAT) (by NAT hole punching) or Relay (a blind one).
    """
    from shared.lists import nodes as lists

    found = here.call(api.gateway.list_nodes, api.gateway.ListNodes(), key_needed=False)
    rows = found.nodes if as_json else lists.machines(found.nodes)
    printing.show_list(rows, lists.NODES, as_json=as_json, create="Start the services: make up")
