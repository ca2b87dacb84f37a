"""`aicli usage` and `aicli quota`: what was used, and what is left."""

from typing import TYPE_CHECKING

import click

from cli.surroundings import Surroundings

if TYPE_CHECKING:
    from shared.api.usage import UsageDay


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects, one per day and key.")
@click.pass_obj
def usage(here: Surroundings, /, *, as_json: bool) -> None:
    """Show your requests and tokens by day and key."""
    from cli import output
    from cli.output import Column
    from shared.api import auth

    used = here.ask(auth.get_user_usage, auth.GetUserUsage())
    columns: list[Column[UsageDay]] = [
        Column("DATE", lambda row: row.date.isoformat()),
        Column("REQUESTS", lambda row: str(row.request_count)),
        Column("TOKENS", lambda row: str(row.tokens_used)),
        Column("KEY", lambda row: str(row.api_key_id)),
    ]
    output.show_rows(used.days, columns, as_json=as_json, empty="Nothing used yet.")
    if not as_json and used.days:
        output.note(f"{used.request_count} requests, {used.tokens_used} tokens in all")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print an object.")
@click.pass_obj
def quota(here: Surroundings, /, *, as_json: bool) -> None:
    """Show how many requests you have left in this hour."""
    from cli import output
    from shared.api import gateway

    left = here.ask(gateway.get_user_quota, gateway.GetUserQuota())
    if as_json:
        output.show_json(output.plain(left))
        return
    click.echo(f"{left.remaining} of {left.limit_per_hour} requests left in this hour (tier {left.tier})")
    if left.used_this_hour:
        click.echo(f"more from {output.moment(left.resets_at)}")
