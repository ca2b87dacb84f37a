"""`aicli admin routes`: list and try routes."""

from typing import TYPE_CHECKING

import click

from cli import options, value_completion
from cli.account import policy
from cli.cli_context import CliContext
from cli.output import printing, watching
from cli.output.printing import TableColumn
from shared import api, errors
from shared.amounts import written
from shared.types import Tier

if TYPE_CHECKING:
    from cli.connection import CliConnection
    from shared.api.configuration import RouteState, RouteTargetState, TriedRoute, TriedTarget

_TIERS = [tier.value for tier in Tier]
_NAME = click.argument("name", shell_complete=value_completion.routes)


@click.group()
def routes() -> None:
    """List routes, and show where a request would go. Change them with `aicli admin config`."""


@routes.command("list")
@watching.listing_options("Print a JSON list.")
@click.pass_obj
def list_all(here: CliContext, /, *, as_json: bool) -> None:
    """List the routes with their targets."""
    columns: list[TableColumn[RouteState]] = [
        TableColumn("ROUTE", lambda route: route.name),
        TableColumn("TARGETS", lambda route: ", ".join(map(_describe, route.targets)), wraps=True),
        TableColumn("STICKY", lambda route: route.sticky, rank=4),
        TableColumn("VERSION", lambda route: str(route.version), rank=3),
    ]
    printing.show_rows(_routes(here), columns, as_json=as_json, empty="There are no routes.")


@routes.command()
@_NAME
@watching.listing_options("Print a JSON list of the targets.")
@click.pass_obj
def show(here: CliContext, /, *, name: str, as_json: bool) -> None:
    """Show the targets of one route."""
    found = next((route for route in _routes(here) if route.name == name), None)
    if found is None:
        raise errors.NotFound(f"there is no route {name!r}", hint="see `aicli admin routes list`")
    columns: list[TableColumn[RouteTargetState]] = [
        TableColumn("TARGET", lambda target: target.name),
        TableColumn("MODEL", lambda target: target.model),
        TableColumn("SHARE", lambda target: _percent(target.share)),
        TableColumn("FALLBACK ORDER", lambda target: "–" if target.order is None else str(target.order), rank=2),
        TableColumn("WORKERS", lambda target: str(target.workers), rank=3),
        TableColumn("UPSTREAM TODAY", _spent, rank=4),
    ]
    printing.show_rows(found.targets, columns, as_json=as_json, empty="")
    if found.cache_seconds is not None:
        printing.note(f"Identical requests of an organization get the same answer for {found.cache_seconds} s.")


@routes.command("try")
@_NAME
@click.option(
    "--count",
    type=options.whole_number(lambda: api.configuration.TryRoute, "count"),
    default=1_000,
    show_default=True,
    help="Number of requests.",
)
@click.option("--prompt-tokens", type=click.IntRange(0), default=100, show_default=True, help="Size of each prompt.")
@click.option("--tools", is_flag=True, help="Requests with tools.")
@click.option("--response-format", is_flag=True, help="Requests with a response format.")
@click.option("--tier", type=click.Choice(_TIERS), default=Tier.FREE.value, show_default=True, help="Tier of the caller.")
@click.option("--key", "key_name", metavar="NAME", help="Name of the caller's key.")
@click.option("--organization", metavar="NAME_OR_ID", help="The caller's organization, whose policy applies.")
@watching.listing_options("Print the targets as JSON.")
@click.pass_obj
def try_route(
    here: CliContext,
    /,
    *,
    name: str,
    count: int,
    prompt_tokens: int,
    tools: bool,
    response_format: bool,
    tier: str,
    key_name: str | None,
    organization: str | None,
    as_json: bool,
) -> None:
    """Show which targets requests would use, and why others aren't used, without running anything."""

    async def work(connection: "CliConnection") -> "TriedRoute":
        of = None if organization is None else await policy.find_organization(connection, organization)
        request = api.configuration.TryRoute(name, count, prompt_tokens, tools, response_format, Tier(tier), key_name, of)
        return await connection.call(api.configuration.try_route, request)

    tried = here.run(work)
    if as_json:
        printing.show_json(printing.plain(tried), rows=("targets",))
        return
    columns: list[TableColumn[TriedTarget]] = [
        TableColumn("TARGET", lambda target: target.name),
        TableColumn("MODEL", lambda target: target.model, rank=2),
        TableColumn("TRIED FIRST", lambda target: _percent(100 * target.first / count)),
        TableColumn("FALLBACK", lambda target: "–" if target.fallback is None else str(target.fallback), rank=3),
        TableColumn("NOT USED BECAUSE", lambda target: target.reason.replace("_", " ") or "–", wraps=True),
    ]
    printing.show_rows(tried.targets, columns, as_json=False, empty="")
    if tried.refused:
        printing.note(f"{_percent(100 * tried.refused / count)} of the requests have no target and fail.")


def _routes(here: CliContext) -> "tuple[RouteState, ...]":
    return here.call(api.configuration.list_routes, api.configuration.ListRoutes()).routes


def _describe(target: "RouteTargetState") -> str:
    parts = [target.model]
    if target.share is not None:
        parts.append(_percent(target.share))
    if target.order is not None:
        parts.append(f"fallback {target.order}")
    if not target.workers:
        parts.append("not served")
    return f"{target.name} ({', '.join(parts)})"


def _spent(target: "RouteTargetState") -> str:
    if target.ceiling_micro is None:
        return written(target.spent_micro) if target.spent_micro else "–"
    return f"{written(target.spent_micro)} of {written(target.ceiling_micro)}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:g} %"
