"""`aicli update`: install the version that the mesh has, beside the version that runs. Nothing else updates aicli.

The mesh's own install.sh does it, as at the first time: it checks all hashes, and the link to the version moves at its end.
"""

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import click

from cli import installation, missing_packages
from cli.cli_context import CliContext
from cli.installation import Installation
from cli.machines import units
from cli.machines.units import UnitPlace
from cli.output import printing
from cli.profile import Profile
from shared import addresses, errors

_FETCH_SECONDS = 30.0
#: A worker has 150 MB of packages; a slow connection needs an hour.
_INSTALL_SECONDS = 3600.0
_MAX_SCRIPT_BYTES = 256 * 1024


@click.command()
@click.pass_obj
def update(here: CliContext, /) -> None:
    """Install the version of aimesh that your mesh has, and restart the services of this machine.

    Only for an aicli that a mesh installed. It never updates automatically. If anything fails, this version stays.
    """
    from cli import interrupts

    installed = installation.find(Path(sys.prefix))
    if installed is None:
        raise errors.BadSettings("a mesh did not install this aicli, so none can update it", hint=f"to update it: {_other_way()}")
    source = source_of(installed, here)
    before = installed.version()
    _run(interrupts.run(_fetch(source)), installed, here.environment)
    if installed.version() == before:
        click.echo("aicli is already up to date.")
        return
    click.echo("aicli is updated.")
    # Root's installation may also have those of the machine.
    scopes = (False, True) if os.geteuid() == 0 else (False,)
    restarted = [name for name in units.NAMES for is_system in scopes if UnitPlace(name, here.environment, is_system).restart()]
    for name in restarted:
        click.echo(f"{name} is restarted.")
    if not restarted:
        printing.note("If aicli worker or aicli serve runs in a terminal, start it again.")


def source_of(installed: Installation, here: CliContext) -> Profile:
    """Return the mesh that the packages came from, or that of the profile if a release brought them. Raises BadSettings."""
    from cli import profile

    if not installed.mesh:
        found = here.profile()
        if found.url is None:
            hint = "run the line of a newer release, or aicli login URL and then this again"
            raise errors.BadSettings("this aicli came from a release, and its profile has no URL to update from", hint=hint)
        source = profile.at_url(found.url, ca_file=found.ca_file, insecure=True)
    else:
        source = profile.at_url(installed.mesh, ca_file=installed.ca_file, insecure=True)
    if not str(source.url).startswith("https:") and urlsplit(source.url).hostname not in addresses.LOOPBACK:
        raise errors.BadSettings(
            f"{source.url} is not encrypted, so anyone on the way could update aicli", hint="give the mesh a certificate"
        )
    return source


def _other_way() -> str:
    checkout = Path(__file__).parents[2]
    if (checkout / ".git").exists():
        return f"cd {checkout} && git pull && make up"
    return f"run this in the folder of a newer release: {missing_packages.pip_command('client')}"


async def _fetch(source: Profile) -> bytes:
    """Return the mesh's install.sh. Raises what ``HttpsConnection.http`` raises."""
    from cli import https_connection
    from shared.api.gateway import HttpRequest

    script, status = bytearray(), 0
    try:
        async with (
            asyncio.timeout(_FETCH_SECONDS),
            https_connection.open_(source) as mesh,
            mesh.http(HttpRequest("GET", "/install.sh")) as parts,
        ):
            async for part in parts:
                status = status or part.status
                script += part.body
                if len(script) > _MAX_SCRIPT_BYTES:
                    break
    except TimeoutError as error:
        raise errors.DeadlineExceeded(
            f"{source.url} did not send its install.sh in {_FETCH_SECONDS:.0f} s", hint="try again later"
        ) from error
    if status != 200 or not script.startswith(b"#!/bin/sh\n") or len(script) > _MAX_SCRIPT_BYTES:
        hint = "is it the address of the mesh's pages? Try again later"
        raise errors.Unavailable(f"{source.url} has no install.sh: it answered {status}", hint=hint)
    return bytes(script)


def _run(script: bytes, installed: Installation, outside: Mapping[str, str]) -> None:
    """Raises Unavailable. The script has said why then."""
    shell = shutil.which("sh")
    if shell is None:
        raise errors.BadSettings("there is no shell to run install.sh", hint="install sh")
    environment = {
        # What it was installed with: Debian's python3 may be another one by now.
        "PYTHON": os.path.realpath(sys.executable),
        **outside,
        "XDG_DATA_HOME": str(installed.home.parent),
    }
    # With it, the script would join a mesh.
    environment.pop("AIMESH_TICKET", None)
    try:
        done = subprocess.run([shell, "-s"], input=script, env=environment, check=False, timeout=_INSTALL_SECONDS)  # noqa: S603
    except subprocess.TimeoutExpired as error:
        raise errors.DeadlineExceeded("the update took longer than an hour, so it was ended; this version stays") from error
    if done.returncode != 0:
        raise errors.Unavailable(
            "aicli is not updated: install.sh ended early and says why above; this version stays", hint="try again later"
        )
