"""A stranger's machine: an ordinary user with an empty home, and a systemd if wanted, in namespaces, at a site of the made-up Internet.

    async with stranger(await net.house("box", Nat.PORT_PRESERVING)) as user:
        done = await user.types("curl -fsS https://… | sh")

The programs are this machine's own. There is no DNS, no setting of pip, and nothing of the tests' environment.
"""

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests import capabilities
from tests.nat import topology
from tests.nat.boxes import COMMAND_SECONDS
from tests.nat.topology import Machine
from tests.stacks import Outcome, outcome_of, until

_USER = 1000
_PYTHON = os.path.realpath(sys.executable)
_SYSTEMD = f"{capabilities.SYSTEMD} --user"
#: Arguments: the home folder, its owner, and a program that stays. The first process must not be systemd, which would take itself for the
#: system's.
_POWER_ON = """
set -eu
mount -t tmpfs none /run
mkdir -p /run/systemd/system
mkdir -m 700 /run/user
printf 'u:x:%s:%s::%s:/bin/sh\\n' "$2" "$2" "$1" >/run/passwd
mount --bind /run/passwd /etc/passwd
[ ! -e /etc/pip.conf ] || mount --bind /dev/null /etc/pip.conf
exec unshare --user "--map-user=$2" "--map-group=$2" env -i "HOME=$1" USER=u XDG_RUNTIME_DIR=/run/user PATH=/usr/bin:/bin sh -c '
$0 &
wait' "$3"
"""


@dataclass(slots=True)
class Stranger:
    machine: Machine
    home: Path
    has_systemd: bool = False
    #: Its namespaces end with it.
    _power: asyncio.subprocess.Process | None = None

    async def power_on(self) -> None:
        # `ip netns exec` hides the control groups, without which systemd ends.
        place = f"--net={topology.NAMESPACES / self.machine.place}"
        words = ("nsenter", place, "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", _POWER_ON, "sh")
        quiet = asyncio.subprocess.DEVNULL
        words = (*words, str(self.home), str(_USER), _SYSTEMD if self.has_systemd else "sleep infinity")
        self._power = None

        async def is_up() -> bool:
            # On a busy machine, systemd may end before it has started: press the button again.
            if self._power is None or self._power.returncode is not None:
                self._power = await asyncio.create_subprocess_exec(*words, stdin=quiet, stdout=quiet, stderr=quiet)
            first = "systemctl --user show-environment" if self.has_systemd else "true"
            return bool(self._first()) and (await self.types(first)).status == 0

        await until(is_up, seconds=30, what="the machine runs")

    async def power_off(self) -> None:
        """End everything at once, as a power cut does."""
        if self._power is not None:
            with suppress(ProcessLookupError):
                self._power.kill()
            await self._power.wait()

    def _first(self) -> str:
        """Return the process ID of the first process in the namespaces; empty while there is none."""
        assert self._power is not None
        with suppress(FileNotFoundError, ProcessLookupError):
            return Path(f"/proc/{self._power.pid}/task/{self._power.pid}/children").read_text(encoding="ascii").strip()
        return ""

    async def types(self, text: str, *, deadline_seconds: float = COMMAND_SECONDS, **variables: str) -> Outcome:
        """Run what the user types to its end."""
        outside = ("nsenter", "--target", self._first(), "--mount", "--pid", "--net")
        inside = ("nsenter", "--target", "1", "--user", "--preserve-credentials", "env", "-i")
        # As on a machine whose python3 is this one.
        given = {
            "HOME": str(self.home),
            "USER": "u",
            "LANG": "C.UTF-8",
            "NO_COLOR": "1",
            "PATH": f"{self.home}/.local/bin:/usr/local/bin:/usr/bin:/bin",
            "XDG_RUNTIME_DIR": "/run/user",
            "PYTHON": _PYTHON,
            **variables,
        }
        words = (*outside, *inside, *(f"{name}={value}" for name, value in given.items()), "sh", "-c", f"cd; {text}")
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*words, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe)
        return await outcome_of(process, seconds=deadline_seconds)


@asynccontextmanager
async def stranger(machine: Machine, *, has_systemd: bool = False) -> AsyncIterator[Stranger]:
    """Power the machine on; its processes and files are removed at the end."""
    with tempfile.TemporaryDirectory(prefix="aimesh-stranger-", ignore_cleanup_errors=True) as folder:
        user = Stranger(machine, Path(folder), has_systemd)
        try:
            await user.power_on()
            yield user
        finally:
            await user.power_off()
