"""The public segment's DHT nodes and blind relay: the package's own programs, on made-up addresses."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pyhyperswarm
from pyhyperswarm import find_node

from tests.nat.topology import PUBLIC_ADDRESSES, Machine

SIDECAR = Path(pyhyperswarm.__file__).parent / "sidecar"
#: Three nodes on one address, because a single node can't introduce peers to each other.
PORTS = (49737, 49738, 49739)
DHT_ADDRESS, RELAY_ADDRESS = PUBLIC_ADDRESSES[0], PUBLIC_ADDRESSES[4]
BOOTSTRAP = tuple(f"{DHT_ADDRESS}:{port}" for port in PORTS)
READY_SECONDS = 60.0


@dataclass(slots=True)
class Companion:
    """A program that runs until its standard input ends, and the data that it printed when it was ready."""

    process: asyncio.subprocess.Process
    ready: dict[str, object]

    async def kill(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()


async def start(machine: Machine, program: str, **options: object) -> Companion:
    """Start one of the sidecar's programs on that machine and wait until it is ready."""
    process = await machine.start(str(find_node()), str(SIDECAR / program), json.dumps(options))
    assert process.stdout is not None
    async with asyncio.timeout(READY_SECONDS):
        line = await process.stdout.readline()
    assert line, f"{program} ended before it was ready"
    return Companion(process, json.loads(line))


async def start_dht(machine: Machine) -> Companion:
    return await start(machine, "bootstrap.js", host=DHT_ADDRESS, ports=PORTS)


@asynccontextmanager
async def dht(machine: Machine) -> AsyncIterator[Companion]:
    """Run three DHT nodes at BOOTSTRAP."""
    running = await start_dht(machine)
    try:
        yield running
    finally:
        await running.kill()


@asynccontextmanager
async def relay(machine: Machine) -> AsyncIterator[str]:
    """Run a blind relay and yield its public key in hex."""
    nodes = [{"host": DHT_ADDRESS, "port": port} for port in PORTS]
    running = await start(machine, "relay.js", seed="07" * 32, host=RELAY_ADDRESS, port=PORTS[0], bootstrap=nodes)
    try:
        yield str(running.ready["key"])
    finally:
        await running.kill()
