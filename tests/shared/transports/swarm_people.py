"""A mesh CA, and nodes that it has certified, for tests of admission."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from shared import errors
from shared.identity import certificates, node_keys
from shared.identity.certificates import Subject
from shared.identity.trust import Trust
from shared.protocol import wire
from shared.protocol.wire import Hello
from shared.transports.handshake import HandshakeRefusal, link_id
from shared.transports.link import Link, LocalNode
from shared.transports.swarm_transport import SwarmTransport
from shared.types import MeshName, NodeId, Role
from tests.shared.transports.swarm_fakes import FakeConnection, FakeSwarm, pair

NOW = 1_767_225_600.0
MESH = MeshName("test")


class Clock:
    """Seconds since 1970, set by the test."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


def new_key() -> node_keys.NodeKey:
    return node_keys.NodeKey(node_keys.new_seed())


def new_authority() -> node_keys.Authority:
    return node_keys.Authority(node_keys.new_authority_seed())


def certified(role: Role, authority: node_keys.Authority, key: node_keys.NodeKey | None = None, now: float = NOW) -> Trust:
    """Return what a node of that role trusts and presents."""
    key = key or new_key()
    trust = Trust(key, role, (authority.id,))
    trust.certificate = certificates.issue(authority, Subject(key.id, role, "ada", (("gpu", "a100"),)), now)
    return trust


@dataclass
class Member:
    """A running transport, and all that it reported."""

    trust: Trust
    transport: SwarmTransport
    swarm: FakeSwarm
    links: list[Link] = field(default_factory=list)
    announcements: list[tuple[NodeId, bytes]] = field(default_factory=list)
    refusals: list[HandshakeRefusal] = field(default_factory=list)
    numbers: list[tuple[NodeId, int]] = field(default_factory=list)
    unreachable: list[tuple[NodeId, str]] = field(default_factory=list)
    attached: list[bool] = field(default_factory=list)
    lost: list[errors.AimeshError] = field(default_factory=list)

    @property
    def id(self) -> NodeId:
        return self.trust.me.id

    def link_to(self, other: "Member") -> Link:
        link = self.transport.find(other.id)
        assert link is not None, [refusal.why.message for refusal in self.refusals + other.refusals]
        return link


@asynccontextmanager
async def member(trust: Trust, clock: Clock, swarm: FakeSwarm | None = None) -> AsyncIterator[Member]:
    """Run a transport over a fake swarm (or over ``swarm``)."""
    swarm = swarm or FakeSwarm(trust.me)
    transport = SwarmTransport(LocalNode(MESH, trust.role, trust.me, "aimesh/test"), trust, lambda: swarm, clock=clock)
    found = Member(trust, transport, swarm)

    def take(link: Link) -> None:
        found.links.append(link)
        link.on_closed = found.lost.append

    transport.on_link = take
    transport.on_announcement = lambda link, body: found.announcements.append((link.peer.node, body))
    transport.on_refused = found.refusals.append
    transport.on_number = lambda link, number: found.numbers.append((link.peer.node, number))
    transport.on_unreachable = lambda node, why: found.unreachable.append((node, why))
    transport.on_attached = found.attached.append
    task = asyncio.create_task(transport.run())
    try:
        yield found
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await transport.close()


async def settle() -> None:
    """Let everything that was sent arrive and take effect; no time passes."""
    for _ in range(30):
        await asyncio.sleep(0)


def frames_of(connection: FakeConnection) -> list[wire.Frame]:
    """Return everything that this end has sent."""
    return [frame for message in connection.sent for frame in wire.decode(message)]


def stranger_at(found: Member, *, key: node_keys.NodeKey | None = None) -> FakeConnection:
    """Open a new connection to a member and return its far end; ``send`` there speaks for the stranger."""
    ours, theirs = pair(found.swarm.key.raw, (key or new_key()).raw)
    found.swarm.bring(ours)
    return theirs


def hello_for(trust: Trust, connection: FakeConnection, now: float = NOW) -> Hello:
    """Return the HELLO of ``trust`` on its end of a connection."""
    return trust.hello(node_keys.node_of(connection.key), link_id(connection), "aimesh/test", now)  # type: ignore[arg-type]  # a fake
