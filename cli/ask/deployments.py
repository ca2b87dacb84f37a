"""`aicli models deploy`, `undeploy` and `copies`: which models the mesh puts on which machines."""

import time
from typing import TYPE_CHECKING, Any, Literal

import click

from cli import option_values, options, value_completion
from cli.cli_context import CliContext
from cli.output import printing, watching
from shared import api, errors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shared.api.deployments import Deployment
    from shared.api.models import ModelVersion

LOOK_SECONDS = 1.0
#: One after the other, before waiting is given up.
_STUCK_LOOKS = 5


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
@click.option("--organization", type=click.UUID, metavar="ID", help="Whose a pushed model is. Default: the mesh's.")
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
    def is_done() -> bool:
        found = _read(here, name)
        if not found:
            raise errors.NotFound(f"the deployment {name!r} was removed meanwhile")
        progress.show(found)
        return found[0].is_done

    progress = CopyProgress()
    while not is_done():
        time.sleep(LOOK_SECONDS)


def wait_for_version(here: CliContext, version: "ModelVersion", channel: str) -> "ModelVersion":
    """Wait until a channel serves the version. Raises AlreadyExists if somebody else changes the channel meanwhile."""
    progress = CopyProgress()
    while channel in version.next_of:
        progress.show(_read(here, None), version.name)
        time.sleep(LOOK_SECONDS)
        request = api.models.ListModelVersions(version.model, version.version)
        (version,) = here.call(api.models.list_model_versions, request).versions
    if channel not in version.channels:
        raise errors.AlreadyExists(f"{version.model}@{channel} was changed meanwhile", hint=f"see `aicli models versions {version.model}`")
    return version


class CopyProgress:
    def __init__(self) -> None:
        self._shown, self._stuck = "", 0

    def show(self, found: "Sequence[Deployment]", model: str | None = None) -> None:
        """Print where the copies are if that has changed. Raises Unavailable if too few machines can have one."""
        from shared.api.deployments import CopyState
        from shared.lists.deployments import describe

        found = [each for each in found if model is None or any(copy.model == model for copy in each.copies)]
        copies = [copy for each in found for copy in each.copies if model in {None, copy.model}]
        text = "; ".join(f"{copy.model} on {copy.node[:9]}…: {copy.reason or describe(copy)}" for copy in copies)
        text = text or next((each.problem for each in found if each.problem), "no machine matches its labels and ids")
        if text != self._shown:
            click.echo(printing.printable(text))
            self._shown = text
        short = max((each.short for each in found), default=0)
        waits = any(copy.state in {CopyState.COMING, CopyState.STORED} for copy in copies)
        self._stuck = self._stuck + 1 if short and not waits else 0
        if self._stuck == _STUCK_LOOKS:
            raise errors.Unavailable(f"{short} more machine{'s are' if short != 1 else ' is'} needed", hint="see `aicli models copies`")
