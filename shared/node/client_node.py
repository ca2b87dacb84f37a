"""A node that only calls, for `aicli`, the supervisor's first steps and the backup agent. Imports little, because users wait for it."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shared.identity import node_keys
from shared.identity.trust import Trust
from shared.node.announcements import Announcer
from shared.node.lifecycle import background
from shared.node.transports import Transports
from shared.protocol.directory import Directory
from shared.rpc.calling import RpcClient
from shared.rpc.connection_pool import WAIT_SECONDS, ConnectionPool
from shared.transports.link import LocalNode
from shared.transports.nats.login import NatsFiles
from shared.transports.nats_link import NatsTransport
from shared.types import MeshName, Role

if TYPE_CHECKING:
    from shared.transports.swarm_transport import SwarmTransport

SOFTWARE = "aimesh/0.1"
#: How long a call over Hyperswarm waits for a node to be found: hole punching and relays take time.
OUTSIDE_SECONDS = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings:
    mesh: MeshName
    nats_url: str | None
    node_key_file: Path
    #: The state file of `aicli mesh connect`; None to use only NATS.
    mesh_file: Path | None = None
    nats_ca_file: Path | None = None
    #: The client certificate and key, if the NATS server wants one; or a credentials file instead of the node key.
    nats_cert_file: Path | None = None
    nats_key_file: Path | None = None
    nats_creds_file: Path | None = None
    connect_seconds: float = 3.0
    node_binary: Path | None = None
    #: Over NATS, any role that only calls.
    role: Role = Role.CLIENT


@dataclass(frozen=True, slots=True)
class ClientNode:
    rpc: RpcClient
    directory: Directory
    node_transports: Transports


@asynccontextmanager
async def client(settings: ClientSettings) -> AsyncIterator[ClientNode]:
    """Join as a client. Raises Unavailable if the NATS server is not there, BadSettings if the key cannot be used."""
    key = node_keys.load(settings.node_key_file)
    if settings.mesh_file is None:
        me, trust = LocalNode(settings.mesh, settings.role, key, SOFTWARE), Trust(key, settings.role)
        files = NatsFiles(
            ca=settings.nats_ca_file, cert=settings.nats_cert_file, key=settings.nats_key_file, creds=settings.nats_creds_file
        )
        nats = NatsTransport(me, settings.nats_url or "", files, trust)
        await nats.connect(deadline_seconds=settings.connect_seconds)
        async with _calling(me, trust, nats, None) as (node, tasks):
            yield node
        return
    # Imported when needed: clients on NATS do not wait for it.
    from shared.node import delegated_node  # noqa: PLC0415

    membership = await delegated_node.load(settings.mesh_file, key)
    outside: delegated_node.Delegate | delegated_node.ProfileOnNats | None = None
    if membership.nats:
        outside = await delegated_node.over_nats(membership, settings.mesh_file, key, SOFTWARE, settings.connect_seconds)
    outside = outside or delegated_node.prepare(membership, settings.mesh_file, key, settings.node_binary, SOFTWARE)
    async with _calling(outside.me, outside.trust, outside.nats, outside.swarm) as (node, tasks):
        tasks.create_task(outside.keep(node.directory, node.rpc, node.node_transports))
        yield node


@asynccontextmanager
async def _calling(
    me: LocalNode, trust: Trust, nats: NatsTransport | None, swarm: "SwarmTransport | None"
) -> AsyncIterator[tuple[ClientNode, asyncio.TaskGroup]]:
    """Open a node on one of the two transports that serves nothing."""
    nodes = Directory(asyncio.get_running_loop().time)
    node_transports = Transports(trust, nodes, nats, swarm, None)
    announcer = Announcer(me, node_transports, nodes, None)
    try:
        async with background() as tasks:
            for transport in node_transports.transports():
                tasks.create_task(transport.run())
            announcer.start()
            tasks.create_task(announcer.run())
            rng = random.Random()  # noqa: S311 - spreads load
            wait_seconds = WAIT_SECONDS if swarm is None else OUTSIDE_SECONDS
            pool = ConnectionPool(
                nodes,
                node_transports.reach,
                rng,
                wait_seconds=wait_seconds,
                trouble=node_transports.trouble,
                refusal=node_transports.refusal,
            )
            yield ClientNode(RpcClient(pool), nodes, node_transports), tasks
    finally:
        for transport in node_transports.transports():
            await transport.close()
