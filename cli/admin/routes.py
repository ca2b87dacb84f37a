"""`aicli admin routes`: list and try routes."""

from typing import TYPE_CHECKING

import click

from cli import options, value_completion
from cli.account import policy
from cli.cli_context import CliContext
from cli.output import printing, watching
from shared import api, errors
from shared.types import Tier

if TYPE_CHECKING:
    from cli.connection import CliConnection
    from shared.api.configuration import RouteState, TriedRoute

_NAME = click.argument("name", shell_complete=value_completion.routes)


@click.group()
def routes() -> None:
    """List routes, and show where a request would go. Change them with `aicli admin config`."""


@routes.command("list")
@watching.listing_options("Print a JSON list.")
@click.pass_obj
def list_all(here: CliContext, /, *, as_json: bool) -> None:
    """List the routes with their targets."""
    from shared.lists.routes import ROUTES

    printing.show_list(_routes(here), ROUTES, as_json=as_json)


@routes.command()
@_NAME
@watching.listing_options("Print a JSON list of the targets.")
@click.pass_obj
def show(here: CliContext, /, *, name: str, as_json: bool) -> None:
    """Show the targets of one route."""
    from shared.lists.routes import TARGETS

    found = next((route for route in _routes(here) if route.name == name), None)
    if found is None:
        raise errors.NotFound(f"there is no route {name!r}", hint="see `aicli admin routes list`")
    printing.show_list(found.targets, TARGETS, as_json=as_json)
    if found.cache_seconds is not None:
        printing.note(f"Identical requests of an organization get the same answer for {found.cache_seconds} s.")


@routes.command("try")
@_NAME
@options.whole_number("--count", lambda: api.configuration.TryRoute, "count", default=1_000, help="Number of requests.")
@options.whole_number("--prompt-tokens", lambda: api.configuration.TryRoute, "prompt_tokens", default=100, help="Size of each prompt.")
@click.option("--tools", is_flag=True, help="Requests with tools.")
@click.option("--response-format", is_flag=True, help="Requests with a response format.")
@click.option("--tier", metavar="NAME", default=Tier.FREE.value, show_default=True, help="Tier of the caller.")
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
    from shared.lists import routes as lists

    async def work(connection: "CliConnection") -> "TriedRoute":
        of = None if organization is None else await policy.find_organization(connection, organization)
        request = api.configuration.TryRoute(name, count, prompt_tokens, tools, response_format, tier, key_name, of)
        return await connection.call(api.configuration.try_route, request)

    tried = here.run(work)
    if as_json:
        printing.show_json(printing.plain(tried), rows=("targets",))
        return
    printing.show_list(tried.targets, lists.list_tried(count), as_json=False)
    if note := lists.refused(tried, count):
        printing.note(note)


def _routes(here: CliContext) -> "tuple[RouteState, ...]":
    return here.call(api.configuration.list_routes, api.configuration.ListRoutes()).routes
