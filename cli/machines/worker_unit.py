"""`aicli worker install`: write the systemd unit that runs this machine's worker, or remove it.

``unit_text`` is pure. The unit has no secret: the key is in the state folder, and settings such as OPENAI_API_KEY_FILE go to a file that a
worker of the machine can't write.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import click

from cli.cli_context import CliContext
from cli.output import printing
from shared import errors

NAME = "aimesh-worker"
#: A system service has its state here, under its own user.
SYSTEM_STATE = Path("/var/lib") / NAME
#: Settings: systemd reads them as root, so the worker must not be able to change them.
SYSTEM_SETTINGS = Path("/etc") / f"{NAME}.env"
_HOMES = tuple(map(Path, ("/home", "/root", "/run/user")))
_GPU_DEVICES = ("/dev/dri", "/dev/kfd", "/dev/nvidia0")

_AFTER_NETWORK = """\
Wants=network-online.target
After=network-online.target
"""
#: Needs no privileges, so that a user's own systemd can do it too.
_CONFINED = """\
LockPersonality=yes
NoNewPrivileges=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_NETLINK AF_UNIX
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
UMask=0077
"""
#: No access to the rest of the machine. (MemoryDenyWriteExecute would stop Node.js.)
_ISOLATED = f"""\
StateDirectory={NAME}
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


@dataclass(frozen=True, slots=True)
class WorkerUnit:
    """What the unit depends on."""

    command: tuple[str, ...]
    settings: str
    is_system: bool
    has_gpu: bool = False
    #: Groups that may use the GPU, of those that this machine has.
    gpu_groups: tuple[str, ...] = ()


def unit_text(unit: WorkerUnit) -> str:
    """Return the unit file. A revoked worker (6) and wrong settings (2) are not restarted: that would not help."""
    devices = "PrivateDevices=no\n" if unit.has_gpu else "PrivateDevices=yes\n"
    groups = f"SupplementaryGroups={' '.join(unit.gpu_groups)}\n" if unit.gpu_groups else ""
    return f"""\
[Unit]
Description=aimesh worker
{_AFTER_NETWORK if unit.is_system else ""}
[Service]
ExecStart={" ".join(map(_quoted, unit.command))}
EnvironmentFile=-{_escaped(unit.settings)}
Restart=always
RestartPreventExitStatus=2 6
RestartSec=2
TimeoutStopSec=40
{_CONFINED}{_ISOLATED + devices + groups if unit.is_system else ""}
[Install]
WantedBy={_target(is_system=unit.is_system)}
"""


def _quoted(word: str) -> str:
    """Quote for ExecStart, where systemd also expands variables."""
    safe = _escaped(word).replace("$", "$$")
    if safe and not set(safe) & set(" \t\"'\\;"):
        return safe
    return '"' + safe.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _escaped(text: str) -> str:
    if not text.isprintable():
        raise errors.BadSettings(f"{text!r} can't be in a systemd unit", hint="rename it")
    return text.replace("%", "%%")


def _target(*, is_system: bool) -> str:
    return "multi-user.target" if is_system else "default.target"


@click.command()
@click.option("--system/--user", "is_system", default=None, help="Service of the machine, or of your account. Default: --system for root.")
@click.option("--models", "models_folder", metavar="DIR", help="Serve every .gguf file in this folder.")
@click.option("--backend", metavar="NAME", help="Backend that runs the models, as for aicli worker.")
@click.option("--state", metavar="DIR", help=f"State folder of the joined worker. Default: {SYSTEM_STATE} for a service of the machine.")
@click.option("--remove", is_flag=True, help="Remove the unit. The worker's key and models stay.")
@click.pass_obj
def install(
    here: CliContext, /, *, is_system: bool | None, models_folder: str | None, backend: str | None, state: str | None, remove: bool
) -> None:
    """Write the systemd unit that starts this machine's worker at boot. Join first: aicli worker --join TICKET --no-serve

    Put settings such as OLLAMA_URL into the file that this command names, one NAME=VALUE per line.
    """
    if sys.platform != "linux":
        raise errors.BadSettings("systemd runs on Linux only", hint="run aicli worker under this system's own service manager")
    as_system = os.geteuid() == 0 if is_system is None else is_system
    path = _unit_path(here, is_system=as_system)
    try:
        if remove:
            _remove(path, is_system=as_system)
            return
        options = [] if models_folder is None else ["--models", str((here.folder / Path(models_folder).expanduser()).absolute())]
        options += [] if backend is None else ["--backend", backend]
        unit = _plan(here, state, options, is_system=as_system)
        _write(path, unit_text(unit), is_system=as_system)
        printing.note(f"Settings such as OLLAMA_URL: {unit.settings}, one NAME=VALUE per line")
    except OSError as error:
        raise errors.BadSettings(f"cannot change {path}: {error.strerror}", hint="use sudo, or --user") from error


def _plan(here: CliContext, state: str | None, options: list[str], *, is_system: bool) -> WorkerUnit:
    from cli.machines import join

    folder = join.locate(here.environment, state or (str(SYSTEM_STATE) if is_system else None), here.folder)
    if not folder.key.is_file():
        hint = f"join first: aicli worker --join TICKET --no-serve --state {folder.root}"
        raise errors.BadSettings(f"no worker has joined a mesh using {folder.root}", hint=hint)
    program = Path(sys.prefix) / "bin" / "aicli"
    command = (str(program), "worker", "--state", str(folder.root), *options)
    if not is_system:
        return WorkerUnit(command, str(_config_folder(here) / SYSTEM_SETTINGS.name), is_system=False)
    if folder.root != SYSTEM_STATE:
        raise errors.BadSettings(f"a service of the machine has its state in {SYSTEM_STATE}", hint="join with that --state, or use --user")
    for used in (program, Path(sys.executable).resolve(), *map(Path, options[1:2] if "--models" in options else [])):
        if any(used.is_relative_to(home) for home in _HOMES):
            raise errors.BadSettings(f"a service of the machine can't read {used}", hint="move it, for example to /opt, or use --user")
    has_gpu = any(Path(device).exists() for device in _GPU_DEVICES)
    return WorkerUnit(command, str(SYSTEM_SETTINGS), True, has_gpu, _gpu_groups() if has_gpu else ())


def _gpu_groups() -> tuple[str, ...]:
    import grp

    known = {group.gr_name for group in grp.getgrall()}
    return tuple(group for group in ("render", "video") if group in known)


def _unit_path(here: CliContext, *, is_system: bool) -> Path:
    if is_system:
        return Path("/etc/systemd/system") / f"{NAME}.service"
    return _config_folder(here) / "systemd/user" / f"{NAME}.service"


def _config_folder(here: CliContext) -> Path:
    config = here.environment.get("XDG_CONFIG_HOME", "")
    return Path(config) if config.startswith("/") else Path(here.environment.get("HOME") or "~").expanduser() / ".config"


def _write(path: Path, text: str, *, is_system: bool) -> None:
    """Replace the file whole, readable by all as units are, and say how to start it."""
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    if text != before:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(".new")
        new.write_text(text, encoding="utf-8")
        new.chmod(0o644)
        new.replace(path)
    user = "" if is_system else " --user"
    start = f"systemctl{user} enable {NAME} && systemctl{user} restart {NAME}" if before else f"systemctl{user} enable --now {NAME}"
    click.echo(text, nl=False)
    printing.note(f"{'Wrote' if text != before else 'Unchanged:'} {path}")
    printing.note(f"To start it: systemctl{user} daemon-reload && {start}")
    printing.note(f"Its log: journalctl{user} --follow --unit {NAME}")
    if not is_system:
        printing.note("To run it while you are logged out: loginctl enable-linger")


def _remove(path: Path, *, is_system: bool) -> None:
    if not path.exists():
        click.echo(f"There is no {path}.")
        return
    path.unlink()
    (path.parent / f"{_target(is_system=is_system)}.wants" / path.name).unlink(missing_ok=True)
    click.echo(f"Removed {path}.")
    printing.note(f"To stop it now: systemctl{'' if is_system else ' --user'} stop {NAME}")
