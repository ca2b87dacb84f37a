"""Where a stack keeps its things: the folder AIMESH_HOME, and a short one for sockets when that path is too long.

Everything below is readable by its owner only. Only this file knows the names of the places.
"""

import hashlib
import os
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from shared import errors
from shared.identity import private_file

#: sockaddr_un.sun_path holds 108 bytes, one of them the zero at the end (unix(7)).
MAX_SOCKET_PATH_BYTES = 107
#: The longest name that lies in the sockets folder; PostgreSQL puts a lock beside its socket.
_LONGEST_SOCKET_NAME = "/.s.PGSQL.5432.lock"
_FOLDERS = ("secrets", "keys", "nats", "postgres", "valkey", "logs", "run")


@dataclass(frozen=True, slots=True)
class StackHome:
    root: Path
    #: Where the Unix sockets are; below ``root`` unless that is too long.
    sockets: Path

    @property
    def secrets(self) -> Path:
        return self.root / "secrets"

    @property
    def keys(self) -> Path:
        return self.root / "keys"

    @property
    def nats(self) -> Path:
        return self.root / "nats"

    @property
    def postgres(self) -> Path:
        return self.root / "postgres"

    @property
    def valkey(self) -> Path:
        return self.root / "valkey"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def settings_file(self) -> Path:
        """The settings that users gave, so that later commands find them without the environment."""
        return self.root / "stack.env"

    @property
    def profile(self) -> Path:
        return self.root / "profile.toml"

    @property
    def control_socket(self) -> Path:
        return self.sockets / "control.sock"

    def key(self, name: str) -> Path:
        return self.keys / f"{name}.nk"

    def log(self, name: str) -> Path:
        return self.logs / f"{name}.log"


def checkout() -> Path:
    """The folder that the packages ``cli``, ``services`` and ``shared`` lie in."""
    return Path(__file__).resolve().parents[1]


def locate(environment: Mapping[str, str]) -> StackHome:
    """The stack that AIMESH_HOME names, or that of the checkout; creates nothing."""
    chosen = environment.get("AIMESH_HOME", "")
    if chosen:
        root = Path(chosen).expanduser().absolute()
    else:
        inside = checkout()
        # Installed from a wheel there is no checkout, and site-packages is no place for a database.
        root = (inside if (inside / "pyproject.toml").exists() else Path.cwd()) / ".aimesh"
    recorded = root / "run" / "sockets"
    if recorded.is_file():
        return StackHome(root, Path(recorded.read_text(encoding="utf-8")))
    short = environment.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    return StackHome(root, plan_sockets(root, Path(short), os.geteuid()))


def plan_sockets(root: Path, short: Path, user: int) -> Path:
    """The folder for sockets: below ``root``, or a name of its own in ``short`` when the paths would be too long. Pure."""
    inside = root / "run"
    if len(os.fsencode(inside)) + len(_LONGEST_SOCKET_NAME) <= MAX_SOCKET_PATH_BYTES:
        return inside
    return short / f"aimesh-{user}-{hashlib.sha256(os.fsencode(root)).hexdigest()[:12]}"


def ensure_folders(home: StackHome) -> None:
    """Make every folder, 0700, or repair its mode; raises BadSettings if one belongs to somebody else."""
    home.root.mkdir(parents=True, exist_ok=True, mode=0o700)
    for folder in (home.root, *(home.root / name for name in _FOLDERS), home.sockets):
        folder.mkdir(exist_ok=True, mode=0o700)
        facts = folder.lstat()
        # In /tmp anybody can have made the folder before us, or put a link in its place.
        if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid():
            raise errors.BadSettings(f"{folder} is not a folder of yours", hint="remove it, or set AIMESH_HOME to another folder")
        if facts.st_mode & 0o077:
            folder.chmod(0o700)
    write_private(home.run / "sockets", str(home.sockets))


def write_private(path: Path, text: str) -> None:
    """Put ``text`` in place of the file, whole or not at all, 0600."""
    private_file.replace(path, text.encode(), synced=True)
