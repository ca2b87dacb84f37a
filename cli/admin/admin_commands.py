"""`aicli admin`: commands for administrators. The services check the permission, not this command."""

from typing import TYPE_CHECKING

import click

from cli.admin.access_review import access_review
from cli.admin.audit import audit
from cli.admin.credits import credits_
from cli.admin.ledger import ledger
from cli.admin.members import nodes
from cli.admin.prices import prices
from cli.admin.signing_keys import signing_keys
from cli.admin.tickets import tickets
from cli.cli_context import CliContext
from cli.output import printing
from cli.output.printing import TableColumn

if TYPE_CHECKING:
    from cli.connection import CliConnection
    from shared.api.auth import User

#: The maximum of one answer of auth.
PAGE = 1000


async def newest(connection: "CliConnection", most: int, search: str = "") -> "tuple[User, ...]":
    """Return the newest accounts with ``search`` in their username, address or id."""
    from shared.api import auth

    users: tuple[User, ...] = ()
    while True:
        after = users[-1].id if users else None
        page = await connection.call(auth.list_users, auth.ListUsers(min(PAGE, most - len(users)), search, after))
        users += page.users
        if not page.more or len(users) >= most:
            return users


if TYPE_CHECKING:
    from shared.api.auth import User

#: A copy of shared.types.Tier, so that `--help` need not import it; a test compares the two.
TIERS = ("free", "pro", "enterprise")
#: A copy of shared.types.UserRole, likewise.
ROLES = ("admin", "developer", "user", "node-owner")


class _Tier(click.Choice[str]):
    """Accepts the old name of a tier."""

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value == "premium":
            self.fail("'premium' is now called 'pro'", param, ctx)
        return super().convert(value, param, ctx)


@click.group()
def admin() -> None:
    """Administer the installation (requires a key of kind adm). Node owners can use `nodes` and `tickets` for their own machines."""


admin.add_command(tickets)
admin.add_command(nodes)
admin.add_command(credits_, "credits")
admin.add_command(prices)
admin.add_command(ledger)
admin.add_command(access_review)
admin.add_command(audit)
admin.add_command(signing_keys)


@admin.group()
def users() -> None:
    """Manage accounts: list them, change tier and role, disable and enable them."""


@users.command("list")
@click.option(
    "--search", metavar="TEXT", default="", help="Only accounts with this text in the username or email address, or with this ID."
)
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, help="Maximum number of rows.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
@click.pass_obj
def list_(here: CliContext, /, *, search: str, limit: int, as_json: bool) -> None:
    """List accounts, newest first. Use --json to see their IDs."""

    found = here.run(lambda connection: newest(connection, limit, search))
    columns: list[TableColumn[User]] = [
        TableColumn("USERNAME", lambda user: user.username),
        TableColumn("EMAIL", lambda user: user.email),
        TableColumn("ROLE", lambda user: user.role),
        TableColumn("TIER", lambda user: user.tier),
        TableColumn("STATE", lambda user: "open" if user.is_active else "closed", lambda user: "green" if user.is_active else "red"),
        TableColumn("AGE", lambda user: printing.ago(user.created_at)),
    ]
    printing.show_rows(found, columns, as_json=as_json, empty="No matching users." if search else "No accounts yet.")


@users.command("set-tier")
@click.argument("user")
@click.argument("tier", type=_Tier(TIERS))
@click.option("--json", "as_json", is_flag=True, help="Print the account as a JSON object.")
@click.pass_obj
def set_tier(here: CliContext, /, user: str, tier: str, *, as_json: bool) -> None:
    """Set the tier of USER (username, email address or ID).

    The settings TIER_FREE, TIER_PRO and TIER_ENTERPRISE define what each tier includes.
    """
    from shared.api import auth
    from shared.types import Tier

    _show(here.call(auth.set_tier, auth.SetTier(user, Tier(tier))), as_json=as_json)


@users.command("set-role")
@click.argument("user")
@click.argument("role", type=click.Choice(ROLES))
@click.option("--json", "as_json", is_flag=True, help="Print the account as a JSON object.")
@click.pass_obj
def set_role(here: CliContext, /, user: str, role: str, *, as_json: bool) -> None:
    """Set the role of USER (username, email address or ID).

    developer: load and unload models. node-owner: add their own machines. admin: everything.
    """
    from shared.api import auth
    from shared.types import UserRole

    _show(here.call(auth.set_role, auth.SetRole(user, UserRole(role))), as_json=as_json)


@users.command()
@click.argument("user")
@click.option("--json", "as_json", is_flag=True, help="Print the account as a JSON object.")
@click.pass_obj
def disable(here: CliContext, /, user: str, *, as_json: bool) -> None:
    """Disable an account. Its keys and sessions stop working immediately."""
    from shared.api import auth

    _show(here.call(auth.set_active, auth.SetActive(user, is_active=False)), as_json=as_json)


@users.command()
@click.argument("user")
@click.option("--json", "as_json", is_flag=True, help="Print the account as a JSON object.")
@click.pass_obj
def enable(here: CliContext, /, user: str, *, as_json: bool) -> None:
    """Enable a disabled account. Its keys work again."""
    from shared.api import auth

    _show(here.call(auth.set_active, auth.SetActive(user, is_active=True)), as_json=as_json)


@users.command("remove-mfa")
@click.argument("user")
@click.option("--json", "as_json", is_flag=True, help="Print the account as a JSON object.")
@click.pass_obj
def remove_mfa(here: CliContext, /, user: str, *, as_json: bool) -> None:
    """Remove the second factor of USER, who lost it. Their sessions end, and they get an email.

    Verify the person's identity first: until they set up a new one, the password alone is enough to sign in.
    """
    from shared.api import auth

    _show(here.call(auth.remove_mfa, auth.RemoveMfa(user)), as_json=as_json)


def _show(user: "User", *, as_json: bool) -> None:
    if as_json:
        printing.show_json(printing.plain(user))
    else:
        state = "open" if user.is_active else "closed"
        click.echo(f"{printing.printable(user.username)}: {user.role}, tier {user.tier}, {state}")
