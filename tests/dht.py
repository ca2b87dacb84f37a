"""A private DHT and a blind relay on loopback, for tests of what runs over Hyperswarm. Both die with the test run.

Tests that do not break the DHT use ``shared()``: starting one takes a Node process and a second of a processor.
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
    """The addresses of the one DHT of this process, which nobody may end. Topics and keys have to be new ones."""
    options = json.dumps({"host": HOST, "ports": free_ports(3), "bootstrap": []})
    process = subprocess.Popen([hyperswarm.find_node(), SIDECAR / "bootstrap.js", options], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    # Closes its stdin, by which it ends, and waits.
    atexit.register(process.communicate)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, "bootstrap.js ended before it was ready"
    return [PeerAddress(node["host"], node["port"]) for node in json.loads(line)["nodes"]]


@asynccontextmanager
async def dht(nodes: int = 3, ports: Sequence[int] | None = None, beside: Sequence[PeerAddress] = ()) -> AsyncIterator[list[PeerAddress]]:
    """The addresses of a DHT of one's own; ``ports`` brings one back where it was, ``beside`` makes it one DHT with another."""
    chosen = list(ports or free_ports(nodes))
    others = [{"host": node.host, "port": node.port} for node in beside]
    async with companion("bootstrap.js", {"host": HOST, "ports": chosen, "bootstrap": others}) as (_, ready):
        yield [PeerAddress(node["host"], node["port"]) for node in ready["nodes"]]


@asynccontextmanager
async def relay(bootstrap: Sequence[PeerAddress]) -> AsyncIterator[Relay]:
    """A blind relay that the peers of that DHT can use."""
    nodes = [{"host": node.host, "port": node.port} for node in bootstrap]
    options = {"seed": secrets.token_hex(32), "host": HOST, "port": free_ports(1)[0], "bootstrap": nodes}
    async with companion("relay.js", options) as (process, ready):
        yield Relay(bytes.fromhex(ready["key"]), process)


@asynccontextmanager
async def companion(script: str, options: dict[str, object]) -> AsyncIterator[tuple[asyncio.subprocess.Process, dict[str, Any]]]:
    """A program of the sidecar's folder, and what it said when it was ready."""
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
    """UDP ports that nobody else gets meanwhile: each sidecar of another test takes some."""
    return [testnet.free_port(is_udp=True) for _ in range(count)]
