"""`aicli models`: list, load and unload models; `model_store` has the commands for this machine's worker, `model_servers` for servers."""

from typing import TYPE_CHECKING

import click

from cli import lazy_group, value_completion
from cli.ask import deployments, model_images, model_search, model_servers, model_store, model_trust, model_versions
from cli.cli_context import CliContext
from cli.output import print_format, printing, watching
from cli.output.printing import TableColumn
from shared import api, features
from shared.types import LoadPurpose, ModelName, NodeId

if TYPE_CHECKING:
    from shared.api.gateway import ModelPlaces, ServedModel

#: Enough for a large model on a slow disk; the worker continues loading after it.
_LOAD_SECONDS = 900.0
_STATES = {"ready": "is loaded", "loading": "is loading", "unloaded": "is unloaded", "failed": "failed"}


@click.group(invoke_without_command=True, subcommand_metavar="[COMMAND [ARGS]...]")
@watching.listing_options("Print a JSON list.")
@click.pass_context
@click.pass_obj
def models(here: CliContext, context: click.Context, /, *, as_json: bool) -> None:
    """List models available now, load and unload them, and download models for the worker on this machine."""
    if context.invoked_subcommand is None:
        _list(here, as_json=as_json)


for module in (model_search, model_store, deployments, model_servers, model_versions, model_images, model_trust):
    for command in module.COMMANDS:
        models.add_command(command)
for of_feature in features.commands():
    if of_feature.section == models.name:
        models.add_command(lazy_group.load(of_feature.name, of_feature.place))


@models.command("list")
@watching.listing_options("Print a JSON list.")
@click.pass_obj
def list_(here: CliContext, /, *, as_json: bool) -> None:
    """List the models available now, default first."""
    _list(here, as_json=as_json)


@models.command()
@click.argument("model", shell_complete=value_completion.models)
@click.option(
    "--worker",
    metavar="ID",
    shell_complete=value_completion.workers,
    help="Worker ID or unique prefix. Default: the least busy worker that has the model.",
)
@click.option(
    "--pin/--unpin", "pin", default=None, help="Keep the model in memory even when other models need the space, or stop doing so."
)
@click.option(
    "--for",
    "purpose",
    type=click.Choice([purpose.value for purpose in LoadPurpose]),
    help="agents: one slot with the context that coding agents need before a second one. chats: several shorter slots. Stays until the"
    " worker restarts. Without --worker, on all workers that have the model.",
)
@print_format.output_options("Print a JSON list with one object per worker.")
@click.pass_obj
def load(here: CliContext, /, model: str, *, worker: str | None, pin: bool | None, purpose: str | None, as_json: bool) -> None:
    """Load a model in advance, so that the first caller doesn't wait. Admins only."""
    chosen = None if purpose is None else LoadPurpose(purpose)
    request = api.gateway.LoadOnWorker(ModelName(model), None if worker is None else NodeId(worker), pin, chosen)
    _show(here.run(lambda connection: connection.call(api.gateway.load_model, request, deadline_seconds=_LOAD_SECONDS)), as_json=as_json)


@models.command()
@click.argument("model", shell_complete=value_completion.models)
@click.option(
    "--worker",
    metavar="ID",
    shell_complete=value_completion.workers,
    help="Worker ID or unique prefix. Default: all workers that have the model.",
)
@print_format.output_options("Print a JSON list with one object per worker.")
@click.pass_obj
def unload(here: CliContext, /, model: str, *, worker: str | None, as_json: bool) -> None:
    """Unload a model to free memory, even if it is pinned. The next request loads it again. Admins only.

    Fails on workers that are using the model.
    """
    request = api.gateway.UnloadOnWorkers(ModelName(model), None if worker is None else NodeId(worker))
    _show(here.call(api.gateway.unload_model, request), as_json=as_json)


def _list(here: CliContext, *, as_json: bool) -> None:
    served = here.call(api.gateway.list_models, api.gateway.ListModels(), key_needed=False)
    none = f"No models available: {served.why_none}" if served.why_none else "No models available. Start a worker: aicli worker"
    columns: list[TableColumn[ServedModel]] = [
        TableColumn("MODEL", lambda model: model.name),
        TableColumn("WORKERS", lambda model: str(model.workers), rank=2),
        TableColumn("CONTEXT", lambda model: f"{model.context_tokens} tokens" if model.context_tokens else "–", rank=3),
        TableColumn("SERVES", lambda model: "embeddings" if model.only_embeds else "answers", rank=4),
        TableColumn("ALIASES", lambda model: printing.names(model.aliases), rank=5, wraps=True),
    ]
    optional: list[TableColumn[ServedModel]] = [
        TableColumn("ABILITIES", lambda model: printing.names(model.abilities), rank=4, wraps=True),
        TableColumn("AGENTS", _agents, rank=5, wraps=True),
        TableColumn("ADAPTER OF", lambda model: model.parent or "–", rank=4),
        TableColumn("UPSTREAM MODEL", lambda model: printing.names(model.upstream_models), rank=5, wraps=True),
        TableColumn("PROVIDERS", lambda model: printing.names(model.providers), rank=6),
        TableColumn("REGIONS", lambda model: printing.names(model.regions), rank=7),
    ]
    columns += [column for column in optional if any(column.cell(model) != "–" for model in served.models)]
    printing.show_rows(served.models, columns, as_json=as_json, empty=none)
    if served.warning and not as_json:
        printing.note(served.warning)


def _agents(model: "ServedModel") -> str:
    return ", ".join(filter(None, ("yes" * model.suits_agents, model.agents_hint))) or "–"


def _show(answer: "ModelPlaces", *, as_json: bool) -> None:
    if as_json:
        printing.show_json([printing.plain(place) for place in answer.places])
    else:
        for place in answer.places:
            done = _STATES.get(place.state, place.state or "was not changed")
            pinned = ", pinned" if place.pinned else ""
            context = f", {place.context_tokens} tokens of context" if place.context_tokens and place.state == "ready" else ""
            why = f": {place.detail}" if place.detail else ""
            click.echo(printing.printable(f"{place.model} {done} on {place.worker[:9]}…{context}{pinned}{why}"))
    if not all(place.state for place in answer.places):
        click.get_current_context().exit(1)
