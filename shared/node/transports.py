"""A node's transports and its connections over them."""

import math
import time
from collections.abc import Callable

from shared import errors
from shared.api.gateway import Check
from shared.identity.trust import Trust
from shared.protocol import topics
from shared.protocol.directory import Directory
from shared.rpc.connection import RpcConnection
from shared.rpc.serving import Dispatcher
from shared.telemetry.readiness import OwnCheck
from shared.transports.link import Link
from shared.transports.nats_link import NatsTransport
from shared.transports.swarm_transport import SwarmTransport
from shared.types import NodeId, Peer, Role

MAX_FAULTS = 500


class Transports:
    """Owned by one node. At least one of the two transports is not None."""

    def __init__(
        self, trust: Trust, nodes: Directory, nats: NatsTransport | None, swarm: SwarmTransport | None, dispatcher: Dispatcher | None
    ) -> None:
        self.nats = nats
        self.swarm = swarm
        self._trust = trust
        self._nodes = nodes
        self._dispatcher = dispatcher
        #: Called with a peer whose revocation list is newer than ours.
        self.on_number: Callable[[NodeId, int], None] = lambda node, number: None
        #: Called with a link that the peer opened.
        self.on_link: Callable[[Link], None] = lambda link: None
        self._connections: set[RpcConnection] = set()
        self._hears_nats = True
        self._nats_back_at = -math.inf
        #: Over Hyperswarm there is one link per pair of nodes, used by calls in both directions.
        self._by_swarm: dict[NodeId, RpcConnection] = {}
        for transport in self.transports():
            transport.on_link = self._opened
            transport.on_number = self._record_list_number

    def transports(self) -> list[NatsTransport | SwarmTransport]:
        return [transport for transport in (self.nats, self.swarm) if transport is not None]

    def connections(self) -> list[RpcConnection]:
        return list(self._connections)

    def links(self) -> list[Link]:
        return [*(self.nats.links() if self.nats else ()), *(self.swarm.links() if self.swarm else ())]

    def listening(self) -> tuple[str, ...]:
        """Return the transports on which announcements can be received now."""
        nats = ("nats",) if self.nats is not None and self.nats.hears else ()
        return (*nats, "swarm") if self.swarm is not None and self.swarm.connected else nats

    @property
    def is_over_web(self) -> bool:
        return self.nats is not None and self.nats.nats.is_over_web

    @property
    def nats_back_at(self) -> float:
        """Return when our own connection to NATS came back, by ``time.monotonic``: infinity while it is lost, and its opposite if it never
        was, or isn't used."""
        return self._nats_back_at

    def note_connection(self) -> bool:
        """Tell the directory whether nodes can be heard over NATS. Call it on each change, and regularly, because a server that hangs makes
        no event. Return whether the connection has just come back."""
        if self.nats is None or self.nats.hears == self._hears_nats:
            return False
        self._hears_nats = not self._hears_nats
        if self._hears_nats:
            self._nats_back_at = time.monotonic()
            self._nodes.transport_back("nats")
        else:
            self._nats_back_at = math.inf
            self._nodes.transport_lost("nats")
        return self._hears_nats

    def checks(self) -> tuple[Check, ...]:
        found: list[Check] = []
        if self.nats is not None:
            kind = OwnCheck if self.nats.is_trouble_ours else Check
            found.append(kind("NATS", not self.nats.trouble, self.nats.trouble))
        if self.swarm is not None:
            # Its only troubles are those of our own sidecar.
            found.append(OwnCheck("Hyperswarm", self.swarm.connected, "" if self.swarm.connected else self.swarm.trouble))
        return tuple(found)

    def trouble(self) -> str:
        """Return why this node receives no announcements; empty while one transport works."""
        if self.listening():
            return ""
        return "; ".join(check.detail for check in self.checks())

    def faults(self) -> str:
        """Return what is wrong with any transport, even if another one works; empty if nothing is."""
        return "; ".join(f"{check.name}: {check.detail}" for check in self.checks() if not check.ok)[:MAX_FAULTS]

    def refusal(self) -> errors.AimeshError | None:
        """Return why no node will talk to us again, or None."""
        if self._trust.is_revoked:
            return errors.NodeRevoked("this machine was revoked", hint="ask an administrator for a new ticket and join with it")
        if self._trust.certificate and not self._trust.has_certificate(time.time()):
            return errors.CertificateExpired("the certificate of this node has expired", hint="find out why: aicli doctor --worker")
        return None

    def round_trip_seconds(self, node: NodeId) -> float | None:
        """Return the shortest last measurement of all links to a node; None without one."""
        measured = [link.round_trip_seconds for link in self.links() if link.peer.node == node and link.round_trip_seconds is not None]
        return min(measured, default=None)

    def is_revoked(self, node: NodeId) -> bool:
        return node in self._trust.revoked

    def find(self, role: Role) -> RpcConnection | None:
        """Return an open Hyperswarm connection to a node of this role, even if it has not announced itself."""
        return next((each for each in self._by_swarm.values() if each.peer.role is role and each.is_usable), None)

    async def reach(self, peer: Peer, transport: str) -> RpcConnection:
        """Connect to a peer over one transport. Raises PeerError, NodeRevoked, and WrongRole if SPEAKS_TO forbids the call: NATS would drop
        the HELLO silently, and the link would take the peer for dead."""
        if not topics.may_call(self._trust.role, peer.role):
            raise errors.WrongRole(f"the role {self._trust.role} may not call {peer.role}", hint="see shared/protocol/topics.py")
        self._trust.check_not_revoked(peer.node)
        if transport == "nats" and self.nats is not None:
            return self._adopt(await self.nats.dial(peer))
        connection = self._by_swarm.get(peer.node)
        if connection is None:
            raise errors.NotReachable(f"there is no Hyperswarm link to {peer.role} {peer.node[:8]}", retry_after_seconds=1)
        return connection

    def record_list_number(self, node: NodeId, number: int) -> None:
        """Note the number of a peer's revocation list."""
        if number > self._trust.number:
            self.on_number(node, number)

    def _record_list_number(self, link: Link, number: int) -> None:
        if topics.may_call(self._trust.role, link.peer.role):
            self.record_list_number(link.peer.node, number)

    def _opened(self, link: Link) -> None:
        connection = self._adopt(link)
        if link.transport == "swarm" and topics.may_call(self._trust.role, link.peer.role):
            self._by_swarm[link.peer.node] = connection
        self.on_link(link)

    def _adopt(self, link: Link) -> RpcConnection:
        # Workers link only for their sidecars to copy blocks.
        dispatcher = self._dispatcher if topics.may_call(self._trust.role, link.peer.role) else None
        connection = RpcConnection(link, dispatcher)
        connection.on_closed.append(self._closed)
        self._connections.add(connection)
        return connection

    def _closed(self, connection: RpcConnection) -> None:
        self._connections.discard(connection)
        link = connection.link
        if link.transport == "swarm" and self._by_swarm.get(link.peer.node) is connection:
            del self._by_swarm[link.peer.node]
            why = link.closed.message if link.closed is not None else "its link ended"
            self._nodes.remove_route(link.peer.node, "swarm", why)
