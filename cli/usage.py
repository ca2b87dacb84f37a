"""`aicli usage` and `aicli quota`: what was used, and what is left."""

from datetime import date
from typing import TYPE_CHECKING

import click
import msgspec

from cli.surroundings import Surroundings

if TYPE_CHECKING:
    from cli.connection import Connection
    from shared.api.auth import ApiKeys
    from shared.api.usage import UserUsage


class Row(msgspec.Struct, frozen=True):
    """What one key was used for on one day."""

    date: date
    #: None for what was used with a login, without a key.
    api_key_id: str | None
    #: None for a key that is not listed any more.
    api_key_name: str | None
    request_count: int
    tokens_used: int

    @property
    def key(self) -> str:
        if self.api_key_id is None:
            return "(logged in, without a key)"
        return self.api_key_name or f"{self.api_key_id[:8]}…"


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects, one per day and key.")
@click.pass_obj
def usage(here: Surroundings, /, *, as_json: bool) -> None:
    """Show your requests and tokens by day and key."""
    from cli import output
    from cli.output import Column

    used, known = here.run(_ask)
    names = {key.id: key.name for key in known.keys}
    rows = [
        Row(
            date=day.date,
            api_key_id=None if day.api_key_id is None else str(day.api_key_id),
            api_key_name=None if day.api_key_id is None else names.get(day.api_key_id),
            request_count=day.request_count,
            tokens_used=day.tokens_used,
        )
        for day in used.days
    ]
    columns: list[Column[Row]] = [
        Column("DATE", lambda row: row.date.isoformat()),
        Column("REQUESTS", lambda row: str(row.request_count)),
        Column("TOKENS", lambda row: str(row.tokens_used)),
        Column("KEY", lambda row: row.key),
    ]
    output.show_rows(rows, columns, as_json=as_json, empty="Nothing used yet.")
    if not as_json and rows:
        output.note(f"{used.request_count} requests, {used.tokens_used} tokens in all")


async def _ask(connection: "Connection") -> "tuple[UserUsage, ApiKeys]":
    """What was used, and what the keys are called: usage knows their ids alone."""
    from shared.api import auth

    used = await connection.call(auth.get_user_usage, auth.GetUserUsage())
    return used, await connection.call(auth.list_api_keys, auth.ListApiKeys())


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
