"""Nodes of a mesh for benches: a real NATS server with keys, and a service that does nothing."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shared.node.settings import NodeSettings
from shared.types import Role
from tests.testnet import MESH, NatsServer


@contextmanager
def nats_server(*roles: Role) -> Iterator[tuple[str, list[Path]]]:
    """Run a NATS server. Yields its URL, and a key file for a node of each role."""
    with tempfile.TemporaryDirectory() as folder:
        server = NatsServer(Path(folder))
        keys = [server.key(f"{role}-{number}", role) for number, role in enumerate(roles)]
        server.start()
        try:
            yield server.url, keys
        finally:
            server.kill()


def settings_of(url: str, key_file: Path | str, bootstrap: str = "") -> NodeSettings:
    return NodeSettings(mesh=MESH, nats_url=url, node_key_file=Path(key_file), dht_bootstrap=tuple(filter(None, bootstrap.split(","))))
