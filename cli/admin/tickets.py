"""`aicli admin tickets`: create, list and revoke join tickets."""

from datetime import timedelta
from typing import TYPE_CHECKING

import click

from cli.cli_context import CliContext
from cli.output import option_values, print_format, printing, watching
from cli.output.printing import TableColumn
from shared import api, errors

if TYPE_CHECKING:
    from shared.api.membership import NewTicket, TicketRow

#: Role -> the command that joins with it.
COMMANDS = {"worker": "aicli worker --join", "client": "aicli mesh connect"}
_seconds = option_values.duration_between(
    timedelta(minutes=1), timedelta(days=7), "a ticket's lifetime must be between 1 minute and 7 days"
)


@click.group()
def tickets() -> None:
    """Create, list and revoke join tickets."""


@tickets.command()
@click.option("--role", type=click.Choice(list(COMMANDS)), required=True, help="Role of the machine.")
@click.option("--uses", type=click.IntRange(1, 10_000), default=1, show_default=True, help="Number of machines that can join with it.")
@click.option("--ttl", metavar="TIME", callback=_seconds, default="1h", show_default=True, help="Lifetime, such as 30m or 7d.")
@click.option(
    "--label",
    "--labels",
    "labels",
    callback=option_values.read_labels,
    metavar="KEY=VALUE,…",
    multiple=True,
    help="Labels in the machine's certificate.",
)
@click.option("--approval", is_flag=True, help="Require approval for each machine.")
@click.option("--owner", metavar="USER", help="Owner of the machine: username, email address or ID. Default: you.")
@print_format.output_options('Print {"ticket": …, "warnings": …, "id": …, …}.')
@click.pass_obj
def create(
    here: CliContext, /, *, role: str, uses: int, ttl: int, labels: dict[str, str], approval: bool, owner: str | None, as_json: bool
) -> None:
    """Create a ticket and print it. It is shown only once."""
    from shared.types import Role

    request = api.membership.CreateTicket(
        Role(role), uses=uses, ttl_seconds=ttl, labels=labels, needs_approval=approval, owner=owner
    )  # fmt: skip
    made = here.call(api.membership.create_ticket, request)
    if as_json:
        row = printing.plain(made.row)
        assert isinstance(row, dict)
        printing.show_json({"ticket": made.ticket, "warnings": list(made.warnings), **row})
        return
    click.echo(made.ticket)
    _explain(made)


def _explain(made: "NewTicket") -> None:
    row = made.row
    machines = printing.counted(row.uses, "machine")
    where = "On that machine" if row.uses == 1 else "On each machine"
    printing.note(f"The ticket admits {machines} and expires {printing.moment(row.expires_at)}. Anyone who has it can use it.")
    printing.note(f"{where}: {COMMANDS.get(row.role, 'join')} TICKET")
    if row.needs_approval:
        printing.note("Then run here: aicli admin nodes approve ID")
    for warning in made.warnings:
        printing.note(f"warning: {warning}")


@tickets.command("list")
@watching.listing_options("Print a JSON list.")
@click.pass_obj
def list_(here: CliContext, /, *, as_json: bool) -> None:
    """List tickets, newest first. The secret part is not shown again."""
    found = here.call(api.membership.list_tickets, api.membership.ListTickets())
    columns: list[TableColumn[TicketRow]] = [
        TableColumn("TICKET", lambda row: row.id),
        TableColumn("ROLE", lambda row: row.role, rank=2),
        TableColumn("STATE", lambda row: row.state.replace("_", " "), lambda row: "green" if row.state == "good" else "dim"),
        TableColumn("USED", lambda row: f"{row.used}/{row.uses}", rank=4),
        TableColumn("EXPIRES", lambda row: printing.moment(row.expires_at), rank=3),
        TableColumn("OWNER", lambda row: row.owner, rank=5),
        TableColumn("LABELS", lambda row: printing.names(f"{key}={value}" for key, value in row.labels.items()), rank=6, wraps=True),
        TableColumn("APPROVAL", lambda row: "yes" if row.needs_approval else "no", rank=7),
    ]
    printing.show_rows(
        found.tickets, columns, as_json=as_json, empty="No tickets yet. Create one: aicli admin tickets create --role worker"
    )


@tickets.command()
@click.argument("ticket", metavar="ID")
@print_format.output_options("Print the revoked ticket as a JSON object.")
@click.pass_obj
def revoke(here: CliContext, /, ticket: str, *, as_json: bool) -> None:
    """Revoke a ticket, by its ID or a unique prefix. Machines that already joined stay."""
    if ticket.startswith("aip_"):
        raise errors.BadRequest("this is the ticket itself, not its ID", hint="see aicli admin tickets list")
    revoked = here.call(api.membership.revoke_ticket, api.membership.RevokeTicket(ticket))
    note = f". Machines that joined with it stay ({revoked.used}): aicli admin nodes list" if revoked.used else ""
    printing.show_message(revoked, f"Revoked ticket {printing.printable(revoked.id)}{note}.", as_json=as_json)
