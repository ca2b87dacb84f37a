"""`aicli admin access-review`: list keys, accounts and nodes that have not been used for long."""

from typing import TYPE_CHECKING

import click

from cli.cli_context import CliContext
from cli.output import printing
from cli.output.printing import TableColumn

if TYPE_CHECKING:
    from shared.api.privacy import StaleKey, StaleNode, StaleUser


@click.command("access-review")
@click.option("--days", type=click.IntRange(1, 3650), default=90, show_default=True, help="Days without use.")
@click.option("--json", "as_json", is_flag=True, help='Print {"keys": […], "users": […], "nodes": […]}.')
@click.pass_obj
def access_review(here: CliContext, /, *, days: int, as_json: bool) -> None:
    """List stale access: keys, accounts and nodes that haven't been used for a long time.

    Remove what isn't needed: aicli keys revoke, aicli admin users disable, aicli admin nodes revoke.
    """
    from shared.api import privacy

    found = here.call(privacy.review_access, privacy.ReviewAccess(days))
    if as_json:
        printing.show_json(printing.plain(found))
        return
    keys: list[TableColumn[StaleKey]] = [
        TableColumn("KEY", lambda key: key.name),
        TableColumn("OWNER", lambda key: key.owner),
        TableColumn("KIND", lambda key: key.kind),
        TableColumn("LAST USED", lambda key: "never" if key.last_used_at is None else f"{printing.ago(key.last_used_at)} ago"),
        TableColumn("WHY", lambda key: key.why),
        TableColumn("ID", lambda key: key.id),
    ]
    users: list[TableColumn[StaleUser]] = [
        TableColumn("USER", lambda user: user.username),
        TableColumn("ROLE", lambda user: user.role),
        TableColumn("LAST SEEN", lambda user: "never" if user.last_seen_at is None else f"{printing.ago(user.last_seen_at)} ago"),
        TableColumn("WHY", lambda user: user.why),
    ]
    nodes: list[TableColumn[StaleNode]] = [
        TableColumn("NODE", lambda node: node.name or node.id[:12]),
        TableColumn("ROLE", lambda node: node.role),
        TableColumn("OWNER", lambda node: node.owner or "the mesh"),
        TableColumn("LAST SEEN", lambda node: f"{printing.ago(node.last_seen_at)} ago"),
        TableColumn("WHY", lambda node: node.why),
    ]
    printing.show_rows(found.keys, keys, as_json=False, empty="No stale keys.")
    printing.show_rows(found.users, users, as_json=False, empty="No stale accounts.")
    printing.show_rows(found.nodes, nodes, as_json=False, empty="No stale nodes.")
