"""A private DHT and a blind relay on loopback, for tests over Hyperswarm. Both end with the test run.

Tests that do not break the DHT use ``shared()``, because starting a DHT takes a Node process and a second of CPU time.
"""

import asyncio
import atexit
import json
import secrets
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from shared.transports import hyperswarm
from shared.transports.hyperswarm import PeerAddress
from tests import testnet

SIDECAR = Path(hyperswarm.__file__).parent / "sidecar"
HOST = "127.0.0.1"
START_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Relay:
    key: bytes
    process: asyncio.subprocess.Process


@cache
def shared() -> list[PeerAddress]:
    """Return the addresses of the DHT that all tests of this process share. Do not stop it, and use new topics and keys."""
    options = json.dumps({"host": HOST, "ports": free_ports(3), "bootstrap": []})
    process = subprocess.Popen([hyperswarm.find_node(), SIDECAR / "bootstrap.js", options], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    # This closes its stdin, which ends the process, and waits.
    atexit.register(process.communicate)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, "bootstrap.js ended before it was ready"
    return [PeerAddress(node["host"], node["port"]) for node in json.loads(line)["nodes"]]


@asynccontextmanager
async def dht(nodes: int = 3, ports: Sequence[int] | None = None, beside: Sequence[PeerAddress] = ()) -> AsyncIterator[list[PeerAddress]]:
    """Run a private DHT and yield its addresses. ``ports`` restarts one at its old ports; ``beside`` joins it to another DHT."""
    chosen = list(ports or free_ports(nodes))
    others = [{"host": node.host, "port": node.port} for node in beside]
    async with companion("bootstrap.js", {"host": HOST, "ports": chosen, "bootstrap": others}) as (_, ready):
        yield [PeerAddress(node["host"], node["port"]) for node in ready["nodes"]]


@asynccontextmanager
async def relay(bootstrap: Sequence[PeerAddress]) -> AsyncIterator[Relay]:
    """Run a blind relay for the peers of that DHT."""
    nodes = [{"host": node.host, "port": node.port} for node in bootstrap]
    options = {"seed": secrets.token_hex(32), "host": HOST, "port": free_ports(1)[0], "bootstrap": nodes}
    async with companion("relay.js", options) as (process, ready):
        yield Relay(bytes.fromhex(ready["key"]), process)


@asynccontextmanager
async def companion(script: str, options: dict[str, object]) -> AsyncIterator[tuple[asyncio.subprocess.Process, dict[str, Any]]]:
    """Run a program of the sidecar's folder. Yield its process and the data that it prints when it is ready."""
    process = await asyncio.create_subprocess_exec(
        hyperswarm.find_node(), SIDECAR / script, json.dumps(options), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with asyncio.timeout(START_SECONDS):
            line = await process.stdout.readline()
        assert line, f"{script} ended before it was ready"
        yield process, json.loads(line)
    finally:
        process.stdin.close()
        await process.wait()


def free_ports(count: int) -> list[int]:
    """Return UDP ports that no one else gets in the meantime, because sidecars of other tests take some."""
    return [testnet.free_port(is_udp=True) for _ in range(count)]
