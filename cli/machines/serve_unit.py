"""`aicli serve install`: have your mesh at localhost after each login too, as a systemd service of your account."""

from importlib import import_module

import click

from cli import installation
from cli.cli_context import CliContext
from cli.machines import units
from cli.machines.units import Unit, UnitPlace
from cli.output.exit_codes import ExitCode
from shared import errors


@click.command()
@click.option("--remove", is_flag=True, help="Stop the service and remove its unit.")
@click.pass_obj
@click.pass_context
def install(context: click.Context, here: CliContext, /, *, remove: bool) -> None:
    """Run aicli serve as a systemd service of your account, with the profile that it uses now."""
    from cli import profile

    place = UnitPlace(units.NAMES[1], here.environment)
    if remove:
        place.remove()
        return
    # Says now if a package is missing, and not in the service's log.
    import_module("cli.machines.loopback")
    import_module("uvicorn")
    here.profile(key_needed=True)
    chosen = profile.find(here.environment, here.folder).path
    if chosen is None or "AICLI_API_KEY" in here.environment:
        raise errors.BadSettings("a service has no key of the environment", hint="save a profile first: aicli login URL")
    assert context.parent is not None
    port = context.parent.params["port"]
    command = (str(installation.program()), "--profile", str(chosen.absolute()), "serve", *(() if port is None else ("--port", str(port))))
    place.install(Unit("aimesh at localhost", command, f"{ExitCode.USAGE:d} {ExitCode.NOT_AUTHENTICATED:d} {ExitCode.REVOKED:d}"))
