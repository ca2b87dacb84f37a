"""`aicli usage` and `aicli quota`: your usage, its cost, and your remaining quota."""

from datetime import date
from typing import TYPE_CHECKING

import click
import msgspec

from cli.cli_context import CliContext
from cli.output import credit_amounts, printing, watching
from cli.output.printing import TableColumn
from shared import amounts, api, limits
from shared.amounts import written

if TYPE_CHECKING:
    from cli.connection import CliConnection
    from shared.api.gateway import LimitState, UserQuota
    from shared.api.usage_report import UserUsage

_SOURCES = {"default": "tier default", "key": "the key itself"}
_SCOPES = {"user": "account", "key": "this key", "model": "model"}


class UsageRow(msgspec.Struct, frozen=True):
    """The usage of one key on one day."""

    date: date
    #: None for usage with a login session.
    api_key_id: str | None
    #: None for a key that is no longer listed.
    api_key_name: str | None
    request_count: int
    tokens_used: int
    cost_micro: int

    @property
    def key(self) -> str:
        if self.api_key_id is None:
            return "(signed in without a key)"
        return self.api_key_name or f"{self.api_key_id[:8]}…"


@click.command()
@watching.listing_options("Print a JSON object: tier, account, key_budget, limits, days; amounts in micro-credits.")
@click.pass_obj
def usage(here: CliContext, /, *, as_json: bool) -> None:
    """Show your usage and cost by day and key, and your remaining quota."""
    used, left = here.run(_fetch)
    rows = _rows(used)
    if as_json:
        printing.show_json(
            {
                "tier": printing.plain(left.tier),
                "account": printing.plain(left.account),
                "key_budget": printing.plain(left.key_budget),
                "limits": printing.plain(left.limits),
                "request_count": used.request_count,
                "tokens_used": used.tokens_used,
                "cost_micro": used.cost_micro,
                "days": [printing.plain(row) for row in rows],
            },
            rows=("days",),
        )
        return
    _show_days(rows, used)
    # The quota comes last, so that it is right above the next prompt.
    click.echo(f"tier          {left.tier}")
    _show_left(left)


def _rows(used: "UserUsage") -> list[UsageRow]:
    return [
        UsageRow(
            date=day.date,
            api_key_id=None if day.api_key_id is None else str(day.api_key_id),
            api_key_name=day.api_key_name,
            request_count=day.request_count,
            tokens_used=day.tokens_used,
            cost_micro=day.cost_micro,
        )
        for day in used.days
    ]


def _show_days(rows: list[UsageRow], used: "UserUsage") -> None:
    columns: list[TableColumn[UsageRow]] = [
        TableColumn("DATE", lambda row: row.date.isoformat()),
        TableColumn("REQUESTS", lambda row: str(row.request_count), rank=2),
        TableColumn("TOKENS", lambda row: str(row.tokens_used), rank=3),
        TableColumn("CREDITS", lambda row: written(row.cost_micro)),
        TableColumn("KEY", lambda row: row.key, full=lambda row: row.api_key_name or row.api_key_id or row.key),
    ]
    printing.show_rows(rows, columns, as_json=False, empty="No usage yet.")
    if rows:
        counted = printing.counted
        requests, tokens = counted(used.request_count, "request"), counted(used.tokens_used, "token")
        click.echo(f"{requests}, {tokens}, {counted(written(used.cost_micro), 'credit')} in total\n")


def _show_left(left: "UserQuota") -> None:
    for notice in left.notices:
        printing.note(f"{notice.message}: {notice.hint}")
    if left.account is not None:
        for line in credit_amounts.account_lines(left.account):
            click.echo(line)
    if left.key_budget is not None:
        click.echo(credit_amounts.budget_line(left.key_budget))
    if not left.limits:
        return
    click.echo()
    columns: list[TableColumn[LimitState]] = [
        TableColumn("LIMIT", lambda state: limits.words(state.kind)),
        TableColumn("OF", lambda state: " ".join((_SCOPES.get(state.scope, state.scope), state.name)).rstrip()),
        TableColumn("USED", lambda state: f"{state.limit - state.remaining} of {state.limit}"),
        TableColumn("SET BY", lambda state: _SOURCES.get(state.source, state.source) or "–", rank=3),
        TableColumn(
            "RESETS IN", lambda state: amounts.show_duration(state.resets_in_seconds) if state.resets_in_seconds > 0 else "–", rank=2
        ),
    ]
    printing.show_rows(left.limits, columns, as_json=False, empty="")


async def _fetch(connection: "CliConnection") -> "tuple[UserUsage, UserQuota]":
    used = await connection.call(api.usage_report.get_user_usage, api.usage_report.GetUserUsage())
    return used, await connection.call(api.gateway.get_user_quota, api.gateway.GetUserQuota())


@click.command()
@watching.listing_options("Print a JSON object; amounts in micro-credits.")
@click.pass_obj
def quota(here: CliContext, /, *, as_json: bool) -> None:
    """Show your remaining quota: requests this hour, credits, and every limit with the setting it comes from."""
    left = here.call(api.gateway.get_user_quota, api.gateway.GetUserQuota())
    if as_json:
        printing.show_json(printing.plain(left), rows=("limits",))
        return
    if left.limit_per_hour < api.gateway.NO_LIMIT:
        click.echo(f"{left.remaining} of {printing.counted(left.limit_per_hour, 'request')} left this hour (tier {left.tier})")
    else:
        click.echo(f"no hourly request limit (tier {left.tier})")
    if left.used_this_hour:
        click.echo(f"more from {printing.moment(left.resets_at)}")
    _show_left(left)
