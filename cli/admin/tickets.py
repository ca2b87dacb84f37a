"""`aicli admin tickets`: create, list, rotate and revoke join tickets."""

from typing import TYPE_CHECKING, TypedDict, Unpack

import click

from cli import option_values, options
from cli.cli_context import CliContext
from cli.output import print_format, printing, watching
from shared import api, errors
from shared.identity import install_line
from shared.types import Role

if TYPE_CHECKING:
    from shared.api.membership import NewTicket

#: Role -> how a machine joins with it.
COMMANDS = {
    "worker": "aicli worker --join TICKET",
    "client": "aicli mesh connect TICKET",
    **dict.fromkeys(("gateway", "metrics", "web"), "set JOIN_TICKET_FILE to a file with the ticket"),
}
_seconds = option_values.duration("a ticket's lifetime must be", lambda: api.membership.CreateTicket, "ttl_seconds")
_USES = options.WholeNumber(lambda: api.membership.CreateTicket, "uses")
_UNLIMITED = "unlimited"


def _read_uses(context: click.Context, option: click.Parameter, text: str) -> int | None:
    return None if text == _UNLIMITED else int(_USES(text, option, context))


class _WorkerChoices(TypedDict):
    """Options of workers' tickets."""

    model: str
    accept_models: bool | None
    elsewhere: bool


@click.group()
def tickets() -> None:
    """Create, list, rotate and revoke join tickets."""


@tickets.command()
@click.option("--role", type=click.Choice(list(COMMANDS)), required=True, help="Role of the machine.")
@click.option(
    "--uses",
    metavar="N",
    callback=_read_uses,
    default="1",
    show_default=True,
    help="Number of machines that can join with it, or `unlimited` (with --active).",
)
@click.option(
    "--active",
    "active_most",
    type=options.WholeNumber(lambda: api.membership.CreateTicket, "active_most"),
    metavar="N",
    help="For replicas: number of machines that can be active at once. A stopped one frees its place.",
)
@click.option("--network", "networks", multiple=True, metavar="CIDR", help="Network that machines log in from, over NATS. Can be repeated.")
@click.option(
    "--ttl", metavar="TIME", callback=_seconds, default="1h", show_default=True, help="Lifetime, such as 30m or 7d; over 7d with --active."
)
@click.option(
    "--label",
    "--labels",
    "labels",
    callback=option_values.read_labels,
    metavar="KEY=VALUE,…",
    multiple=True,
    help="Labels in the machine's certificate.",
)
@click.option("--model", metavar="hf:…|FILE", default="", help="For workers: what the machine serves: hf:ORG/REPO, or a .gguf file on it.")
@click.option(
    "--accept-models/--no-accept-models",
    default=None,
    help="For workers: whether administrators may put models on the machine. Default: yes if it is yours.",
)
@click.option("--elsewhere", is_flag=True, help="The machine is in another network: check that the mesh's addresses are public.")
@click.option("--approval", is_flag=True, help="Require approval for each machine.")
@click.option(
    "--owner",
    metavar="USER",
    help="Owner of the machine: username, email address or ID. Default: you, or the operator with --active.",
)
@print_format.output_options('Print {"ticket": …, "install": …, "warnings": …, "id": …, …}.')
@click.pass_obj
def create(
    here: CliContext,
    /,
    *,
    role: str,
    uses: int | None,
    active_most: int | None,
    networks: tuple[str, ...],
    ttl: int,
    labels: dict[str, str],
    approval: bool,
    owner: str | None,
    as_json: bool,
    **choices: Unpack[_WorkerChoices],
) -> None:
    """Create a ticket and print it. It is shown only once."""
    request = api.membership.CreateTicket(
        Role(role),
        uses=uses,
        ttl_seconds=ttl,
        labels=labels,
        needs_approval=approval,
        owner=owner,
        active_most=active_most,
        networks=networks,
        **choices,
    )
    _show(here.call(api.membership.create_ticket, request), as_json=as_json)


@tickets.command()
@click.argument("ticket", metavar="ID")
@print_format.output_options('Print {"ticket": …, "install": …, "warnings": …, "id": …, …}.')
@click.pass_obj
def rotate(here: CliContext, /, ticket: str, *, as_json: bool) -> None:
    """Create a ticket with the same rights as an old one, and print it. The old one works for 24 more hours."""
    _show(here.call(api.membership.rotate_ticket, api.membership.RotateTicket(_checked_id(ticket))), as_json=as_json)


def _show(made: "NewTicket", *, as_json: bool) -> None:
    if as_json:
        row = printing.plain(made.row)
        assert isinstance(row, dict)
        printing.show_json({"ticket": made.ticket, "install": made.install or None, "warnings": list(made.warnings), **row})
        return
    click.echo(made.ticket)
    _explain(made)


def _explain(made: "NewTicket") -> None:
    row = made.row
    machines = "any number of machines" if row.uses is None else printing.counted(row.uses, "machine")
    places = "" if row.active_most is None else f", {row.active_most} at once,"
    where = "On that machine" if row.uses == 1 else "On each machine"
    printing.note(f"The ticket admits {machines}{places} and expires {printing.moment(row.expires_at)}. Anyone who has it can use it.")
    if made.install:
        printing.note(f"{where}, in a terminal: {made.install}")
        if row.role is Role.WORKER:
            printing.note(f"If it only shares Ollama or another server, also on macOS: {install_line.without_engine(made.install)}")
        printing.note(f"Or in a checkout of aimesh there: {COMMANDS[row.role]}")
    else:
        printing.note(f"{where}: {COMMANDS[row.role]}")
    if made.install_needs:
        printing.note(f"There is no line that installs aimesh there: {made.install_needs}")
    if row.role is Role.WORKER and not row.accept_models:
        printing.note("Administrators may not put models on it, unless its owner allows it: aicli admin nodes accept-models ID")
    if row.needs_approval:
        printing.note("Then run here: aicli admin nodes approve ID")
    for warning in made.warnings:
        printing.note(f"warning: {warning}")


@tickets.command("list")
@watching.listing_options("Print a JSON list.")
@click.pass_obj
def list_(here: CliContext, /, *, as_json: bool) -> None:
    """List tickets, newest first. The secret part is not shown again."""
    from shared.lists.tickets import TICKETS

    found = here.call(api.membership.list_tickets, api.membership.ListTickets())
    printing.show_list(found.tickets, TICKETS, as_json=as_json, create="Create one: aicli admin tickets create --role worker")


@tickets.command()
@click.argument("ticket", metavar="ID")
@click.option("--with-nodes", is_flag=True, help="Also revoke all machines that joined with it.")
@print_format.output_options("Print the revoked ticket as a JSON object.")
@click.pass_obj
def revoke(here: CliContext, /, ticket: str, *, with_nodes: bool, as_json: bool) -> None:
    """Revoke a ticket, by its ID or a unique prefix. Machines that already joined stay, unless you add --with-nodes."""
    revoked = here.call(api.membership.revoke_ticket, api.membership.RevokeTicket(_checked_id(ticket), with_nodes=with_nodes))
    stay = f". Machines that joined with it stay ({revoked.used}): aicli admin nodes list" if revoked.used else ""
    note = " and its machines" if with_nodes else stay
    printing.show_message(revoked, f"Revoked ticket {printing.printable(revoked.id)}{note}.", as_json=as_json)


def _checked_id(ticket: str) -> str:
    if ticket.startswith("aip_"):
        raise errors.BadRequest("this is the ticket itself, not its ID", hint="see aicli admin tickets list")
    return ticket
