"""`aicli models pull|add|show|remove|prune`: change which models the worker on this machine has.

They run the worker's own program, which changes its store of models. A running worker notices within a second.
"""

from typing import TYPE_CHECKING, Any

import click

from cli import option_values
from cli.cli_context import CliContext
from cli.output import print_format, printing, watching
from cli.output.printing import TableColumn
from cli.output.progress_line import ProgressLine
from shared import amounts, api, errors
from shared.api.inference import StoredModel, StoreResult
from shared.types import ModelName, NodeId

if TYPE_CHECKING:
    from cli.connection import CliConnection
    from shared.api.gateway import PulledPlaces, PullOnWorkers

#: The longest deadline of a call.
_PULL_SECONDS = 24 * 3600.0
_store = click.option(
    "--store", metavar="DIR", help="Folder of the store. Default: MODEL_STORE, or the folder of the worker on this machine."
)
_json = print_format.output_options("Print a JSON list.")
_name = click.option("--name", metavar="NAME", help="Name of the model. Default: the file's name without .gguf.")
_projector = click.option(
    "--projector", metavar="SOURCE", default="", help="File for images. Default: the one beside the model; `none` leaves it out."
)


@click.command()
@click.argument("source")
@_name
@_projector
@click.option("--node", metavar="ID", help="Pull on this worker instead: its ID or unique prefix. Admins only.")
@click.option(
    "--label",
    "labels",
    callback=option_values.read_labels,
    metavar="KEY=VALUE,…",
    multiple=True,
    help="Pull on all workers with these labels. Admins only.",
)
@click.option("--token-file", metavar="FILE", help="File with a token, or user:password, for the server.")
@click.option("--insecure", is_flag=True, help="Allow http:// to other machines.")
@_store
@_json
@click.pass_obj
def pull(
    here: CliContext,
    /,
    source: str,
    *,
    name: str | None,
    projector: str,
    node: str | None,
    labels: dict[str, str],
    token_file: str | None,
    insecure: bool,
    store: str | None,
    as_json: bool,
) -> None:
    """Download a GGUF model for the worker on this machine, or for other workers.

    SOURCE is https://HOST/FILE.gguf (append #sha256=… to check the file), hf:OWNER/REPO:QUANT, ollama:NAME:TAG or
    oci://REGISTRY/NAME:TAG. An interrupted download resumes when you run the same command again.
    """
    if node or labels:
        if token_file or store or projector:
            text = "--token-file, --store and --projector are for this machine only"
            raise errors.BadRequest(text, hint="other workers use their own settings")
        _pull_elsewhere(here, source, node, labels, name=name, insecure=insecure, as_json=as_json)
        return
    token = None if token_file is None else str(here.path(token_file))
    wanted = {"target": source, "projector": projector, "name": name, "insecure": insecure, "token_file": token}
    _show_stored(_run(here, store, command="pull", **wanted), as_json=as_json)


def _pull_elsewhere(
    here: CliContext, source: str, node: str | None, labels: dict[str, str], *, name: str | None, insecure: bool, as_json: bool
) -> None:
    """Pull on other workers, and show their progress. Exits with 1 if one of them failed."""
    request = api.gateway.PullOnWorkers(
        source,
        NodeId(node) if node else None,
        labels,
        None if name is None else ModelName(name),
        insecure,
    )
    places = here.run(lambda connection: follow_pull(connection, request)).places
    if as_json:
        printing.show_json([printing.plain(place) for place in places])
    for place in places if not as_json else ():
        pulled = place.pulled
        what = f"failed: {place.detail}" if pulled is None else _done(pulled.model, pulled.size, pulled.digest, is_old=pulled.unchanged)
        click.echo(printing.printable(f"{place.worker[:9]}… {what}"))
    if not all(place.pulled for place in places):
        click.get_current_context().exit(1)


async def follow_pull(connection: "CliConnection", request: "PullOnWorkers") -> "PulledPlaces":
    """Pull on workers, and show their progress."""
    show = ProgressLine()
    async with connection.stream(api.gateway.pull_model, request, deadline_seconds=_PULL_SECONDS) as answer:
        async for update in answer:
            show(update.progress, f"{update.worker[:9]}… ")
        show.close()
        return answer.end


def _done(model: str, size: int, digest: str, *, is_old: bool) -> str:
    return f"{model} is up to date." if is_old else f"{model} is stored ({amounts.show_bytes(size)}, sha256 {digest[:12]}…)."


@click.command()
@click.argument("file")
@_name
@_projector
@_store
@_json
@click.pass_obj
def add(here: CliContext, /, file: str, *, name: str | None, projector: str, store: str | None, as_json: bool) -> None:
    """Copy a GGUF file into the store of the worker on this machine."""
    seen = projector if projector in ("", "none") else str(here.path(projector))
    _show_stored(_run(here, store, command="add", target=str(here.path(file)), name=name, projector=seen), as_json=as_json)


@click.command()
@click.argument("model", default="")
@_store
@watching.listing_options("Print a JSON list.")
@click.pass_obj
def show(here: CliContext, /, model: str, *, store: str | None, as_json: bool) -> None:
    """Show the models that were pulled or added on this machine, or one of them."""
    columns: list[TableColumn[StoredModel]] = [
        TableColumn("MODEL", lambda one: one.name),
        TableColumn("SIZE", lambda one: amounts.show_bytes(one.size), rank=2),
        TableColumn("SHA-256", lambda one: one.digest if model else one.digest[:12], rank=3, full=lambda one: one.digest),
        TableColumn("SOURCE", lambda one: one.source, rank=2, wraps=True),
    ]
    empty = "No models in the store. To download one: aicli models pull https://…/x.gguf"
    printing.show_rows(_run(here, store, command="show", target=model).models, columns, as_json=as_json, empty=empty)


@click.command()
@click.argument("model")
@click.option("--node", metavar="ID", help="Remove from this worker instead: its ID or unique prefix. For its owner and admins.")
@_store
@click.pass_obj
def remove(here: CliContext, /, model: str, *, node: str | None, store: str | None) -> None:
    """Remove a pulled or added model. A running worker finishes its requests, then unloads it.

    What the mesh put on a machine doesn't come back after that, until its owner runs `aicli admin nodes accept-models`.
    """
    if node is not None:
        here.call(api.gateway.remove_model, api.gateway.RemoveFromWorker(NodeId(node), ModelName(model)))
        printing.note(f"{model} will be removed. The mesh won't put it there again.")
        return
    click.echo(f"Removed {model}: {amounts.show_bytes(_run(here, store, command='remove', target=model).freed_bytes)} freed.")


@click.command()
@_store
@click.pass_obj
def prune(here: CliContext, /, *, store: str | None) -> None:
    """Delete interrupted downloads and files without a name from the store."""
    click.echo(f"{amounts.show_bytes(_run(here, store, command='prune').freed_bytes)} freed.")


COMMANDS = (pull, add, show, remove, prune)


def _show_stored(done: StoreResult, *, as_json: bool) -> None:
    if as_json:
        printing.show_json([printing.plain(one) for one in done.models])
        return
    for one in done.models:
        what = _done(one.name, one.size, one.digest, is_old=done.unchanged)
        click.echo(printing.printable(f"{what} A running worker serves it within seconds: aicli infer --model {one.name} …"))


def _run(here: CliContext, chosen: str | None, **request: Any) -> StoreResult:
    """Show the progress of the program, too. Raises the error that it reports, and BadSettings where no worker is installed."""
    from cli.ask import local_store

    show = ProgressLine()
    try:
        return local_store.run(here, chosen, show, **request)
    finally:
        show.close()
