"""systemd units of this machine: write, start and remove them. The text of a unit is pure.

No unit has a secret: keys are in folders of their owner, and settings in a file of their own.
"""

import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import click

from cli.output import printing
from shared import errors

#: Ours, in the order of their start.
NAMES = ("aimesh-worker", "aimesh-serve")
#: Settings of the machine's worker: systemd reads them as root, so the worker must not be able to change them.
SYSTEM_SETTINGS = Path("/etc") / f"{NAMES[0]}.env"
#: Longer than a worker takes to end, which finishes its answers first.
_SYSTEMCTL_SECONDS = 60.0
#: Wrong settings or a missing package end aicli sooner.
_WATCH_SECONDS = 3.0

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


@dataclass(frozen=True, slots=True)
class Unit:
    """What a unit depends on."""

    title: str
    command: tuple[str, ...]
    #: Exit statuses after which a new start would not help.
    final: str
    is_system: bool = False
    #: More lines of the service.
    more: str = ""


def text_of(unit: Unit) -> str:
    return f"""\
[Unit]
Description={unit.title}
{_AFTER_NETWORK if unit.is_system else ""}
[Service]
ExecStart={" ".join(map(_quoted, unit.command))}
Restart=always
RestartPreventExitStatus={unit.final}
RestartSec=2
TimeoutStopSec=40
{_CONFINED}{unit.more}
[Install]
WantedBy={_target(is_system=unit.is_system)}
"""


def _quoted(word: str) -> str:
    """Quote for ExecStart, where systemd also expands variables."""
    safe = escaped(word).replace("$", "$$")
    if safe and not set(safe) & set(" \t\"'\\;"):
        return safe
    return '"' + safe.replace("\\", "\\\\").replace('"', '\\"') + '"'


def escaped(text: str) -> str:
    """Return a text for a unit. Raises BadSettings."""
    if not text.isprintable():
        raise errors.BadSettings(f"{text!r} can't be in a systemd unit", hint="rename it")
    return text.replace("%", "%%")


def _target(*, is_system: bool) -> str:
    return "multi-user.target" if is_system else "default.target"


def config_folder(environment: Mapping[str, str]) -> Path:
    config = environment.get("XDG_CONFIG_HOME", "")
    return Path(config) if config.startswith("/") else Path(environment.get("HOME") or "~").expanduser() / ".config"


@dataclass(frozen=True, slots=True)
class UnitPlace:
    """One of our units: its file, and the systemd that runs it."""

    name: str
    environment: Mapping[str, str]
    is_system: bool = False

    @property
    def path(self) -> Path:
        folder = Path("/etc/systemd/system") if self.is_system else config_folder(self.environment) / "systemd/user"
        return folder / f"{self.name}.service"

    @property
    def _scope(self) -> tuple[str, ...]:
        return () if self.is_system else ("--user",)

    def install(self, unit: Unit) -> None:
        """Write the unit, enable and start it; restart it if it has changed. Without systemd, say what to run instead.

        The last line says what is left to do: a user's services end at log-out, unless root lets them linger.

        Raises BadSettings."""
        if sys.platform != "linux":
            raise errors.BadSettings("systemd runs on Linux only", hint=f"run this under the system's own service manager: {_line(unit)}")
        text = text_of(unit)
        try:
            is_new = self._write(text)
        except OSError as error:
            raise self._refusal(error) from error
        click.echo(text, nl=False)
        printing.note(f"{'Wrote' if is_new else 'Unchanged:'} {self.path}")
        if not self._answers():
            whose = "systemd does not run" if self.is_system else "your account has no systemd"
            printing.note(f"{whose} here, so nothing starts it. To run it now: {_line(unit)}")
            return
        stays = self.is_system or self._lingers()
        self._do("enable", self.name)
        self._do("restart" if is_new else "start", self.name)
        self._watch()
        printing.note(f"Its log: {shlex.join(self._journal())}")
        if stays:
            printing.note("It runs now, and after each start of the machine.")
        else:
            printing.note("It runs now, until you log out. For it to run also then, and after each start of the machine, run this as root:")
            printing.note(f"loginctl enable-linger {_user()}")

    def _lingers(self) -> bool:
        """Have systemd run this user's services without a session. Return false if only root may."""
        if _run(("loginctl", "enable-linger"), self.environment) is None:
            return True
        # Root may have done it: then it is refused all the same.
        return _ask(("loginctl", "show-user", "--property=Linger", "--value", _user()), self.environment) == "yes"

    def remove(self) -> None:
        """Stop and remove it. Raises BadSettings."""
        if not self.path.exists():
            click.echo(f"There is no {self.path}.")
            return
        runs = self._answers()
        if runs:
            self._do("disable", "--now", self.name)
        try:
            self.path.unlink()
            (self.path.parent / f"{_target(is_system=self.is_system)}.wants" / self.path.name).unlink(missing_ok=True)
        except OSError as error:
            raise self._refusal(error) from error
        if runs:
            self._answers()
        click.echo(f"Removed {self.path}.")

    def restart(self) -> bool:
        """Restart it if it runs. Return false if systemd has nothing to restart. Raises BadSettings."""
        if not self.path.exists() or not self._answers() or not self._runs():
            return False
        self._do("restart", self.name)
        return True

    def _watch(self) -> None:
        """Wait a moment: for systemd, a program has started before it reads its settings. Raises BadSettings if it has ended."""
        until = time.monotonic() + _WATCH_SECONDS
        while time.monotonic() < until:
            time.sleep(_WATCH_SECONDS / 6)
            if not self._runs():
                raise errors.BadSettings(f"{self.name} has started and ended", hint=f"see {shlex.join(self._journal())}")

    def _runs(self) -> bool:
        return _run(("systemctl", *self._scope, "is-active", self.name), self.environment) is None

    def _write(self, text: str) -> bool:
        """Replace the file whole, readable by all as units are. Return false if it was the same."""
        if self.path.exists() and text == self.path.read_text(encoding="utf-8"):
            return False
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_suffix(".new")
        new.write_text(text, encoding="utf-8")
        new.chmod(0o644)
        new.replace(self.path)
        return True

    def _answers(self) -> bool:
        """Have systemd read the units. Return false if there is none, or none for this user."""
        return _run(("systemctl", *self._scope, "daemon-reload"), self.environment) is None

    def _do(self, *words: str) -> None:
        if (problem := _run(("systemctl", *self._scope, *words), self.environment)) is not None:
            raise errors.BadSettings(f"systemctl {' '.join(words)}: {problem}", hint=f"see {shlex.join(self._journal())}")

    def _journal(self) -> tuple[str, ...]:
        return ("journalctl", *self._scope, "--follow", "--unit", self.name)

    def _refusal(self, error: OSError) -> errors.BadSettings:
        return errors.BadSettings(f"cannot change {self.path}: {error.strerror}", hint="use sudo" if self.is_system else "")


def _run(command: tuple[str, ...], environment: Mapping[str, str]) -> str | None:
    """Return what went wrong."""
    try:
        done = _call(command, environment)
    except OSError as error:
        return error.strerror or str(error)
    except subprocess.TimeoutExpired:
        return f"it did not end in {_SYSTEMCTL_SECONDS:.0f} s"
    return None if done.returncode == 0 else printing.printable(done.stderr.strip()) or f"exit status {done.returncode}"


def _ask(command: tuple[str, ...], environment: Mapping[str, str]) -> str:
    """Return what a command prints; empty if it can't run."""
    try:
        return _call(command, environment).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _call(command: tuple[str, ...], environment: Mapping[str, str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(  # noqa: S603 - the system's own program
        command,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=_SYSTEMCTL_SECONDS,
    )


def _line(unit: Unit) -> str:
    return shlex.join(unit.command)


def _user() -> str:
    import getpass

    return getpass.getuser()
