"""`aicli admin`: what only an administrator may do. The services decide who is one, not this command."""

from typing import TYPE_CHECKING

import click

from cli.access_review import access_review
from cli.audit import audit
from cli.credits import credits_
from cli.ledger import ledger
from cli.members import nodes
from cli.prices import prices
from cli.signing_keys import signing_keys
from cli.surroundings import Surroundings
from cli.tickets import tickets

if TYPE_CHECKING:
    from shared.api.auth import User

#: shared.types.Tier, spelled out so that `--help` needs no import of it; a test holds the two together.
TIERS = ("free", "pro", "enterprise")
#: shared.types.UserRole likewise.
ROLES = ("admin", "developer", "user", "node-owner")


class _Tier(click.Choice[str]):
    """Knows the name that a tier had before."""

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value == "premium":
            self.fail("'premium' is called 'pro' now", param, ctx)
        return super().convert(value, param, ctx)


@click.group()
def admin() -> None:
    """Administer the installation: with a key of the kind adm. Node owners use `nodes` and `tickets` for their own machines."""


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
    """List accounts, change their tier and role, close and open them."""


@users.command("list")
@click.option("--search", metavar="TEXT", default="", help="Those with this in the name or the address, or with this id.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, help="At most so many.")
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects.")
@click.pass_obj
def list_(here: Surroundings, /, *, search: str, limit: int, as_json: bool) -> None:
    """List the accounts, the newest first. Their ids are in the output of --json."""
    from cli import output, people
    from cli.output import Column

    found = here.run(lambda connection: people.newest(connection, limit, search))
    columns: list[Column[User]] = [
        Column("USERNAME", lambda user: user.username),
        Column("EMAIL", lambda user: user.email),
        Column("ROLE", lambda user: user.role),
        Column("TIER", lambda user: user.tier),
        Column("STATE", lambda user: "open" if user.is_active else "closed", lambda user: "green" if user.is_active else "red"),
        Column("AGE", lambda user: output.ago(user.created_at)),
    ]
    output.show_rows(found, columns, as_json=as_json, empty="Nobody like that." if search else "No accounts yet.")


@users.command("set-tier")
@click.argument("user")
@click.argument("tier", type=_Tier(TIERS))
@click.option("--json", "as_json", is_flag=True, help="Print the account as an object.")
@click.pass_obj
def set_tier(here: Surroundings, /, user: str, tier: str, *, as_json: bool) -> None:
    """Put USER, a username, e-mail address or id, into a tier.

    What a tier includes and allows, the settings TIER_FREE, TIER_PRO and TIER_ENTERPRISE say.
    """
    from shared.api import auth
    from shared.types import Tier

    _show(here.ask(auth.set_tier, auth.SetTier(user, Tier(tier))), as_json=as_json)


@users.command("set-role")
@click.argument("user")
@click.argument("role", type=click.Choice(ROLES))
@click.option("--json", "as_json", is_flag=True, help="Print the account as an object.")
@click.pass_obj
def set_role(here: Surroundings, /, user: str, role: str, *, as_json: bool) -> None:
    """Say what USER, a username, e-mail address or id, may do.

    developer: load and unload models. node-owner: bring machines of their own. admin: everything.
    """
    from shared.api import auth
    from shared.types import UserRole

    _show(here.ask(auth.set_role, auth.SetRole(user, UserRole(role))), as_json=as_json)


@users.command()
@click.argument("user")
@click.option("--json", "as_json", is_flag=True, help="Print the account as an object.")
@click.pass_obj
def disable(here: Surroundings, /, user: str, *, as_json: bool) -> None:
    """Close an account: its keys and sessions stop at once."""
    from shared.api import auth

    _show(here.ask(auth.set_active, auth.SetActive(user, is_active=False)), as_json=as_json)


@users.command()
@click.argument("user")
@click.option("--json", "as_json", is_flag=True, help="Print the account as an object.")
@click.pass_obj
def enable(here: Surroundings, /, user: str, *, as_json: bool) -> None:
    """Open a closed account again; its keys work again."""
    from shared.api import auth

    _show(here.ask(auth.set_active, auth.SetActive(user, is_active=True)), as_json=as_json)


@users.command("remove-mfa")
@click.argument("user")
@click.option("--json", "as_json", is_flag=True, help="Print the account as an object.")
@click.pass_obj
def remove_mfa(here: Surroundings, /, user: str, *, as_json: bool) -> None:
    """Take the second factor of USER, who has lost it. Their sessions end; they are told by mail.

    Make sure that it is they who ask: with the password alone somebody else could log in from then on.
    """
    from shared.api import auth

    _show(here.ask(auth.remove_mfa, auth.RemoveMfa(user)), as_json=as_json)


def _show(user: "User", *, as_json: bool) -> None:
    from cli import output

    if as_json:
        output.show_json(output.plain(user))
    else:
        state = "open" if user.is_active else "closed"
        click.echo(f"{output.printable(user.username)}: {user.role}, tier {user.tier}, {state}")
