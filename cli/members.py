"""`aicli admin nodes`: the machines that were let in; approve them, cut them off, pardon them."""

import sys
from typing import TYPE_CHECKING

import click

from cli.surroundings import Surroundings

if TYPE_CHECKING:
    from shared.api.membership import Member

_STATES = {"pending": ("pending approval", "yellow"), "active": ("active", "green"), "revoked": ("revoked", "red")}


@click.group()
def nodes() -> None:
    """List, approve, revoke and pardon nodes. (`aicli nodes` shows the nodes that are up.)"""


@nodes.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
@click.pass_obj
def list_(here: Surroundings, /, *, as_json: bool) -> None:
    """List all enrolled nodes, pending approvals first."""
    from cli import output
    from cli.output import Column
    from shared.api import membership

    found = here.ask(membership.list_members, membership.ListMembers())
    columns: list[Column[Member]] = [
        # The start of a node's id tells nodes apart; scripts get the whole one.
        Column("NODE", lambda node: node.id[:9]),
        Column("ROLE", lambda node: node.role),
        Column("NAME", lambda node: node.name or "–"),
        Column("OWNER", lambda node: node.owner or "the mesh"),
        Column("STATE", _state, lambda node: _STATES[node.state][1]),
        Column("LABELS", lambda node: output.names(f"{key}={value}" for key, value in node.labels.items())),
        Column("JOINED", lambda node: f"{output.ago(node.joined_at)} ago"),
        Column("CERTIFICATE EXPIRES", lambda node: output.moment(node.certified_until)),
    ]
    output.show_rows(
        found.members, columns, as_json=as_json, empty="No nodes yet. Create a ticket: aicli admin tickets create --role worker"
    )


@nodes.command()
@click.argument("node", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print the node as a JSON object.")
@click.pass_obj
def approve(here: Surroundings, /, node: str, *, as_json: bool) -> None:
    """Approve a pending node, by its ID or a unique prefix."""
    from shared.api import membership

    _show(here.ask(membership.approve_member, membership.ApproveMember(node)), "Approved", as_json=as_json)


@nodes.command()
@click.argument("node", metavar="ID")
@click.option("--yes", is_flag=True, help="Don't ask for confirmation.")
@click.option("--reason", default="", metavar="TEXT", help="Reason, stored with the node.")
@click.option("--json", "as_json", is_flag=True, help="Print the node as a JSON object.")
@click.pass_obj
def revoke(here: Surroundings, /, node: str, *, yes: bool, reason: str, as_json: bool) -> None:
    """Revoke a node, by its ID or a unique prefix. It is cut off within seconds, permanently.

    The machine can join again with a new ticket, under a new key.
    """
    from shared.api import membership

    if not yes:
        _ask(here, node)
    _show(here.ask(membership.revoke_member, membership.RevokeMember(node, reason=reason)), "Revoked", as_json=as_json)


@nodes.command()
@click.argument("node", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print the worker as a JSON object.")
@click.pass_obj
def pardon(here: Surroundings, /, node: str, *, as_json: bool) -> None:
    """End the quarantine of a worker that reported wrong token counts, by its node ID or a unique prefix.

    All gateways send it requests again within seconds, and its strikes are reset.
    """
    from cli import output
    from shared.api import gateway

    pardoned = here.ask(gateway.pardon_node, gateway.PardonNode(node))
    if as_json:
        output.show_json(output.plain(pardoned))
    else:
        click.echo(f"Pardoned worker {pardoned.node[:9]}. It gets requests again.")


def _ask(here: Surroundings, beginning: str) -> None:
    """Ends the command unless the person at the terminal agrees."""
    from cli import output
    from shared.api import membership

    if not sys.stdin.isatty():
        raise click.UsageError("a revoked key can't be restored; confirm with --yes")
    members = here.ask(membership.list_members, membership.ListMembers()).members
    meant = [member for member in members if member.id.startswith(beginning)]
    # None or several: what is wrong with that is for auth to say.
    if len(meant) == 1 and not click.confirm(f"Revoke {output.printable(_described(meant[0]))}? Its key can't be restored.", err=True):
        output.note("Nothing changed.")
        click.get_current_context().exit(1)


def _show(member: "Member", done: str, *, as_json: bool) -> None:
    from cli import output

    if as_json:
        output.show_json(output.plain(member))
    else:
        click.echo(f"{done} {output.printable(_described(member))}.")


def _described(member: "Member") -> str:
    name = f" {member.name!r}" if member.name else ""
    return f"{member.role} {member.id[:9]}{name} of {member.owner or 'the mesh'}"


def _state(member: "Member") -> str:
    words = _STATES[member.state][0]
    return f"{words}: {member.reason}" if member.reason else words
