"""`aicli admin access-review`: keys, people and machines that nobody has used for long, and what to do about each."""

from typing import TYPE_CHECKING

import click

from cli.surroundings import Surroundings

if TYPE_CHECKING:
    from shared.api.privacy import StaleKey, StaleNode, StaleUser


@click.command("access-review")
@click.option("--days", type=click.IntRange(1, 3650), default=90, show_default=True, help="Days without use.")
@click.option("--json", "as_json", is_flag=True, help='Print {"keys": […], "users": […], "nodes": […]}.')
@click.pass_obj
def access_review(here: Surroundings, /, *, days: int, as_json: bool) -> None:
    """List stale access: keys, accounts and nodes that haven't been used for a long time.

    Remove what isn't needed: aicli keys revoke, aicli admin users disable, aicli admin nodes revoke.
    """
    from cli import output
    from cli.output import Column
    from shared.api import privacy

    found = here.ask(privacy.review_access, privacy.ReviewAccess(days))
    if as_json:
        output.show_json(output.plain(found))
        return
    keys: list[Column[StaleKey]] = [
        Column("KEY", lambda key: key.name),
        Column("OWNER", lambda key: key.owner),
        Column("KIND", lambda key: key.kind),
        Column("LAST USED", lambda key: "never" if key.last_used_at is None else f"{output.ago(key.last_used_at)} ago"),
        Column("WHY", lambda key: key.why),
        Column("ID", lambda key: key.id),
    ]
    users: list[Column[StaleUser]] = [
        Column("USER", lambda user: user.username),
        Column("ROLE", lambda user: user.role),
        Column("LAST SEEN", lambda user: "never" if user.last_seen_at is None else f"{output.ago(user.last_seen_at)} ago"),
        Column("WHY", lambda user: user.why),
    ]
    nodes: list[Column[StaleNode]] = [
        Column("NODE", lambda node: node.name or node.id[:12]),
        Column("ROLE", lambda node: node.role),
        Column("OWNER", lambda node: node.owner or "the mesh"),
        Column("LAST SEEN", lambda node: f"{output.ago(node.last_seen_at)} ago"),
        Column("WHY", lambda node: node.why),
    ]
    output.show_rows(found.keys, keys, as_json=False, empty="No stale keys.")
    output.show_rows(found.users, users, as_json=False, empty="No stale accounts.")
    output.show_rows(found.nodes, nodes, as_json=False, empty="No stale nodes.")
