"""`aicli models deploy`, `undeploy` and `copies`: which models the mesh puts on which machines."""

import time
from typing import TYPE_CHECKING, Any, Literal

import click

from cli import option_values, options, value_completion
from cli.cli_context import CliContext
from cli.output import printing, watching
from shared import api, errors

if TYPE_CHECKING:
    from shared.api.deployments import Deployment

_LOOK_SECONDS = 1.0


def _read_copies(context: click.Context, parameter: click.Parameter, text: str) -> int | Literal["all"]:
    if text == "all":
        return "all"
    return int(options.WholeNumber(_document, "copies")(text, parameter, context))


def _document() -> type:
    from shared.config_documents import DeploymentDocument

    return DeploymentDocument


@click.command()
@click.argument("name")
@click.argument("source", required=False)
@click.option("--copies", callback=_read_copies, default="1", show_default=True, metavar="COUNT", help="Number of machines, or all.")
@click.option(
    "--label", "labels", callback=option_values.read_labels, metavar="KEY=VALUE,…", multiple=True, help="Only machines with these labels."
)
@click.option(
    "--node", "nodes", metavar="ID", multiple=True, shell_complete=value_completion.workers, help="Only this machine. Can be repeated."
)
@click.option("--preload", is_flag=True, help="Load it at once, not on the first request.")
@options.whole_number("--context", _document, "context", help="Tokens of a request. Default: as each machine decides.")
@options.whole_number("--slots", _document, "slots", help="Requests at a time. Default: as each machine decides.")
@click.option("--wait", is_flag=True, help="Wait until every copy is there; Ctrl-C stops only the waiting.")
@click.pass_obj
def deploy(here: CliContext, /, name: str, source: str | None, *, wait: bool, **wanted: Any) -> None:
    """Put a model on machines, and keep it there. Admins only.

    SOURCE is what `aicli models pull` takes, such as hf:Qwen/Qwen3-8B-GGUF. Pushed models need none, nor do names of `aicli models search`.
    Repeat the command to change a deployment.
    """
    from shared.config_documents import DeploymentDocument

    document = DeploymentDocument(source=source or "", **wanted)
    here.call(api.deployments.deploy_model, api.deployments.DeployModel(name, document))
    if wait:
        _wait(here, name)
    else:
        machines = "all machines" if document.copies == "all" else f"{document.copies} machine{'s' * (document.copies != 1)}"
        printing.note(f"{name} will be on {machines}. See: aicli models copies {name}")


@click.command()
@click.argument("name")
@click.pass_obj
def undeploy(here: CliContext, /, name: str) -> None:
    """Take a model off the machines that the mesh put it on. Admins only."""
    here.call(api.deployments.undeploy_model, api.deployments.UndeployModel(name))
    printing.note(f"{name} will be removed from the machines that the mesh put it on")


@click.command()
@click.argument("name", required=False)
@watching.listing_options("Print a JSON list.")
@click.pass_obj
def copies(here: CliContext, /, name: str | None, *, as_json: bool) -> None:
    """List the deployed models, and where their copies are."""
    from shared.lists import deployments as lists

    printing.show_list(tuple(lists.rows(_read(here, name))), lists.COPIES, as_json=as_json)


COMMANDS = (deploy, undeploy, copies)


def _read(here: CliContext, name: str | None) -> "tuple[Deployment, ...]":
    from shared.types import ModelName

    request = api.deployments.ListDeployments(None if name is None else ModelName(name))
    return here.call(api.deployments.list_deployments, request).deployments


def _wait(here: CliContext, name: str) -> None:
    from shared.api.deployments import CopyState
    from shared.lists.deployments import describe

    shown = ""
    while True:
        found = _read(here, name)
        if not found:
            raise errors.NotFound(f"the deployment {name!r} was removed meanwhile")
        (each,) = found
        states = [f"{copy.model} on {copy.node[:9]}…: {copy.reason or describe(copy)}" for copy in each.copies]
        if (text := "; ".join(states) or each.problem or "no machine matches its labels and ids") != shown:
            click.echo(printing.printable(text))
            shown = text
        if each.is_done:
            return
        if each.short and not any(copy.state is CopyState.COMING for copy in each.copies):
            raise errors.Unavailable(f"{name} needs {each.short} more machine{'s' * (each.short != 1)}", hint="see `aicli models copies`")
        time.sleep(_LOOK_SECONDS)
