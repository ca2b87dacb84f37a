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
_seconds = durations.between(timedelta(minutes=1), timedelta(days=7), "a ticket is good for 1 minute to 7 days")


@click.group()
def tickets() -> None:
    """Make, list and revoke the tickets that machines join with."""


@tickets.command()
@click.option("--role", type=click.Choice(list(COMMANDS)), required=True, help="What the machine will be.")
@click.option("--uses", type=click.IntRange(1, 10_000), default=1, show_default=True, help="How many machines it lets in.")
@click.option(
    "--ttl", metavar="TIME", callback=_seconds, default="1h", show_default=True, help="How long it is good for, such as 30m or 7d."
)
@click.option(
    "--label", "--labels", "labels", callback=labelling.read, metavar="KEY=VALUE,…", multiple=True, help="What its certificate will say."
)
@click.option("--approval", is_flag=True, help="Each machine waits until it is approved.")
@click.option("--owner", metavar="USER", help="Who answers for the machine: username, e-mail address or id. You, without it.")
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
    """Make a ticket and print it: now, and never again."""
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
    there = "On that machine" if row.uses == 1 else "On each of them"
    output.note(f"The ticket lets in {machines}, until {output.moment(row.expires_at)}; whoever has the line can use it.")
    output.note(f"{there}: {COMMANDS.get(row.role, 'join')} TICKET")
    if row.needs_approval:
        output.note("Then here: aicli admin nodes approve ID")
    for warning in made.warnings:
        output.note(f"warning: {warning}")


@tickets.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects.")
@click.pass_obj
def list_(here: Surroundings, /, *, as_json: bool) -> None:
    """List the tickets, the newest first. What lets a machine in is not shown again."""
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
    output.show_rows(found.tickets, columns, as_json=as_json, empty="No tickets yet: aicli admin tickets create --role worker")


@tickets.command()
@click.argument("ticket", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print the revoked ticket's row as an object.")
@click.pass_obj
def revoke(here: Surroundings, /, ticket: str, *, as_json: bool) -> None:
    """End a ticket, by its id or a beginning of it. Machines that came in with it stay."""
    from cli import output
    from shared import errors
    from shared.api import membership

    if ticket.startswith("aip_"):
        raise errors.BadRequest("that is a ticket itself; its id is a short one", hint="see aicli admin tickets list")
    gone = here.ask(membership.revoke_ticket, membership.RevokeTicket(ticket))
    if as_json:
        output.show_json(output.plain(gone))
    else:
        stay = f"; {gone.used} of its machines stay: aicli admin nodes list" if gone.used else ""
        click.echo(f"Revoked ticket {output.printable(gone.id)}{stay}.")
