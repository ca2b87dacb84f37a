"""`aicli admin deferred`: items of background work that failed."""

import click

from cli.cli_context import CliContext
from cli.output import print_format, printing, watching
from shared import api
from shared.api.deferral import DeferredItems, ListDeferredItems, RetriedItems, RetryDeferredItems
from shared.api.method import Method

_LISTS: tuple[Method[ListDeferredItems, DeferredItems], ...] = (api.deferral.list_of_gateway, api.deferral.list_of_auth)
_RETRIES: tuple[Method[RetryDeferredItems, RetriedItems], ...] = (api.deferral.retry_at_gateway, api.deferral.retry_at_auth)


@click.group()
def deferred() -> None:
    """Show and retry payments, jobs and other items that failed in the background."""


@deferred.command("list")
@click.option("--kind", help="Only items of this kind.")
@watching.listing_options("Print a JSON list.")
@click.pass_obj
def list_(here: CliContext, /, *, kind: str | None, as_json: bool) -> None:
    """List what failed, what the error is, and when it is tried again."""
    from shared.lists.deferred import DEFERRED

    found = [item for method in _LISTS for item in here.call(method, ListDeferredItems(kind)).items]
    printing.show_list(tuple(found), DEFERRED, as_json=as_json)


@deferred.command()
@click.argument("kind", required=False)
@click.argument("item", metavar="ID", required=False)
@click.option("--all", "everything", is_flag=True, help="Retry everything that failed.")
@print_format.output_options("Print a JSON object.")
@click.pass_obj
def retry(here: CliContext, /, kind: str | None, item: str | None, *, everything: bool, as_json: bool) -> None:
    """Retry one item now, or all of a KIND. Fix the cause first: the service's log has it."""
    if everything is (kind is not None):
        raise click.UsageError("name a KIND, or use --all")
    count = sum(here.call(method, RetryDeferredItems(kind, item)).items for method in _RETRIES)
    text = f"retrying {printing.counted(count, 'item')}" if count else "nothing like that has failed: see `aicli admin deferred list`"
    printing.show_message(RetriedItems(count), text, as_json=as_json)
