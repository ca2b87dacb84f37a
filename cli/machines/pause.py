"""`aicli worker pause|resume|status`: control a joined machine's worker.

These commands only use files in the state folder, so they work without the mesh, and a pause survives a restart.
"""

from typing import TYPE_CHECKING

import click

from cli.cli_context import CliContext
from cli.output import print_format, printing
from shared import api, errors

if TYPE_CHECKING:
    from cli.machines.join import Folder

#: No worker writes a larger one.
_MAX_STATUS_BYTES = 256 * 1024

_state = click.option("--state", metavar="DIR", help="State folder of the worker. Default: $XDG_STATE_HOME/aimesh/worker.")


@click.command()
@_state
@click.pass_context
def pause(context: click.Context, /, *, state: str | None) -> None:
    """Pause this machine's worker: it gets no new requests, running ones finish."""
    from cli.machines import join

    folder = _joined(context, state)
    folder.paused.touch(mode=0o600)
    if join.is_running(folder):
        click.echo("Paused. Running requests finish; no new ones start. To resume: aicli worker resume")
    else:
        click.echo("Paused. The worker isn't running; when started, it waits for aicli worker resume.")


@click.command()
@_state
@click.pass_context
def resume(context: click.Context, /, *, state: str | None) -> None:
    """Resume this machine's worker."""
    folder = _joined(context, state)
    if not folder.paused.exists():
        click.echo("The worker isn't paused.")
        return
    folder.paused.unlink(missing_ok=True)
    click.echo("Resumed.")


@click.command()
@print_format.output_options("Print a JSON object.")
@_state
@click.pass_context
def status(context: click.Context, /, *, state: str | None, as_json: bool) -> None:
    """Show the status of this machine's worker.

    Exits with 0 if the worker is running, otherwise with 1.
    """
    from cli.machines import join

    folder = _joined(context, state)
    running = join.is_running(folder)
    last = None
    if running and folder.status.is_file():
        try:
            last = api.node.decode_status(folder.status.read_bytes()[:_MAX_STATUS_BYTES])
        except ValueError as error:
            raise errors.BadSettings(
                f"{folder.status} is not a worker status file", hint="delete it; the worker writes a new one"
            ) from error
    if as_json:
        printing.show_json({"running": running, "paused": folder.paused.exists(), "status": None if last is None else printing.plain(last)})
    elif last is not None:
        for line in last.lines:
            click.echo(printing.printable(line))
        printing.note(f"as of {printing.ago(last.told_at)} ago; its folder is {folder.root}")
    elif running:
        click.echo("starting")
    else:
        click.echo("not running" + (", and paused" if folder.paused.exists() else "") + ". To start it: aicli worker")
    if not running:
        context.exit(1)


def _joined(context: click.Context, state: str | None) -> "Folder":
    """Return the folder of the option, here or before the subcommand. Raises BadSettings if no worker has joined with it."""
    from cli.machines import join

    here = context.find_object(CliContext)
    assert here is not None
    before = context.parent.params.get("state") if context.parent else None
    folder = join.locate(here.environment, state or before, here.folder)
    if not folder.key.is_file():
        raise errors.BadSettings(f"no worker has joined a mesh using {folder.root}", hint="use --state DIR for another folder")
    return folder
