"""A node's swarm and its links: joins topics, enforces revocations, and follows the sidecar's state."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from pyhyperswarm import (
    Event,
    PathChanged,
    PeerAddress,
    PeerConnection,
    PeerFailed,
    Request,
    SidecarDied,
    SidecarRestarted,
    Swarm,
    SwarmError,
    SwarmFollower,
)

from shared import errors
from shared.identity import node_keys
from shared.identity.trust import Trust, TrustedPeer
from shared.protocol import topics
from shared.protocol.duplicate_keys import DuplicateLinks
from shared.protocol.wire import Announce, Frame, Hello
from shared.timing.backoff import Backoff
from shared.transports.handshake import Handshake, HandshakeRefusal
from shared.transports.link import TICK_SECONDS, Link, LocalNode
from shared.transports.swarm_link import SwarmLink
from shared.types import NodeId, Role

#: The two values of ``{relay}`` below.
_NO_RELAY, _RELAY_FAILED = "no relay configured", "the relay did not help"

#: For the error codes of hyperdht (lib/errors.js) and our sidecar.
_WORDS = {
    "HOLEPUNCH_DOUBLE_RANDOMIZED_NATS": "no path: symmetric NAT on both sides and {relay}",
    "HOLEPUNCH_ABORTED": "no path: the NATs between us block everything and {relay}",
    "HOLEPUNCH_PROBE_TIMEOUT": "no path: one of the NATs could not be classified in time and {relay}",
    "HOLEPUNCH_INVALID": "the peer's hole punching answer was invalid: update the older node",
    "BAD_HOLEPUNCH_REPLY": "the peer's hole punching answer was invalid: update the older node",
    "CANNOT_HOLEPUNCH": "no path: the peer's network cannot be punched through and {relay}",
    "REMOTE_NOT_HOLEPUNCHING": "no path: the peer gave up punching and {relay}",
    "REMOTE_NOT_HOLEPUNCHABLE": "no path: the peer's network cannot be punched through and {relay}",
    "REMOTE_ABORTED": "no path: the peer gave up punching and {relay}",
    "RELAY_ABORTED": "no path: the relay does not answer, or has no room",
    "PEER_NOT_FOUND": "no DHT node knows where it is: it is off, or its network blocks UDP",
    "PEER_CONNECTION_FAILED": "it was online a moment ago but does not answer: it is off, or has just moved",
    "HANDSHAKE_UNFINISHED": "it did not finish the handshake: it is off, or refuses us",
    "HANDSHAKE_INVALID": "its handshake was invalid: something between us changes packets, or it is very old",
    "BAD_HANDSHAKE_REPLY": "its handshake was invalid: something between us changes packets, or it is very old",
    "SERVER_INCOMPATIBLE": "it uses another version of Hyperswarm: update the older node",
    "SERVER_ERROR": "it failed while accepting our connection; see its log",
    "NO_PREFACE": "the connection opened but carried nothing: no path yet; retrying",
    "BAD_PREFACE": "whatever answers there is not a node of a mesh",
    "FLOW_CONTROL": "it sent more than allowed",
    "ETIMEDOUT": "it stopped answering while the connection opened",
    "ECONNRESET": "it closed the connection while it opened",
    "SUSPENDED": "our own network is asleep",
    "NODE_DESTROYED": "our own Hyperswarm is stopping",
}


def words_for(code: str, text: str, *, has_relay: bool) -> str:
    """Return a sentence for an error code. ``text`` is the library's own, for codes that this version does not know."""
    words = _WORDS.get(code)
    if words is None:
        return f"no path: {text or code}"
    return words.format(relay=_RELAY_FAILED if has_relay else _NO_RELAY)


RESTART_BACKOFF = Backoff(first_seconds=0.5, longest_seconds=30.0)
#: How soon to repeat a command that the sidecar did not accept, or another lookup of a topic.
AGAIN_SECONDS = 3.0
#: Between the last message to a revoked node and the firewall, which would block it. Our side of the link is closed already.
GOODBYE_SECONDS = 0.25
#: Open links of peers without a certificate, at auth.
MAX_NEWCOMERS = 20


@dataclass(frozen=True, slots=True)
class MeetingTopics:
    """A topic, and whether to announce ourselves there, look for others, or both."""

    topic: bytes
    announce: bool
    look: bool


#: The trouble until the first sidecar is ready, which takes many seconds on an overloaded machine.
STARTING = "Hyperswarm is starting"


class SwarmTransport:
    """``run`` must be running while it is used. ``trust.me`` is the key that Noise proves: the node's own, or that of a process acting
    for a client profile. No two running swarms may have the same key."""

    def __init__(
        self,
        me: LocalNode,
        trust: Trust,
        open_swarm: Callable[[], Swarm],
        *,
        copies: SwarmFollower | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.me = me
        self.trust = trust
        self.loop = asyncio.get_running_loop()
        #: Called with every link once the peer's HELLO was valid.
        self.on_link: Callable[[Link], None] = lambda link: None
        self.on_announcement: Callable[[Link, bytes], None] = lambda link, body: None
        self.on_refused: Callable[[HandshakeRefusal], None] = lambda refusal: None
        #: Called when a peer has a newer revocation list than we have.
        self.on_number: Callable[[Link, int], None] = lambda link, number: None
        #: Called when a peer was found but could not be reached, with the reason in plain words.
        self.on_unreachable: Callable[[NodeId, str], None] = lambda node, why: None
        #: Called with a node whose link is replaced again and again, as when two processes use its key.
        self.on_contested: Callable[[NodeId], None] = lambda node: None
        self.on_attached: Callable[[bool], None] = lambda attached: None
        #: Why we are not attached; empty while we are.
        self.trouble = STARTING
        #: Answers stock @hyperswarm/rpc clients. Set it before ``run``; None refuses them.
        self.on_request: Callable[[Request], Awaitable[bytes]] | None = None
        self.on_requester_gone: Callable[[bytes], None] = lambda channel: None
        self.restarts = 0
        self._open_swarm = open_swarm
        self._copies = copies or SwarmFollower()
        self._swarm: Swarm | None = None
        self._clock = clock
        self._handshake = Handshake(trust, me.software, clock)
        self._handshake.on_admitted = self._open
        self._handshake.on_refused = lambda refusal: self.on_refused(refusal)  # noqa: PLW0108 - it may be replaced
        self._links: dict[NodeId, SwarmLink] = {}
        self._duplicate_links = DuplicateLinks()
        #: Current and former DHT nodes to start with; None for those of ``open_swarm``.
        self._bootstrap: tuple[Sequence[PeerAddress] | None, Sequence[PeerAddress]] | None = None
        self._wanted: dict[bytes, MeetingTopics] = {}
        self._joined: dict[bytes, MeetingTopics] = {}
        self._denied: frozenset[NodeId] = frozenset()
        self._deny_at = 0.0
        self._changed = asyncio.Event()
        self._is_closed = False
        trust.on_revoked.append(self._on_revoked)

    @property
    def connected(self) -> bool:
        return not self.trouble

    @property
    def strangers_refused(self) -> int:
        return self._handshake.refused

    async def run(self) -> None:
        """Keep a swarm open and monitor the links. Ends by cancellation."""
        failures = 0
        while True:
            try:
                swarm = self._open_swarm()
                swarm.on_event = lambda event, of=swarm: self._on_event(of, event)  # type: ignore[misc]  # bound by the default
                swarm.on_request, swarm.on_requester_gone = self.on_request, self.on_requester_gone
                swarm.copies = self._copies
                async with swarm:
                    failures = 0
                    await self._live(swarm)
            except* SwarmError as failed:
                self._set_trouble(f"Hyperswarm is not running: {errors.first_of(failed)}")
            failures += 1
            await asyncio.sleep(RESTART_BACKOFF.pause(failures))

    def meet(self, meetings: Sequence[MeetingTopics]) -> None:
        """Join these topics, and no others."""
        self._wanted = {meeting.topic: meeting for meeting in meetings if meeting.announce or meeting.look}
        self._changed.set()

    def set_initial_nodes(self, bootstrap: Sequence[PeerAddress] | None, older: Sequence[PeerAddress]) -> None:
        """Start the DHT with these nodes instead of those of ``open_swarm``. ``older`` are their former addresses."""
        self._bootstrap = (bootstrap, older)
        self._changed.set()

    async def close(self, why: errors.AimeshError | None = None) -> None:
        """Close every link, tell the peers, and accept no more. The swarm itself ends with ``run``. Safe to call twice."""
        self._is_closed = True
        self._end_all(why or errors.LinkLost("this node is stopping", retry_after_seconds=0.2))
        if self._on_revoked in self.trust.on_revoked:
            self.trust.on_revoked.remove(self._on_revoked)

    async def dht_nodes(self) -> tuple[str, ...]:
        """Return DHT nodes that are online now, as host:port; empty if unknown."""
        if self._swarm is None:
            return ()
        try:
            return tuple(str(node) for node in await self._swarm.dht_nodes())
        except SwarmError:
            return ()

    def find(self, node: NodeId) -> Link | None:
        return self._links.get(node)

    def links(self) -> list[SwarmLink]:
        return list(self._links.values())

    def announce(self, body: bytes) -> None:
        """Announce this node to all peers that may know. A peer that does not read gets the next announcement instead."""
        for link in self.links():
            if link.own_role in topics.SEES_ANNOUNCEMENTS_OF[link.peer.role] and not link.is_full:
                link.send(Announce(body))

    def rehello(self) -> None:
        """Show our new certificate on every open link."""
        for link in self.links():
            hello = self._handshake.hello(link.connection)
            link.own_role = hello.role
            link.send(hello)

    def admit(self, connection: PeerConnection, hello: Hello) -> TrustedPeer:
        return self._handshake.admit(connection, hello)

    def handle_announcement(self, link: SwarmLink, body: bytes) -> None:
        self.on_announcement(link, body)

    def handle_list_number(self, link: SwarmLink, number: int) -> None:
        if number > self.trust.number:
            self.on_number(link, number)

    def forget(self, link: SwarmLink) -> None:
        if self._links.get(link.peer.node) is link:
            del self._links[link.peer.node]
        if link.fell_silent:
            self._handshake.missed.update(link.connection.topics)

    def _open(self, connection: PeerConnection, hello: Hello, admitted: TrustedPeer, own_role: Role, frames: list[Frame]) -> None:
        peer = admitted.peer
        if peer.role is Role.NEWCOMER and self._count_other_newcomers(peer.node) >= MAX_NEWCOMERS:
            self._handshake.reject(connection)
            return
        old = self._links.get(peer.node)
        if old is not None:
            old.close(errors.LinkLost("replaced by a newer connection of the same node", retry_after_seconds=0.1))
        link = SwarmLink(self, connection, hello, admitted, own_role)
        self._links[peer.node] = link
        if self._duplicate_links.opened(peer.node, self.loop.time()):
            self.on_contested(peer.node)
        connection.open_window()
        self.on_link(link)
        self.handle_list_number(link, hello.revocations)
        if frames:
            link.read(frames)
        if link.closed is None:
            link.start()

    def _count_other_newcomers(self, node: NodeId) -> int:
        return sum(1 for link in self._links.values() if link.peer.role is Role.NEWCOMER and link.peer.node != node)

    def _end_all(self, why: errors.AimeshError) -> None:
        for link in self.links():
            link.close(why)
        self._handshake.close(why)

    def _on_revoked(self, nodes: frozenset[NodeId]) -> None:
        for link in self.links():
            if link.peer.node in nodes or link.peer.certified in nodes:
                link.close(errors.NodeRevoked("this node was revoked", hint="an administrator can make a new ticket for the machine"))
                self._deny_at = self.loop.time() + GOODBYE_SECONDS
        self.loop.call_at(self._deny_at, self._changed.set)

    async def _live(self, swarm: Swarm) -> None:
        self._joined = {}
        self._denied = frozenset()
        self._swarm = swarm
        self._set_trouble("")
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._accept(swarm))
                tasks.create_task(self._steer(swarm))
                tasks.create_task(self._tick())
        finally:
            self._swarm = None
            self._set_trouble("Hyperswarm is not running")
            self._end_all(errors.LinkLost("this node is stopping", retry_after_seconds=0.2))

    async def _accept(self, swarm: Swarm) -> None:
        async for connection in swarm:
            if self._is_closed:
                self._handshake.reject(connection)
            else:
                self._handshake.handle_connection(connection)
        raise SwarmError("the swarm has ended")

    async def _steer(self, swarm: Swarm) -> None:
        """Apply the wanted topics, firewall and DHT nodes to the swarm whenever they change."""
        while True:
            self._changed.clear()
            try:
                await self._reconcile(swarm)
            except SwarmError:
                await asyncio.sleep(AGAIN_SECONDS)  # the sidecar is being restarted
                continue
            await self._changed.wait()

    async def _reconcile(self, swarm: Swarm) -> None:
        revoked = self.trust.revoked
        if revoked != self._denied and self.loop.time() >= self._deny_at:
            await swarm.deny(frozenset(node_keys.raw_of(node) for node in revoked))
            self._denied = revoked
        if self._bootstrap is not None and self._bootstrap != (swarm.bootstrap, swarm.older):
            await swarm.set_bootstrap(*self._bootstrap)
        for topic in self._joined.keys() - self._wanted.keys():
            await swarm.leave(topic)
            del self._joined[topic]
        for topic, meeting in list(self._wanted.items()):
            if self._joined.get(topic) != meeting:
                await swarm.join(topic, server=meeting.announce, client=meeting.look)
                self._joined[topic] = meeting
        missed, self._handshake.missed = self._handshake.missed, set()
        for topic in missed & self._joined.keys():
            await swarm.refresh(topic)

    async def _tick(self) -> None:
        looked_up_at = 0.0
        while True:
            await asyncio.sleep(TICK_SECONDS)
            now, wall_clock = self.loop.time(), self._clock()
            for link in self.links():
                link.check_certificate(wall_clock)
                link.tick(now)
            if self._handshake.missed and now - looked_up_at >= AGAIN_SECONDS:
                looked_up_at = now
                self._changed.set()
            if self.trust.revoked != self._denied:
                self._changed.set()  # nodes may also leave the list, which is not reported

    def _on_event(self, swarm: Swarm, event: Event) -> None:
        match event:
            case SidecarDied():
                self._set_trouble("the Hyperswarm sidecar died and is being restarted")
            case SidecarRestarted():
                self.restarts += 1
                self._set_trouble("")
            case PathChanged(connection):
                link = self._links.get(node_keys.node_of(connection.key))
                if link is not None and link.connection is connection:
                    link.path = str(connection.path)
            case PeerFailed(key=key, code=code, text=text):
                node = node_keys.node_of(key)
                if node not in self._links:
                    self.on_unreachable(node, words_for(code, text, has_relay=bool(swarm.relays)))
            case _:
                pass

    def _set_trouble(self, trouble: str) -> None:
        was, self.trouble = self.connected, trouble
        if was != self.connected:
            self.on_attached(self.connected)
