"""A private DHT and a blind relay on loopback, for examples and tests. Both end with this program.

Tests that do not break the DHT use ``shared()``, because starting a DHT takes a Node process and a second of CPU time.
"""

import asyncio
import atexit
import json
import random
import secrets
import socket
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from pyhyperswarm.peer_connection import PeerAddress
from pyhyperswarm.sidecar_process import SIDECAR, find_node

HOST: Final = "127.0.0.1"
START_SECONDS: Final = 60
#: Above most servers, and below the ports that systems take for connections.
_PORTS: Final = range(20_000, 32_768)


@dataclass(frozen=True, slots=True)
class Relay:
    key: bytes
    process: asyncio.subprocess.Process


@cache
def shared() -> list[PeerAddress]:
    """Return the addresses of the DHT that everything in this process shares. Do not stop it, and use new topics and keys."""
    options = json.dumps({"host": HOST, "ports": free_ports(3), "bootstrap": []})
    command = [str(find_node()), str(SIDECAR / "bootstrap.js"), options]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: S603 - our own program
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
        find_node(), SIDECAR / script, json.dumps(options), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
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
    """Return UDP ports that are free now. Sidecars of others take none of them in the meantime."""
    found: list[int] = []
    for port in random.sample(_PORTS, len(_PORTS)):
        if len(found) == count:
            break
        with socket.socket(type=socket.SOCK_DGRAM) as probe, suppress(OSError):
            probe.bind((HOST, port))
            found.append(port)
    return found
