"""`aicli models search` and `aicli models catalog`: find models, and the machines on which they fit."""

import click

from cli.cli_context import CliContext
from cli.output import print_format, printing
from shared import api

#: The hub and the workers have deadlines of their own.
_SECONDS = 20.0
#: For all models of the catalog.
_REFRESH_SECONDS = 120.0


@click.command()
@click.argument("words", metavar="[TEXT]...", nargs=-1)
@click.option("--offline", is_flag=True, help="Search the catalog and the mesh only, not the Hugging Face hub.")
@print_format.output_options("Print a JSON list with every machine and the reason.")
@click.pass_obj
def search(here: CliContext, /, words: tuple[str, ...], *, offline: bool, as_json: bool) -> None:
    """Find models by name or use (chat, code, images, embeddings, rerank, tools), and the machines on which they fit.

    Sizes are estimates until `aicli models catalog refresh`. `-o wide` says for each machine how a model fits, or why not.
    """
    from shared.lists import model_search as lists

    request = api.model_search.SearchModels(" ".join(words), fits=True, hub=not offline)
    found = here.run(lambda connection: connection.call(api.model_search.search_models, request, deadline_seconds=_SECONDS))
    printing.show_list(found.models, lists.FOUND, as_json=as_json, create="To see the whole catalog: aicli models search")
    for line in found.notes:
        printing.note(line)


@click.group()
def catalog() -> None:
    """Check what the catalog says about models."""


@catalog.command()
@click.pass_obj
def refresh(here: CliContext, /) -> None:
    """Ask the hub for the size, SHA-256 and context of the catalog's models, and save them in the configuration. Admins only.

    Needs a network at the gateway.
    """
    method, request = api.model_search.refresh_catalog, api.model_search.RefreshCatalog()
    done = here.run(lambda connection: connection.call(method, request, deadline_seconds=_REFRESH_SECONDS))
    click.echo(printing.printable(f"Changed: {printing.names(done.changed)}"))
    for problem in done.problems:
        printing.note(f"Not checked: {problem}")


COMMANDS = (search, catalog)
