"""The folder with all that a replica of one of this stack's services needs: `aicli stack replica`.

It has what the stack's own service gets (``stack_plan.service_environment``): an environment file, whose values need no quotes in a shell,
systemd and Docker, and a file for each secret, key and certificate.
"""

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from urllib.parse import urlsplit

from shared import addresses, errors
from shared.identity import private_file

#: Services that can have replicas on other machines. Workers join with a ticket alone.
SERVICES = ("auth", "gateway", "metrics", "web")
ENVIRONMENT = "environment"
#: Of the environment: the ticket and the key, which the replica makes unless the stack has made one.
TICKET, KEY = "JOIN_TICKET_FILE", "NODE_KEY_FILE"
#: Files and folders that the replica makes itself -> their names.
_OWN = {KEY: "node.nk", "RECOVERY_LOG_DIR": "recovery_log", "AUDIT_ANCHOR_FILE": "audit_anchors.jsonl"}
#: Only the first auth uses the administrator's, the program is the machine's, and a replica compares its settings with the others'.
_LEFT_OUT = frozenset({"ADMIN_PASSWORD_FILE", "ADMIN_API_KEY_FILE", "NODE_BINARY", "REPLICA_CHECK"})
#: The mesh's metrics are also on the service's own port.
_CHANGED = {"PROMETHEUS_PORT": "0"}
_SERVERS = ("NATS_URL", "NATS_WEBSOCKET", "DATABASE_URL", "REDIS_URL", "GATEWAY_URL", "DHT_BOOTSTRAP")
_HEADER = "# Settings of a replica, made by `aicli stack replica`. The files beside it are secrets.\n"


@dataclass(frozen=True, slots=True)
class ReplicaFolder:
    environment: dict[str, str] = field(default_factory=dict)
    #: By their names in the folder.
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def on_this_machine(self) -> tuple[str, ...]:
        """Return the settings whose servers no other machine reaches: they listen on loopback or a socket."""
        return tuple(name for name in _SERVERS if (url := self._value(name)) is not None and _is_local(url))

    def _value(self, name: str) -> str | None:
        if name in self.environment:
            return self.environment[name]
        file = self.environment.get(f"{name}_FILE")
        return None if file is None else self.files[PurePath(file).name].decode().strip()


def plan(given: Mapping[str, str], place: Path, more: Mapping[str, bytes]) -> ReplicaFolder:
    """Turn the environment of the stack's own service into that of a replica in the folder ``place``. Blocks to read the files.

    ``more`` are files that only the replica has, by the name of their setting. Raises BadSettings if a file can't be read.
    """
    planned = ReplicaFolder()
    for name, value, content in (*_of_stack(given), *((name, "", content) for name, content in more.items())):
        if content is None:
            planned.environment[name] = str(place / _OWN[name]) if name in _OWN else value
        else:
            file = _OWN.get(name) or name.removesuffix("_FILE").lower()
            planned.files[file] = content
            planned.environment[name] = str(place / file)
    planned.environment.setdefault(KEY, str(place / _OWN[KEY]))
    return planned


def _of_stack(given: Mapping[str, str]) -> Iterator[tuple[str, str, bytes | None]]:
    """Yield each setting with its value, and the content of the file that it names."""
    for name, text in given.items():
        if name in _LEFT_OUT or name == KEY or not text:
            continue
        value = _CHANGED.get(name, text)
        if name in _OWN:
            yield name, value, None
        elif value.startswith("/") and Path(value).is_file():
            yield name, value, _read(name, Path(value))
        elif shlex.quote(value) != value:
            yield f"{name}_FILE", value, value.encode()
        else:
            yield name, value, None


def _read(name: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise errors.BadSettings(f"{name}: cannot read {path}: {error.strerror}") from error


def _is_local(url: str) -> bool:
    first = url.split(",", maxsplit=1)[0]
    host = urlsplit(first if "://" in first else f"//{first}").hostname
    return host is None or host in addresses.LOOPBACK


def write(folder: Path, planned: ReplicaFolder) -> None:
    """Write the folder with mode 0700 and its files with mode 0600; those of an earlier time are replaced. Raises OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    lines = "".join(f"{name}={value}\n" for name, value in sorted(planned.environment.items()))
    for name, content in {**planned.files, ENVIRONMENT: (_HEADER + lines).encode()}.items():
        private_file.replace(folder / name, content)
