"""`aicli admin nodes`: list, approve, revoke and pardon enrolled machines, and let administrators put models on yours."""

import sys
from typing import TYPE_CHECKING

import click

from cli import value_completion
from cli.cli_context import CliContext
from cli.output import print_format, printing, watching
from cli.output.printing import TableColumn
from shared import api
from shared.types import NodeId

if TYPE_CHECKING:
    from shared.api.membership import LoginRefusal, Member


@click.group()
def nodes() -> None:
    """List, approve, revoke and pardon nodes, and accept models on yours. (`aicli nodes` shows the nodes that are up.)"""


@nodes.command("list")
@watching.listing_options("Print a JSON list.")
@click.pass_obj
def list_(here: CliContext, /, *, as_json: bool) -> None:
    """List all enrolled nodes, pending approvals first."""
    from shared.lists.nodes import MEMBERS

    found = here.call(api.membership.list_members, api.membership.ListMembers())
    printing.show_list(found.members, MEMBERS, as_json=as_json, create="Create a ticket: aicli admin tickets create --role worker")


@nodes.command()
@watching.listing_options("Print a JSON list.")
@click.pass_obj
def refusals(here: CliContext, /, *, as_json: bool) -> None:
    """List the last 1,000 NATS logins that auth refused, and why."""
    found = here.call(api.membership.list_login_refusals, api.membership.ListLoginRefusals())
    columns: list[TableColumn[LoginRefusal]] = [
        TableColumn("TIME", lambda refusal: printing.moment(refusal.at)),
        TableColumn("NODE", lambda refusal: refusal.node[:9], full=lambda refusal: refusal.node),
        TableColumn("ADDRESS", lambda refusal: refusal.address, rank=2),
        TableColumn("REASON", lambda refusal: refusal.reason, wraps=True),
    ]
    printing.show_rows(found.refusals, columns, as_json=as_json, empty="No login was refused.")


@nodes.command()
@click.argument("node", metavar="ID", shell_complete=value_completion.nodes)
@print_format.output_options("Print the node as a JSON object.")
@click.pass_obj
def approve(here: CliContext, /, node: str, *, as_json: bool) -> None:
    """Approve a pending node, by its ID or a unique prefix."""
    _show(here.call(api.membership.approve_member, api.membership.ApproveMember(node)), "Approved", as_json=as_json)


@nodes.command()
@click.argument("node", metavar="ID", shell_complete=value_completion.nodes)
@click.option("--yes", is_flag=True, help="Don't ask for confirmation.")
@click.option("--reason", default="", metavar="TEXT", help="Reason, stored with the node.")
@print_format.output_options("Print the node as a JSON object.")
@click.pass_obj
def revoke(here: CliContext, /, node: str, *, yes: bool, reason: str, as_json: bool) -> None:
    """Revoke a node, by its ID or a unique prefix. It is cut off within seconds, permanently.

    The machine can join again with a new ticket, under a new key.
    """
    if not yes:
        _confirm(here, node)
    _show(here.call(api.membership.revoke_member, api.membership.RevokeMember(node, reason=reason)), "Revoked", as_json=as_json)


@nodes.command()
@click.argument("node", metavar="ID", shell_complete=value_completion.nodes)
@print_format.output_options("Print the worker as a JSON object.")
@click.pass_obj
def pardon(here: CliContext, /, node: str, *, as_json: bool) -> None:
    """End the quarantine of a worker that reported wrong token counts, by its node ID or a unique prefix.

    All gateways send it requests again within seconds, and its strikes are reset.
    """
    pardoned = here.call(api.gateway.pardon_node, api.gateway.PardonNode(node))
    printing.show_message(pardoned, f"Pardoned worker {pardoned.node[:9]}. It gets requests again.", as_json=as_json)


@nodes.command("accept-models")
@click.argument("node", metavar="ID", shell_complete=value_completion.nodes)
@click.option("--no", "refuses", is_flag=True, help="Don't let them anymore. The worker keeps the models that it has.")
@print_format.output_options("Print the worker as a JSON object.")
@click.pass_obj
def accept_models(here: CliContext, /, node: str, *, refuses: bool, as_json: bool) -> None:
    """Let administrators put models on your worker, by its node ID or a unique prefix. Only its owner can.

    Models that were removed from it may then come back, too. Administrators decide about workers without an owner.
    """
    consented = here.call(api.gateway.set_model_consent, api.gateway.ConsentOnWorker(NodeId(node), accepts_models=not refuses))
    can = "can no longer" if refuses else "can now"
    printing.show_message(consented, f"Administrators {can} put models on worker {consented.worker[:9]}.", as_json=as_json)


def _confirm(here: CliContext, beginning: str) -> None:
    if not sys.stdin.isatty():
        raise click.UsageError("a revoked key can't be restored; confirm with --yes")
    members = here.call(api.membership.list_members, api.membership.ListMembers()).members
    matching = [member for member in members if member.id.startswith(beginning)]
    # With no or several matches, auth explains the problem.
    if len(matching) == 1 and not click.confirm(
        f"Revoke {printing.printable(_described(matching[0]))}? Its key can't be restored.", err=True
    ):
        printing.note("Nothing changed.")
        click.get_current_context().exit(1)


def _show(member: "Member", done: str, *, as_json: bool) -> None:
    printing.show_message(member, f"{done} {printing.printable(_described(member))}.", as_json=as_json)


def _described(member: "Member") -> str:
    from shared.lists.nodes import NO_OWNER

    name = f" {member.name!r}" if member.name else ""
    return f"{member.role} {member.id[:9]}{name} of {member.owner or NO_OWNER}"
