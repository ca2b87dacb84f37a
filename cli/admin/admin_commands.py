"""`aicli admin`: commands for administrators. The services check the permission, not this command."""

from typing import TYPE_CHECKING

import click

from cli import lazy_group, options
from cli.account.billing import admin_billing, admin_invoices, admin_plans
from cli.admin.audit import audit
from cli.admin.config import config
from cli.admin.credits import budget, credits_, ledger
from cli.admin.deferred import deferred
from cli.admin.invitations import invitations, invite
from cli.admin.members import nodes
from cli.admin.prices import prices
from cli.admin.rollouts import rollouts
from cli.admin.routes import routes
from cli.admin.tickets import tickets
from cli.cli_context import CliContext
from cli.output import print_format, printing, watching
from cli.output.printing import TableColumn
from shared import api, features, plan_names
from shared.types import UserRole

if TYPE_CHECKING:
    from cli.connection import CliConnection
    from shared.api.accounts import StaleKey, StaleNode, StaleUser
    from shared.api.auth import User

#: The maximum of one answer of auth.
PAGE = 1000


async def newest(connection: "CliConnection", most: int, search: str = "") -> "tuple[User, ...]":
    """Return the newest accounts with ``search`` in their username, address or id."""
    users: tuple[User, ...] = ()
    while True:
        after = users[-1].id if users else None
        page = await connection.call(api.auth.list_users, api.auth.ListUsers(min(PAGE, most - len(users)), search, after))
        users += page.users
        if not page.more or len(users) >= most:
            return users


@click.group()
def admin() -> None:
    """Administer the installation (requires a key of kind adm). Node owners can use `nodes` and `tickets` for their own machines."""


for command in (
    invite,
    invitations,
    tickets,
    nodes,
    credits_,
    budget,
    prices,
    config,
    routes,
    rollouts,
    ledger,
    deferred,
    audit,
    admin_plans,
    admin_invoices,
    admin_billing,
):
    admin.add_command(command)
for of_feature in features.commands():
    if of_feature.section == admin.name:
        admin.add_command(lazy_group.load(of_feature.name, of_feature.place))


@admin.group()
def users() -> None:
    """Manage accounts: list them, change tier and role, disable and enable them."""


@users.command("list")
@click.option(
    "--search", metavar="TEXT", default="", help="Only accounts with this text in the username or email address, or with this ID."
)
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, help="Maximum number of rows.")
@watching.listing_options("Print a JSON list.")
@click.pass_obj
def list_(here: CliContext, /, *, search: str, limit: int, as_json: bool) -> None:
    """List accounts, newest first. Use -o wide to see their IDs."""
    from shared.lists.users import USERS

    found = here.run(lambda connection: newest(connection, limit, search))
    printing.show_list(found, USERS, as_json=as_json)


@users.command("set-tier")
@click.argument("user")
@click.argument("tier")
@print_format.output_options("Print the account as a JSON object.")
@click.pass_obj
def set_tier(here: CliContext, /, user: str, tier: str, *, as_json: bool) -> None:
    """Set the tier of USER (username, email address or ID).

    TIER is free, pro, enterprise, or another plan of `aicli admin config`, which defines what each includes.
    """
    _show(here.call(api.auth.set_tier, api.auth.SetTier(user, tier)), as_json=as_json)


@users.command("set-role")
@click.argument("user")
@click.argument("role", type=click.Choice([role.value for role in UserRole]))
@print_format.output_options("Print the account as a JSON object.")
@click.pass_obj
def set_role(here: CliContext, /, user: str, role: str, *, as_json: bool) -> None:
    """Set the role of USER (username, email address or ID).

    developer: load and unload models. node-owner: add their own machines. admin: everything.
    """
    _show(here.call(api.auth.set_role, api.auth.SetRole(user, UserRole(role))), as_json=as_json)


@users.command()
@click.argument("user")
@print_format.output_options("Print the account as a JSON object.")
@click.pass_obj
def disable(here: CliContext, /, user: str, *, as_json: bool) -> None:
    """Disable an account. Its keys and sessions stop working immediately."""
    _show(here.call(api.auth.set_active, api.auth.SetActive(user, is_active=False)), as_json=as_json)


@users.command()
@click.argument("user")
@print_format.output_options("Print the account as a JSON object.")
@click.pass_obj
def enable(here: CliContext, /, user: str, *, as_json: bool) -> None:
    """Enable a disabled account. Its keys work again."""
    _show(here.call(api.auth.set_active, api.auth.SetActive(user, is_active=True)), as_json=as_json)


@users.command("remove-mfa")
@click.argument("user")
@print_format.output_options("Print the account as a JSON object.")
@click.pass_obj
def remove_mfa(here: CliContext, /, user: str, *, as_json: bool) -> None:
    """Remove the second factor of USER, who lost it. Their sessions end, and they get an email.

    Verify the person's identity first: until they set up a new one, the password alone is enough to sign in.
    """
    _show(here.call(api.auth.remove_mfa, api.auth.RemoveMfa(user)), as_json=as_json)


def _show(user: "User", *, as_json: bool) -> None:
    from shared.lists.users import STATES

    state, _ = STATES[user.is_active]
    printing.show_message(
        user, f"{printing.printable(user.username)}: {user.role}, tier {plan_names.name_of(user.tier)}, {state.lower()}", as_json=as_json
    )


@admin.group("signing-keys")
def signing_keys() -> None:
    """Manage the keys that sign access tokens."""


@signing_keys.command()
@click.option("--at-once", is_flag=True, help="Revoke the current key now (it leaked). All access tokens become invalid.")
@print_format.output_options("Print the public keys as a JSON list.")
@click.pass_obj
def rotate(here: CliContext, /, *, at_once: bool, as_json: bool) -> None:
    """Publish a new signing key. It takes effect after 15 minutes, when every service knows it. Nobody is logged out."""
    found = here.call(api.auth.rotate_signing_keys, api.auth.RotateSigningKeys(at_once))
    if as_json:
        printing.show_json(printing.plain(found))
        return
    for key in found.keys:
        click.echo(key.kid)
    printing.note(
        "All access tokens are invalid now. Sessions get new ones automatically." if at_once else "The new key takes effect in 15 minutes."
    )


@admin.command("access-review")
@options.whole_number("--days", lambda: api.accounts.ReviewAccess, "days", default=90, help="Days without use.")
@watching.listing_options('Print {"keys": […], "users": […], "nodes": […]}.')
@click.pass_obj
def access_review(here: CliContext, /, *, days: int, as_json: bool) -> None:
    """List stale access: keys, accounts and nodes that haven't been used for a long time.

    Remove what isn't needed: aicli keys revoke, aicli admin users disable, aicli admin nodes revoke.
    """
    found = here.call(api.accounts.review_access, api.accounts.ReviewAccess(days))
    if as_json:
        printing.show_json(printing.plain(found), rows=("keys", "users", "nodes"))
        return
    keys: list[TableColumn[StaleKey]] = [
        TableColumn("KEY", lambda key: key.name),
        TableColumn("OWNER", lambda key: key.owner, rank=2),
        TableColumn("KIND", lambda key: key.kind, rank=4),
        TableColumn("LAST USED", lambda key: "never" if key.last_used_at is None else f"{printing.ago(key.last_used_at)} ago", rank=3),
        TableColumn("WHY", lambda key: key.why, wraps=True, below=True),
        TableColumn("ID", lambda key: key.id),
    ]
    users: list[TableColumn[StaleUser]] = [
        TableColumn("USER", lambda user: user.username),
        TableColumn("ROLE", lambda user: user.role, rank=3),
        TableColumn("LAST SEEN", lambda user: "never" if user.last_seen_at is None else f"{printing.ago(user.last_seen_at)} ago", rank=2),
        TableColumn("WHY", lambda user: user.why, wraps=True, below=True),
    ]
    nodes: list[TableColumn[StaleNode]] = [
        TableColumn("NODE", lambda node: node.name or node.id[:12], full=lambda node: node.id),
        TableColumn("ROLE", lambda node: node.role, rank=3),
        TableColumn("OWNER", lambda node: node.owner or "the mesh", rank=4),
        TableColumn("LAST SEEN", lambda node: f"{printing.ago(node.last_seen_at)} ago", rank=2),
        TableColumn("WHY", lambda node: node.why, wraps=True, below=True),
    ]
    printing.show_rows(found.keys, keys, as_json=False, empty="No stale keys.")
    printing.show_rows(found.users, users, as_json=False, empty="No stale accounts.")
    printing.show_rows(found.nodes, nodes, as_json=False, empty="No stale nodes.")
