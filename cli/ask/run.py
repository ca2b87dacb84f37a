"""`aicli run`: chat with a model, which is pulled on the machine where it fits best if nobody serves it."""

import asyncio
import sys
from typing import TYPE_CHECKING

import click

from cli.ask import chat, infer, model_store
from cli.cli_context import CliContext
from cli.output import printing
from shared import api, errors
from shared.lists import model_search as lists
from shared.lists import nodes
from shared.types import ModelName

if TYPE_CHECKING:
    from cli.connection import CliConnection
    from shared.api.model_search import FoundModel, MachineFit

#: A worker serves a model within 3 s of its last byte.
_SERVED_LOOKS, _LOOK_SECONDS = 60, 0.5
_PLAN_SECONDS = 20.0


@click.command()
@click.argument("name")
@click.argument("words", metavar="[PROMPT]...", nargs=-1)
@click.pass_context
@click.pass_obj
def run(here: CliContext, context: click.Context, /, name: str, *, words: tuple[str, ...]) -> None:
    """Chat with a model; with a PROMPT, print one answer.

    NAME is a served model, a name or alias of `aicli models search`, hf:OWNER/REPO:QUANT or ollama:NAME:TAG. A model that nobody serves is
    pulled on the machine where it fits best first, which only admins may do.
    """
    answers_once = bool(words) or infer.is_piped(sys.stdin)
    if not answers_once and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise click.UsageError("aicli run needs a terminal, or a prompt: aicli run NAME PROMPT")
    infer.refuse_bad_text(name)
    model = here.run(lambda connection: _ensure_served(connection, name))
    if answers_once:
        context.invoke(infer.infer, words=words, model=model)
    else:
        context.invoke(chat.chat, model=model)


async def _ensure_served(connection: "CliConnection", name: str) -> str:
    """Return the name under which the mesh serves the model, after a pull if it doesn't yet."""
    if name in await _served(connection):
        return name
    found = await connection.call(api.model_search.plan_model, api.model_search.PlanModel(name), deadline_seconds=_PLAN_SECONDS)
    if found.is_served:
        return found.name
    place, source = _choose(found), found.name if found.model is None else found.model.source
    how = f": {place.detail}" if place.detail else ""
    click.echo(
        printing.printable(f"Pulling {found.name} ({lists.size_of(found) or 'unknown size'}) on {nodes.short(place.worker)}…{how}"),
        err=True,
    )
    # Models of the catalog keep their names.
    request = api.gateway.PullOnWorkers(source, place.worker, name=ModelName(found.name) if found.origin == "catalog" else None)
    (done,) = (await model_store.follow_pull(connection, request)).places
    assert done.pulled is not None, "the error of a single worker is raised"
    for _ in range(_SERVED_LOOKS):
        if done.pulled.model in await _served(connection):
            return done.pulled.model
        await asyncio.sleep(_LOOK_SECONDS)
    raise errors.Unavailable(f"{done.pulled.model} is pulled, but not served yet", hint="see `aicli nodes` for the reason")


async def _served(connection: "CliConnection") -> set[str]:
    served = await connection.call(api.gateway.list_models, api.gateway.ListModels())
    return {name for model in served.models for name in (model.name, *model.aliases)}


def _choose(found: "FoundModel") -> "MachineFit":
    """Return the machine where the model fits best. Raises NotAllowed, and TooLarge with the reason of each machine."""
    # Without a size, only the download shows whether it fits.
    fitting = found.fits if found.model is None else lists.fitting(found)
    for fit in fitting:
        if fit.accepts_models:
            return fit
    for fit in fitting:
        worker = nodes.short(fit.worker)
        raise errors.NotAllowed(
            f"{found.name} fits on {worker}…, but its owner doesn't accept models of the mesh",
            hint=f"ask its owner (see `aicli admin nodes`) for: aicli admin nodes accept-models {worker}",
        )
    if not found.fits:
        raise errors.NotFound(f"there is no worker to run {found.name}", hint="start one: aicli worker")
    raise errors.TooLarge(f"{found.name} fits on no machine: {'; '.join(lists.explain(found))}", hint="see `aicli models search`")
