"""`aicli worker pause|resume|status`: control a joined machine's worker.

These commands only use files in the state folder, so they work without the mesh, and a pause survives a restart.
"""

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from cli.cli_context import CliContext
from cli.output import print_format, printing
from shared import api, errors

if TYPE_CHECKING:
    from cli.machines.join import Folder

#: No worker writes a larger one.
_MAX_STATUS_BYTES = 256 * 1024
#: A worker that runs writes it every 5 seconds.
_MAX_STATUS_SECONDS = 30.0

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
    last = _last(folder) if running else None
    others = {name: _last(each) if running else None for name, each in folder.companions().items()}
    if as_json:
        shown = {name: None if each is None else printing.plain(each) for name, each in {"": last, **others}.items()}
        found = {"running": running, "paused": folder.paused.exists(), "status": shown.pop(""), "others": shown}
        printing.show_json(found)
    elif running:
        _show(last)
        for name, each in others.items():
            click.echo(f"{name}:")
            _show(each, "  ")
        printing.note(f"its folder is {folder.root}")
    else:
        click.echo("not running" + (", and paused" if folder.paused.exists() else "") + ". To start it: aicli worker")
    if not running:
        context.exit(1)


def _last(folder: "Folder") -> api.node.WorkerStatus | None:
    """Return None if the worker doesn't write its status now. Raises BadSettings."""
    try:
        found = api.node.decode_status(folder.status.read_bytes()[:_MAX_STATUS_BYTES])
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise errors.BadSettings(f"{folder.status} is not a worker status file", hint="delete it; the worker writes a new one") from error
    return found


def _show(last: api.node.WorkerStatus | None, indent: str = "") -> None:
    if last is None:
        click.echo(f"{indent}starting")
        return
    if (datetime.now(UTC) - last.told_at).total_seconds() > _MAX_STATUS_SECONDS:
        click.echo(f"{indent}no status for {printing.ago(last.told_at)}: it is starting again, or its log says why it ended")
        return
    for line in last.lines:
        click.echo(indent + printing.printable(line))
    printing.note(f"{indent}as of {printing.ago(last.told_at)} ago")


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
