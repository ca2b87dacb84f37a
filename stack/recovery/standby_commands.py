"""The commands `aicli stack standby` and `aicli stack promote`."""

import asyncio
import contextlib
import os
import signal
from pathlib import Path

import click

from cli.output import print_format, printing
from stack.recovery.restore_commands import STORE_HELP, show_progress

_DONE_IN_PART = 3


def _say(text: str) -> None:
    click.echo(text, err=True)


@click.command()
@click.option("--from", "address", metavar="URL", required=True, help=STORE_HELP)
@click.option("--identity", required=True, type=click.Path(path_type=Path), help="The file that `aicli stack backup keygen` wrote.")
@click.option("--replace", is_flag=True, help="Move the present home aside first. It is not deleted.")
def standby(address: str, identity: Path, replace: bool) -> None:
    """Keep a copy of another site's database, ready for `aicli stack promote`.

    Runs until it is stopped: use your service manager. It opens no port and starts no service. SITE_NAME and other settings of this site
    come from the environment.
    """
    from stack import stack_home
    from stack.recovery.restoring import restore
    from stack.recovery.takeover import standby as standbys

    home = stack_home.locate(os.environ)
    address = restore.find_store(home, address, os.environ)
    shown = standbys.StandbyOutput(show_progress, _say)

    async def follow() -> None:
        me = asyncio.current_task()
        assert me is not None
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, me.cancel)
        await standbys.run(home, address, identity, replaces=replace, environment=os.environ, shown=shown)

    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(follow())


@click.command()
@click.option("--old-site-is-off", is_flag=True, help="Don't wait for the other site: you have made sure that it doesn't run.")
@print_format.output_options("Print a JSON object.")
@click.pass_context
def promote(context: click.Context, /, *, old_site_is_off: bool, as_json: bool) -> None:
    """Make this standby the site that owns the mesh, and start its services.

    If it is interrupted, run the same command again. Exits with 2 if it refuses, and with 3 if only PROMOTE_COMMAND failed.
    """
    from stack import stack_home
    from stack.recovery.takeover import promotion

    def show(step: promotion.PromoteStep) -> None:
        _say(f"{step.seconds:6.1f} s  {step.what}")

    home = stack_home.locate(os.environ)
    report = asyncio.run(promotion.promote(home, os.environ, Path.cwd(), old_site_is_off=old_site_is_off, show=show))
    if as_json:
        printing.show_json(printing.plain(report))
    else:
        click.echo(f"{report.site} owns the mesh in term {report.term}: {report.url}")
        if report.reached_at is not None:
            click.echo(f"  database      as of {report.reached_at:%Y-%m-%d %H:%M:%S} UTC")
        click.echo(f"  recovery log  {printing.counted(report.log_lines_replayed, 'line')} applied")
        if report.lost_rows:
            click.echo(f"  audit log     {printing.counted(report.lost_rows, 'row')} lost")
        if report.log_lines_unusable:
            click.echo(f"  not applied   {printing.counted(report.log_lines_unusable, 'line')} of the recovery log, behind a gap")
        if report.command_error:
            click.echo(f"  left to do    PROMOTE_COMMAND {report.command_error}; point your address here, or run this command again")
    if report.command_error or report.log_lines_unusable:
        context.exit(_DONE_IN_PART)


COMMANDS = (standby, promote)
