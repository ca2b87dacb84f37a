"""`aicli mesh`: connect from another machine, and run what machines find each other by."""

import click

from cli.lazy_group import LazyGroup


@click.group(
    cls=LazyGroup,
    places={
        "connect": ("cli.machines.mesh_connect:connect", "Create a profile for this machine from a ticket."),
        "export": (
            "cli.machines.mesh_export:export",
            "Print a key, a fresh certificate and addresses for a JavaScript peer.",
        ),
        "bootstrap": ("cli.machines.mesh_programs:bootstrap", "Run three DHT nodes in the foreground."),
        "relay": (
            "cli.machines.mesh_programs:relay",
            "Run a blind relay in the foreground.",
        ),
    },
)
def mesh() -> None:
    """Connect to a mesh from another machine, or run the DHT nodes and relays of a mesh.

    `make up` runs its own DHT nodes on loopback. For remote machines, run `bootstrap` on a publicly reachable host (and `relay` for
    machines behind difficult NATs). Then configure the stack: DHT_BOOTSTRAP=… DHT_RELAYS=… make up
    """
