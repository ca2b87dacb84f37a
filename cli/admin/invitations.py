"""`aicli admin invite` and `aicli admin invitations`: invite people to the mesh itself."""

import click

from cli.cli_context import CliContext
from cli.output import print_format, printing, watching
from shared import api
from shared.types import UserRole


@click.command()
@click.argument("email")
@click.option(
    "--role", type=click.Choice([role.value for role in UserRole]), default="user", show_default=True, help="Role of the new account."
)
@click.option("--organization", metavar="NAME", default="", help="Organization that they join as a member, by name or ID.")
@print_format.output_options("Print the invitation and its code as a JSON object.")
@click.pass_obj
def invite(here: CliContext, /, email: str, *, role: str, organization: str, as_json: bool) -> None:
    """Invite a colleague to the mesh. Prints a link that works once, for this address, for 7 days.

    With a mail server (SMTP_URL) they also get it by email. It works while registration is closed, too.
    """
    made = here.call(api.organizations.invite_colleague, api.organizations.InviteColleague(email, UserRole(role), organization))
    if as_json:
        printing.show_json(printing.plain(made))
        return
    click.echo(made.link or made.token)
    invited = printing.printable(made.invitation.email)
    printing.note(f"Invited {invited} as {printing.printable(made.invitation.offer)}, until {printing.moment(made.invitation.expires_at)}.")
    what = "link" if made.link else "code, to enter on the page /join (set PUBLIC_URL to get a link)"
    printing.note(f"They get it by email. You can also send them this {what}." if made.is_mailed else f"Send them this {what}.")


@click.group()
def invitations() -> None:
    """List and revoke invitations to the mesh. To send one: aicli admin invite."""


@invitations.command("list")
@watching.listing_options("Print a JSON list.")
@click.pass_obj
def list_(here: CliContext, /, *, as_json: bool) -> None:
    """List the open invitations, newest first. Their links are not shown again."""
    from shared.lists.invitations import INVITATIONS

    found = here.call(api.organizations.list_colleague_invitations, api.organizations.ListColleagueInvitations())
    printing.show_list(found.invitations, INVITATIONS, as_json=as_json, create="Send one: aicli admin invite EMAIL")


@invitations.command()
@click.argument("invitation", metavar="ID")
@print_format.output_options("Print {} when done.")
@click.pass_obj
def revoke(here: CliContext, /, invitation: str, *, as_json: bool) -> None:
    """Revoke an open invitation, by its ID or a unique prefix of at least 4 characters. Its link stops working."""
    done = here.call(api.organizations.withdraw_colleague_invitation, api.organizations.WithdrawColleagueInvitation(invitation))
    printing.show_message(done, f"Revoked invitation {printing.printable(invitation)}.", as_json=as_json)
