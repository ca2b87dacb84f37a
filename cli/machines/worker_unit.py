"""`aicli worker install`: run this machine's worker as a systemd service, or remove it.

Settings such as OPENAI_API_KEY_FILE go to a file that a worker of the machine can't write.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import click

from cli import installation
from cli.cli_context import CliContext
from cli.machines import units
from cli.machines.units import Unit, UnitPlace
from cli.output import printing
from cli.output.exit_codes import ExitCode
from cli.user_folders import SYSTEM_WORKER
from shared import errors

NAME = units.NAMES[0]
_HOMES = tuple(map(Path, ("/home", "/root", "/run/user")))
_PROXY = frozenset({"HTTPS_PROXY", "NO_PROXY"})
_GPU_DEVICES = ("/dev/dri", "/dev/kfd", "/dev/nvidia0")

#: No access to the rest of the machine. (MemoryDenyWriteExecute would stop Node.js.)
_ISOLATED = f"""\
StateDirectory={SYSTEM_WORKER.name}
StateDirectoryMode=0700
DynamicUser=yes
CapabilityBoundingSet=
PrivateTmp=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHome=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
ProtectSystem=strict
RestrictNamespaces=yes
"""


def unit_of(command: tuple[str, ...], settings: str, *, is_system: bool, gpu_groups: tuple[str, ...] | None = None) -> Unit:
    """Return the unit. A revoked worker and wrong settings are not restarted: that would not help.

    ``gpu_groups`` are the groups of this machine that may use its GPU; None without a GPU."""
    more = f"EnvironmentFile=-{units.escaped(settings)}\n"
    if is_system:
        more += f"{_ISOLATED}PrivateDevices={'yes' if gpu_groups is None else 'no'}\n"
        more += f"SupplementaryGroups={' '.join(gpu_groups)}\n" if gpu_groups else ""
    return Unit("aimesh worker", command, f"{ExitCode.USAGE:d} {ExitCode.REVOKED:d}", is_system, more)


@click.command()
@click.option("--system/--user", "is_system", default=None, help="Service of the machine, or of your account. Default: --system for root.")
@click.option("--models", "models_folder", metavar="DIR", help="Serve every .gguf file in this folder.")
@click.option("--backend", metavar="NAME", help="Backend that runs the models, as for aicli worker.")
@click.option("--state", metavar="DIR", help=f"State folder of the joined worker. Default: {SYSTEM_WORKER} for a service of the machine.")
@click.option("--remove", is_flag=True, help="Stop the service and remove its unit. The worker's key and models stay.")
@click.pass_obj
def install(
    here: CliContext, /, *, is_system: bool | None, models_folder: str | None, backend: str | None, state: str | None, remove: bool
) -> None:
    """Run this machine's worker as a systemd service, now and after each start. Join first: aicli worker --join TICKET --no-serve

    Put settings such as OLLAMA_URL into the file that this command names, one NAME=VALUE per line.
    """
    as_system = os.geteuid() == 0 if is_system is None else is_system
    place = UnitPlace(NAME, here.environment, as_system)
    if remove:
        place.remove()
        return
    options = [] if models_folder is None else ["--models", str(here.path(models_folder))]
    options += [] if backend is None else ["--backend", backend]
    command = _command(here, state, options, is_system=as_system)
    settings = str(units.SYSTEM_SETTINGS if as_system else units.config_folder(here.environment) / units.SYSTEM_SETTINGS.name)
    unit = unit_of(command, settings, is_system=as_system, gpu_groups=_gpu_groups() if as_system else None)
    printing.note(f"Settings such as OLLAMA_URL: {settings}, one NAME=VALUE per line")
    _keep_proxy(Path(settings), here.environment)
    place.install(unit)


def _keep_proxy(settings: Path, environment: Mapping[str, str]) -> None:
    """Write the proxy that this machine joined through into the service's settings, unless they have one: services get no variables."""
    from shared.identity import private_file

    lines = settings.read_text(encoding="utf-8").splitlines() if settings.exists() else []
    wanted = {name.upper(): value for name, value in environment.items() if name.upper() in _PROXY and value}
    if "HTTPS_PROXY" in wanted and not any(line.startswith(("HTTPS_PROXY=", "https_proxy=")) for line in lines):
        lines += [f"{name}={value}" for name, value in wanted.items()]
        settings.parent.mkdir(parents=True, exist_ok=True)
        # It may have a password.
        private_file.replace(settings, "".join(f"{line}\n" for line in lines).encode())


def _command(here: CliContext, state: str | None, options: list[str], *, is_system: bool) -> tuple[str, ...]:
    from cli.machines import join

    folder = join.locate(here.environment, state or (str(SYSTEM_WORKER) if is_system else None), here.folder)
    if not folder.key.is_file():
        hint = f"join first: aicli worker --join TICKET --no-serve --state {folder.root}"
        raise errors.BadSettings(f"no worker has joined a mesh using {folder.root}", hint=hint)
    program = installation.program()
    command = (str(program), "worker", "--state", str(folder.root), *options)
    if not is_system:
        return command
    if folder.root != SYSTEM_WORKER:
        raise errors.BadSettings(f"a service of the machine has its state in {SYSTEM_WORKER}", hint="join with that --state, or use --user")
    for used in (program.resolve(), Path(sys.executable).resolve(), *map(Path, options[1:2] if "--models" in options else [])):
        if any(used.is_relative_to(home) for home in _HOMES):
            raise errors.BadSettings(f"a service of the machine can't read {used}", hint="move it, for example to /opt, or use --user")
    return command


def _gpu_groups() -> tuple[str, ...] | None:
    import grp

    if not any(Path(device).exists() for device in _GPU_DEVICES):
        return None
    known = {group.gr_name for group in grp.getgrall()}
    return tuple(group for group in ("render", "video") if group in known)
