"""A node that only calls: `aicli`, and the supervisor's first steps. Imports little, because a person waits for it."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from shared import identity
from shared.directory import Directory
from shared.link import Me
from shared.nats_link import NatsTransport
from shared.node.announcing import Announcer
from shared.node.lifecycle import background
from shared.rpc.calling import Client
from shared.rpc.pool import Pool
from shared.types import MeshName, Role

SOFTWARE = "aimesh/0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings:
    mesh: MeshName
    nats_url: str
    node_key_file: Path
    #: Who vouches for the NATS server's certificate; None means the public authorities.
    nats_ca_file: Path | None = None
    #: How long to wait for the NATS server.
    connect_seconds: float = 3.0


@dataclass(frozen=True, slots=True)
class ClientNode:
    """What a caller has of the mesh."""

    rpc: Client
    directory: Directory


@asynccontextmanager
async def client(settings: ClientSettings) -> AsyncIterator[ClientNode]:
    """Join as a client; raises Unavailable if the NATS server is not there, BadSettings if the key cannot be used."""
    key = identity.load(settings.node_key_file)
    transport = NatsTransport(Me(settings.mesh, Role.CLIENT, key, SOFTWARE), settings.nats_url, settings.nats_ca_file)
    await transport.connect(deadline_seconds=settings.connect_seconds)
    try:
        nodes = Directory(asyncio.get_running_loop().time)
        announcer = Announcer(transport, nodes, None)
        async with background() as tasks:
            tasks.create_task(transport.run())
            announcer.start()
            tasks.create_task(announcer.run())
            pool = Pool(nodes, transport.dial, None, random.Random())  # noqa: S311 - spreads load
            yield ClientNode(Client(pool), nodes)
    finally:
        await transport.close()
