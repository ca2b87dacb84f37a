"""Bare systems on which a user types: root file systems with Python and curl, made once by debootstrap in ~/.cache/aimesh/roots.

    async with account(machine, find("bookworm")) as user:
        done = await user.run("curl -fsS http://127.0.0.1:3000/install.sh | sh")

A root stays as it is made: each account gets a new home folder, which is removed at the end.
"""

import asyncio
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.capabilities import SEARCH_PATH
from tests.nat.boxes import COMMAND_SECONDS, Running
from tests.nat.topology import Machine
from tests.stacks import Outcome, outcome_of
from tools import setup_steps

_SCRIPTS = Path("/usr/share/debootstrap/scripts")
#: Debian has no package of Ubuntu's keys.
_UBUNTU_KEYS = (
    "pool/main/u/ubuntu-keyring/ubuntu-keyring_2021.03.26_all.deb",
    "0d0e7ed6b112f5d03eabf3c7eb01ebdacf9c57714b279e90495cfc58c8c4520f",
)
#: Ubuntu 22.04 has Python 3.10; universe has 3.11, in an update.
_UNIVERSE = """
sed -i "p; s/ main/-updates main universe/" /etc/apt/sources.list
apt-get update && apt-get install -y --no-install-recommends python3.11
"""
_MAKE_SECONDS = 1200.0
#: Arguments: root, home, a file to hide, the command.
_INSIDE = """
mount --make-rprivate /
mount --bind "$2" "$1/srv"
mount -t proc proc "$1/proc"
mount -t tmpfs none "$1/tmp"
mount --rbind /dev "$1/dev"
[ -z "$3" ] || mount --bind /dev/null "$1$3"
exec chroot --userspec=u:u "$1" env -i HOME=/srv USER=u LANG=C.UTF-8 NO_COLOR=1 \\
    PATH=/srv/.local/bin:/usr/local/bin:/usr/bin:/bin sh -c "cd; $4"
"""


def find(suite: str) -> Path:
    """Return the root of a suite, and make it if there is none, in a minute or two."""
    folder = setup_steps.cache_folder().parent / "roots" / suite
    folder.mkdir(parents=True, exist_ok=True)
    root, part = folder / "root", folder / "part"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not root.exists():
            shutil.rmtree(part, ignore_errors=True)
            _make(suite, part)
            part.rename(root)
    return root


def _make(suite: str, root: Path) -> None:
    # In its own mount namespace: debootstrap mounts /proc, which would stay mounted if it is killed.
    command = ["unshare", "--mount", "debootstrap", "--variant=minbase", "--include=python3,curl,ca-certificates"]
    if not _is_ubuntu(suite):
        _run(*command, suite, str(root))
    else:
        with tempfile.TemporaryDirectory() as keys:
            _run(*command, f"--keyring={_ubuntu_keys(suite, Path(keys))}", suite, str(root))
        shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
        _run("unshare", "--mount", "sh", "-c", 'mount -t proc proc "$1/proc" && exec chroot "$1" sh -c "$2"', "sh", str(root), _UNIVERSE)
    (root / "etc/resolv.conf").unlink(missing_ok=True)
    _run("chroot", str(root), "useradd", "--create-home", "--shell", "/bin/sh", "u")


def _is_ubuntu(suite: str) -> bool:
    return "ubuntu" in (_SCRIPTS / suite).read_text(encoding="ascii")


def _ubuntu_keys(suite: str, folder: Path) -> Path:
    mirror = re.search(r"default_mirror (\S+//archive\.\S+)", (_SCRIPTS / suite).read_text(encoding="ascii"))
    assert mirror is not None
    path, sha256 = _UBUNTU_KEYS
    package = folder / "keys.deb"
    with urllib.request.urlopen(f"{mirror[1]}/{path}", timeout=60) as answer:
        package.write_bytes(answer.read())
    assert hashlib.sha256(package.read_bytes()).hexdigest() == sha256
    _run("dpkg", "-x", str(package), str(folder))
    return folder / "usr/share/keyrings/ubuntu-archive-keyring.gpg"


def _run(*command: str) -> None:
    environment = {"PATH": SEARCH_PATH, "LANG": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_MAKE_SECONDS, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


@dataclass(slots=True)
class Account:
    """An ordinary user without systemd, in a root, on a machine of the made-up Internet."""

    machine: Machine
    root: Path
    home: Path
    #: A program that this system lacks.
    hidden: str = ""
    _started: int = 0

    def _words(self, text: str) -> tuple[str, ...]:
        inside = ("sh", "-c", _INSIDE, "sh", str(self.root), str(self.home), self.hidden, text)
        return ("unshare", "--mount", "--pid", "--fork", "--kill-child", *inside)

    async def run(self, text: str, *, deadline_seconds: float = COMMAND_SECONDS) -> Outcome:
        """Run what the user types to its end."""
        pipe = asyncio.subprocess.PIPE
        process = await self.machine.start(*self._words(text), stdin=asyncio.subprocess.DEVNULL, stderr=pipe)
        return await outcome_of(process, seconds=deadline_seconds)

    async def start(self, text: str) -> Running:
        """Start what the user types, in another terminal."""
        self._started += 1
        output = self.home.parent / f"output-{self._started}"
        with output.open("wb") as file:
            process = await self.machine.start(*self._words(text), stdin=asyncio.subprocess.DEVNULL, stdout=file, stderr=file)
        return Running(process, output)


@asynccontextmanager
async def account(machine: Machine, root: Path, *, hidden: str = "") -> AsyncIterator[Account]:
    """Create a home folder; what runs there is killed with the machine's other programs."""
    with tempfile.TemporaryDirectory(prefix="aimesh-root-", ignore_cleanup_errors=True) as folder:
        home = Path(folder) / "home"
        home.mkdir()
        facts = (root / "home/u").stat()
        os.chown(home, facts.st_uid, facts.st_gid)
        yield Account(machine, root, home, hidden)
