"""`aicli models search` and `aicli models catalog`: find models, and the machines on which they fit."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from cli.cli_context import CliContext
from cli.output import print_format, printing
from cli.output.printing import TableColumn
from shared import api
from shared.lists import nodes

if TYPE_CHECKING:
    from shared.api.model_search import FoundModel, MachineFit

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
    request = api.model_search.SearchModels(" ".join(words), fits=True, hub=not offline)
    found = here.run(lambda connection: connection.call(api.model_search.search_models, request, deadline_seconds=_SECONDS))
    columns: list[TableColumn[FoundModel]] = [
        TableColumn("MODEL", lambda row: row.name),
        TableColumn("SIZE", size_of, rank=2),
        TableColumn("QUANTIZATION", lambda row: row.model.quantizations[0] if row.model else "–", rank=5),
        TableColumn("LICENSE", lambda row: (row.model and row.model.license) or "–", rank=6),
        TableColumn("TOOLS", lambda row: "yes" if row.model and row.model.tools else "–", rank=4),
        TableColumn("FITS ON", lambda row: "served" if row.is_served else _machines(row), rank=2),
        TableColumn("ROOM AT 12/24/48 GB", lambda row: "/".join(map(str, row.room)) or "–", only_wide=True),
        TableColumn("MACHINES", lambda row: "; ".join(explain(row)) or "–", only_wide=True, wraps=True),
    ]
    printing.show_rows(found.models, columns, as_json=as_json, empty="No models found. To see the whole catalog: aicli models search")
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


def size_of(row: "FoundModel") -> str:
    """Return the size of a download, which is an estimate as long as nobody has asked the hub."""
    unchecked = ", not checked" if row.model is not None and row.model.size is None else ""
    return f"{row.size / 10**9:.1f} GB{unchecked}" if row.size else "–"


def explain(row: "FoundModel") -> Iterator[str]:
    """Say for each machine how the model fits, or why not."""
    for fit in row.fits:
        owner = "" if fit.accepts_models else ", but its owner doesn't accept models"
        yield f"{nodes.short(fit.worker)}…: {fit.fit}{owner}{f' ({fit.detail})' if fit.detail else ''}"


def fitting(row: "FoundModel") -> "list[MachineFit]":
    """Return the machines that could load the model, the best first, and last those whose owners accept none."""
    return [fit for fit in row.fits if fit.fit in ("yes", "partly")]


def _machines(row: "FoundModel") -> str:
    return printing.names(
        f"{nodes.short(fit.worker)}{'' if fit.fit == 'yes' else ' (partly)'}" for fit in fitting(row) if fit.accepts_models
    )
