"""`aicli worker pause|resume|status`: what the owner of a joined machine says to its worker, and hears from it.

Through files in the state folder: they work while the mesh is away, and a pause outlives a restart.
"""

from typing import TYPE_CHECKING

import click

from cli.surroundings import Surroundings

if TYPE_CHECKING:
    from cli.join import Folder

#: Larger is none that a worker wrote.
_MAX_STATUS_BYTES = 256 * 1024

_state = click.option("--state", metavar="DIR", help="The worker's folder. Default: $XDG_STATE_HOME/aimesh/worker.")


@click.command()
@_state
@click.pass_context
def pause(context: click.Context, /, *, state: str | None) -> None:
    """Let this machine's worker take no new requests; running answers finish."""
    from cli import join

    folder = _joined(context, state)
    folder.paused.touch(mode=0o600)
    if join.is_running(folder):
        click.echo("Paused: running answers finish, no new ones come. aicli worker resume ends it.")
    else:
        click.echo("Paused; the worker does not run now, and will wait for aicli worker resume when it is started.")


@click.command()
@_state
@click.pass_context
def resume(context: click.Context, /, *, state: str | None) -> None:
    """Let this machine's worker take requests again."""
    folder = _joined(context, state)
    if not folder.paused.exists():
        click.echo("It was not paused.")
        return
    folder.paused.unlink(missing_ok=True)
    click.echo("Resumed.")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print an object.")
@_state
@click.pass_context
def status(context: click.Context, /, *, state: str | None, as_json: bool) -> None:
    """Show what this machine's worker does.

    Exits with 0 if it runs, otherwise with 1.
    """
    from cli import join, output
    from shared import errors
    from shared.api import worker_status

    folder = _joined(context, state)
    running = join.is_running(folder)
    told = None
    if running and folder.status.is_file():
        try:
            told = worker_status.decode(folder.status.read_bytes()[:_MAX_STATUS_BYTES])
        except ValueError as error:
            raise errors.BadSettings(f"{folder.status} is not a worker's status", hint="delete it; the worker writes it anew") from error
    if as_json:
        output.show_json({"running": running, "paused": folder.paused.exists(), "status": None if told is None else output.plain(told)})
    elif told is not None:
        for line in told.lines:
            click.echo(output.printable(line))
        output.note(f"as of {output.ago(told.told_at)} ago; its folder is {folder.root}")
    elif running:
        click.echo("starting")
    else:
        click.echo("not running" + (", and paused" if folder.paused.exists() else "") + ": aicli worker starts it")
    if not running:
        context.exit(1)


def _joined(context: click.Context, state: str | None) -> "Folder":
    """The folder that was named here or before the subcommand; raises BadSettings if nothing has joined with it."""
    from cli import join
    from shared import errors

    here = context.find_object(Surroundings)
    assert here is not None
    before = context.parent.params.get("state") if context.parent else None
    folder = join.locate(here.environment, state or before, here.folder)
    if not folder.key.is_file():
        raise errors.BadSettings(f"no worker has joined with {folder.root}", hint="--state DIR names another folder")
    return folder
