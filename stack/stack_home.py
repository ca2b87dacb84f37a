"""The folder AIMESH_HOME of a stack, and a short folder for sockets if its path is too long.

Only the owner can read it. Only this file knows the names in it.
"""

import hashlib
import os
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from shared import errors
from shared.identity import private_file

S = TypeVar("S", bound=msgspec.Struct)

#: sockaddr_un.sun_path has 108 bytes, including the final zero (unix(7)).
MAX_SOCKET_PATH_BYTES = 107
#: The longest file name in the sockets folder; PostgreSQL puts a lock beside its socket.
_MAX_SOCKET_NAME = "/.s.PGSQL.5432.lock"
_FOLDERS = ("secrets", "keys", "nats", "postgres", "valkey", "logs", "run")


@dataclass(frozen=True, slots=True)
class StackHome:
    root: Path
    #: The folder of the Unix sockets: below ``root``, unless its path is too long.
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
    def enrollment(self) -> Path:
        """Return the list of the nodes that the operator made (shared/identity/enrollment_list.py)."""
        return self.secrets / "enrollment.json"

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
    def models(self) -> Path:
        """The models that people pull, unless MODEL_STORE names another folder."""
        return self.root / "models"

    @property
    def model_origin(self) -> Path:
        """The versions that people push, unless MODEL_ORIGIN names another store."""
        return self.root / "model_origin"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def restore_points(self) -> Path:
        return self.run / "restore_points.jsonl"

    @property
    def own_site(self) -> Path:
        """Return the file with the term that this home owns, or owned. It is in no backup: a restored home takes a new term."""
        return self.run / "site.json"

    @property
    def recovery_log(self) -> Path:
        """The files of the recovery log, unless RECOVERY_LOG_DIR names another folder."""
        return self.root / "recovery_log"

    @property
    def gathered_log(self) -> Path:
        """Its files from the store, until a restore has put them in place."""
        return self.run / "recovery_log"

    @property
    def audit_anchors(self) -> Path:
        """The anchors of the audit log, unless AUDIT_ANCHOR_FILE names another file."""
        return self.root / "audit_anchors.jsonl"

    @property
    def base_backup(self) -> Path:
        """What a process locks while it makes a base backup (shared/stores/file_lock.py)."""
        return self.run / "base_backup"

    def received_log(self, system: str) -> Path:
        """Return the folder of the write-ahead log that the store does not have yet: of one cluster, because segments of two have the same
        names."""
        return self.root / "backup" / f"wal-{system}"

    @property
    def settings_file(self) -> Path:
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
    """Return the folder that contains the packages ``cli``, ``services`` and ``shared``."""
    return Path(__file__).resolve().parents[1]


def locate(environment: Mapping[str, str]) -> StackHome:
    """Return the stack of AIMESH_HOME, or of the checkout; creates nothing."""
    chosen = environment.get("AIMESH_HOME", "")
    if chosen:
        root = Path(chosen).expanduser().absolute()
    else:
        inside = checkout()
        # An installed wheel has no checkout, and site-packages is no place for a database.
        root = (inside if (inside / "pyproject.toml").exists() else Path.cwd()) / ".aimesh"
    recorded = root / "run" / "sockets"
    if recorded.is_file():
        return StackHome(root, Path(recorded.read_text(encoding="utf-8")))
    short = environment.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    return StackHome(root, plan_sockets(root, Path(short), os.geteuid()))


def plan_sockets(root: Path, short: Path, user: int) -> Path:
    """Return the folder for sockets: below ``root``, or a unique one in ``short`` if the paths would be too long. Pure."""
    inside = root / "run"
    if len(os.fsencode(inside)) + len(_MAX_SOCKET_NAME) <= MAX_SOCKET_PATH_BYTES:
        return inside
    return short / f"aimesh-{user}-{hashlib.sha256(os.fsencode(root)).hexdigest()[:12]}"


def ensure_folders(home: StackHome) -> None:
    """Create every folder with mode 0700, or repair its mode. Raises BadSettings if one belongs to another user."""
    home.root.mkdir(parents=True, exist_ok=True, mode=0o700)
    for folder in (home.root, *(home.root / name for name in _FOLDERS), home.sockets):
        folder.mkdir(exist_ok=True, mode=0o700)
        facts = folder.lstat()
        # In /tmp another user could have created the folder first, or a link in its place.
        if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid():
            raise errors.BadSettings(f"{folder} is not a folder of yours", hint="remove it, or set AIMESH_HOME to another folder")
        if facts.st_mode & 0o077:
            folder.chmod(0o700)
    write_private(home.run / "sockets", str(home.sockets))


def quoted(path: Path) -> str:
    """Quote a path for the configuration of nats-server and Valkey."""
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'


def read_struct(path: Path, kind: type[S], hint: str) -> S | None:
    """Return what ``write_struct`` has written; None if there is no file. Blocks; raises BadSettings."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as error:
        raise errors.BadSettings(f"{path} is damaged", hint=hint) from error


def write_struct(path: Path, content: msgspec.Struct) -> None:
    write_private(path, msgspec.json.encode(content).decode())


def write_private(path: Path, text: str) -> None:
    """Replace the file atomically, with mode 0600."""
    private_file.replace(path, text.encode(), synced=True)
