"""`aicli admin tickets`: lines that let a machine into the mesh."""

from datetime import timedelta
from typing import TYPE_CHECKING

import click

from cli import durations, labelling
from cli.surroundings import Surroundings

if TYPE_CHECKING:
    from shared.api.membership import NewTicket, TicketRow

#: What a machine can join as with a command of ours, and that command.
COMMANDS = {"worker": "aicli worker --join", "client": "aicli mesh connect"}
_seconds = durations.between(timedelta(minutes=1), timedelta(days=7), "a ticket's lifetime must be between 1 minute and 7 days")


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
    callback=labelling.read,
    metavar="KEY=VALUE,…",
    multiple=True,
    help="Labels in the machine's certificate.",
)
@click.option("--approval", is_flag=True, help="Require approval for each machine.")
@click.option("--owner", metavar="USER", help="Owner of the machine: username, email address or ID. Default: you.")
@click.option("--json", "as_json", is_flag=True, help='Print {"ticket": …, "warnings": …, "id": …, …}.')
@click.pass_obj
def create(
    here: Surroundings,
    /,
    *,
    role: str,
    uses: int,
    ttl: int,
    labels: dict[str, str],
    approval: bool,
    owner: str | None,
    as_json: bool,
) -> None:
    """Create a ticket and print it. It is shown only once."""
    from cli import output
    from shared.api import membership
    from shared.types import Role

    request = membership.CreateTicket(
        Role(role), uses=uses, ttl_seconds=ttl, labels=labels, needs_approval=approval, owner=owner
    )  # fmt: skip
    made = here.ask(membership.create_ticket, request)
    if as_json:
        row = output.plain(made.row)
        assert isinstance(row, dict)
        output.show_json({"ticket": made.ticket, "warnings": list(made.warnings), **row})
        return
    click.echo(made.ticket)
    _explain(made)


def _explain(made: "NewTicket") -> None:
    from cli import output

    row = made.row
    machines = output.counted(row.uses, "machine")
    there = "On that machine" if row.uses == 1 else "On each machine"
    output.note(f"The ticket admits {machines} and expires {output.moment(row.expires_at)}. Anyone who has it can use it.")
    output.note(f"{there}: {COMMANDS.get(row.role, 'join')} TICKET")
    if row.needs_approval:
        output.note("Then run here: aicli admin nodes approve ID")
    for warning in made.warnings:
        output.note(f"warning: {warning}")


@tickets.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
@click.pass_obj
def list_(here: Surroundings, /, *, as_json: bool) -> None:
    """List tickets, newest first. The secret part is not shown again."""
    from cli import output
    from cli.output import Column
    from shared.api import membership

    found = here.ask(membership.list_tickets, membership.ListTickets())
    columns: list[Column[TicketRow]] = [
        Column("TICKET", lambda row: row.id),
        Column("ROLE", lambda row: row.role),
        Column("STATE", lambda row: row.state.replace("_", " "), lambda row: "green" if row.state == "good" else "dim"),
        Column("USED", lambda row: f"{row.used}/{row.uses}"),
        Column("EXPIRES", lambda row: output.moment(row.expires_at)),
        Column("OWNER", lambda row: row.owner),
        Column("LABELS", lambda row: output.names(f"{key}={value}" for key, value in row.labels.items())),
        Column("APPROVAL", lambda row: "yes" if row.needs_approval else "no"),
    ]
    output.show_rows(found.tickets, columns, as_json=as_json, empty="No tickets yet. Create one: aicli admin tickets create --role worker")


@tickets.command()
@click.argument("ticket", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print the revoked ticket as a JSON object.")
@click.pass_obj
def revoke(here: Surroundings, /, ticket: str, *, as_json: bool) -> None:
    """Revoke a ticket, by its ID or a unique prefix. Machines that already joined stay."""
    from cli import output
    from shared import errors
    from shared.api import membership

    if ticket.startswith("aip_"):
        raise errors.BadRequest("this is the ticket itself, not its ID", hint="see aicli admin tickets list")
    gone = here.ask(membership.revoke_ticket, membership.RevokeTicket(ticket))
    if as_json:
        output.show_json(output.plain(gone))
    else:
        stay = f". {gone.used} of its machines stay: aicli admin nodes list" if gone.used else ""
        click.echo(f"Revoked ticket {output.printable(gone.id)}{stay}.")
