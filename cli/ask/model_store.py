"""`aicli models pull|add|show|remove|prune`: change which models the worker on this machine has.

They run the worker's own program, which changes its store of models. A running worker notices within a second.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import msgspec

from cli.cli_context import CliContext
from cli.output import printing
from cli.output.printing import TableColumn
from shared import errors
from shared.api.inference import StoredModel, StoreRequest, StoreResult

_store = click.option(
    "--store", metavar="DIR", help="Folder of the store. Default: MODEL_STORE, or the folder of the worker on this machine."
)
_json = click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
_name = click.option("--name", metavar="NAME", help="Name of the model. Default: the file's name without .gguf.")


@click.command()
@click.argument("source", metavar="URL")
@_name
@click.option("--token-file", metavar="FILE", help="File with a token for the server.")
@click.option("--insecure", is_flag=True, help="Allow http:// to other machines.")
@_store
@_json
@click.pass_obj
def pull(
    here: CliContext, /, source: str, *, name: str | None, token_file: str | None, insecure: bool, store: str | None, as_json: bool
) -> None:
    """Download a GGUF file for the worker on this machine.

    Append #sha256=… to the URL to check the file. An interrupted download resumes when you run the same command again.
    """
    token = None if token_file is None else _absolute(here, token_file)
    _show_stored(_run(here, store, command="pull", target=source, name=name, insecure=insecure, token_file=token), as_json=as_json)


@click.command()
@click.argument("file")
@_name
@_store
@_json
@click.pass_obj
def add(here: CliContext, /, file: str, *, name: str | None, store: str | None, as_json: bool) -> None:
    """Copy a GGUF file into the store of the worker on this machine."""
    _show_stored(_run(here, store, command="add", target=_absolute(here, file), name=name), as_json=as_json)


@click.command()
@click.argument("model", default="")
@_store
@_json
@click.pass_obj
def show(here: CliContext, /, model: str, *, store: str | None, as_json: bool) -> None:
    """Show the models that were pulled or added on this machine, or one of them."""
    columns: list[TableColumn[StoredModel]] = [
        TableColumn("MODEL", lambda one: one.name),
        TableColumn("SIZE", lambda one: _size(one.size)),
        TableColumn("SHA-256", lambda one: one.digest if model else one.digest[:12]),
        TableColumn("SOURCE", lambda one: one.source),
    ]
    empty = "No models in the store. To download one: aicli models pull https://…/x.gguf"
    printing.show_rows(_run(here, store, command="show", target=model).models, columns, as_json=as_json, empty=empty)


@click.command()
@click.argument("model")
@_store
@click.pass_obj
def remove(here: CliContext, /, model: str, *, store: str | None) -> None:
    """Remove a pulled or added model. A running worker finishes its requests, then unloads it."""
    click.echo(f"Removed {model}: {_size(_run(here, store, command='remove', target=model).freed_bytes)} freed.")


@click.command()
@_store
@click.pass_obj
def prune(here: CliContext, /, *, store: str | None) -> None:
    """Delete interrupted downloads and files without a name from the store."""
    click.echo(f"{_size(_run(here, store, command='prune').freed_bytes)} freed.")


COMMANDS = (pull, add, show, remove, prune)


def _show_stored(done: StoreResult, *, as_json: bool) -> None:
    if as_json:
        printing.show_json([printing.plain(one) for one in done.models])
        return
    for one in done.models:
        what = "is up to date" if done.unchanged else f"is stored ({_size(one.size)}, sha256 {one.digest[:12]}…)"
        click.echo(printing.printable(f"{one.name} {what}. A running worker serves it within seconds: aicli infer --model {one.name} …"))


def find_store(here: CliContext, chosen: str | None) -> tuple[str, str]:
    """Return the folder and the quota of the store of this machine's worker. Raises BadSettings if there is none."""
    from cli.machines import join
    from stack import settings, stack_home

    environment = here.environment
    stack = stack_home.locate(environment)
    has_stack = stack.nats.is_dir()
    recorded = settings.read_recorded(stack) if has_stack else {}
    quota = environment.get("MODEL_STORE_QUOTA") or recorded.get("MODEL_STORE_QUOTA") or ""
    key, joined = environment.get("NODE_KEY_FILE"), join.locate(environment, None, here.folder).membership
    if named := chosen or environment.get("MODEL_STORE"):
        return _absolute(here, named), quota
    if key:
        return str(Path(environment.get("MESH_STATE_FILE") or key).with_name("models")), quota
    if has_stack:
        return recorded.get("MODEL_STORE") or str(stack.models), quota
    if joined.is_file():
        return str(joined.with_name("models")), quota
    raise errors.BadSettings("there is no worker on this machine", hint="start one with aicli worker, or name a folder with --store")


def _absolute(here: CliContext, path: str) -> str:
    return str((here.folder / Path(path).expanduser()).absolute())


def _run(here: CliContext, chosen: str | None, **request: Any) -> StoreResult:
    """Run the program, which shows its progress. Raises the error that it reports."""
    folder, quota = find_store(here, chosen)
    path = os.pathsep.join(filter(None, [str(Path(__file__).resolve().parents[2]), here.environment.get("PYTHONPATH", "")]))
    ran = subprocess.run(
        [sys.executable, "-m", "services.inference.models.store_program"],
        input=msgspec.json.encode(StoreRequest(folder=folder, quota=quota, **request)),
        stdout=subprocess.PIPE,
        env={**here.environment, "PYTHONPATH": path},
        check=False,
    )
    if ran.returncode:
        raise errors.Internal(f"the program that changes the store ended with status {ran.returncode}")
    result = msgspec.json.decode(ran.stdout, type=StoreResult)
    if result.problem is not None:
        raise errors.from_problem(result.problem)
    return result


def _size(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
