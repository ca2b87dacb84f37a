"""A node's swarm and the links over it: which meeting places it keeps, who is cut off, and what becomes of the sidecar."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from shared import errors
from shared.discovery import topics
from shared.frames.wire import Announce, Hello
from shared.identity import node_keys
from shared.identity.trust import Trust, TrustedPeer
from shared.timing.backoff import Backoff
from shared.transports.hyperswarm import (
    Firewall,
    PathChanged,
    PeerAddress,
    PeerConnection,
    PeerFailed,
    Request,
    SidecarDied,
    SidecarRestarted,
    Swarm,
    SwarmError,
)
from shared.transports.hyperswarm.swarm_events import Event
from shared.transports.link import TICK_SECONDS, Link, LocalNode
from shared.transports.swarm_link.duplicate_links import DuplicateLinks
from shared.transports.swarm_link.handshake import Entrant, Handshake, HandshakeRefusal
from shared.transports.swarm_link.swarm_link import SwarmLink
from shared.types import NodeId, Role

#: What is missing where only a relay can help; and where there is one, that it did not.
_NO_RELAY, _RELAY_FAILED = "no relay configured", "the relay did not help"

#: The codes of hyperdht (lib/errors.js) and of our sidecar. ``{relay}`` becomes one of the two above.
_WORDS = {
    "HOLEPUNCH_DOUBLE_RANDOMIZED_NATS": "no path: symmetric NAT on both sides and {relay}",
    "HOLEPUNCH_ABORTED": "no path: the NATs between us let nothing through and {relay}",
    "HOLEPUNCH_PROBE_TIMEOUT": "no path: one of the NATs did not show what kind it is, in time, and {relay}",
    "HOLEPUNCH_INVALID": "the peer answered the punching with what we do not understand: update the older one",
    "BAD_HOLEPUNCH_REPLY": "the peer answered the punching with what we do not understand: update the older one",
    "CANNOT_HOLEPUNCH": "no path: the peer's network cannot be punched through and {relay}",
    "REMOTE_NOT_HOLEPUNCHING": "no path: the peer gave up punching and {relay}",
    "REMOTE_NOT_HOLEPUNCHABLE": "no path: the peer's network cannot be punched through and {relay}",
    "REMOTE_ABORTED": "no path: the peer gave up punching and {relay}",
    "RELAY_ABORTED": "no path: the relay does not answer, or has no room",
    "PEER_NOT_FOUND": "nobody on the DHT knows where it is: it is off, or its network blocks UDP",
    "PEER_CONNECTION_FAILED": "it was there a moment ago and does not answer: it is off, or has just moved",
    "HANDSHAKE_UNFINISHED": "it did not finish the handshake: it is off, or refuses us",
    "HANDSHAKE_INVALID": "its handshake was invalid: something between us changes packets, or it is very old",
    "BAD_HANDSHAKE_REPLY": "its handshake was invalid: something between us changes packets, or it is very old",
    "SERVER_INCOMPATIBLE": "it speaks another version of Hyperswarm: update the older one",
    "SERVER_ERROR": "it failed while it took our connection; its log says why",
    "NO_PREFACE": "the connection opened and carried nothing: no path yet; it is tried again",
    "BAD_PREFACE": "whoever answers there is no node of a mesh",
    "FLOW_CONTROL": "it sent more than it may",
    "ETIMEDOUT": "it stopped answering while the connection opened",
    "ECONNRESET": "it closed the connection while it opened",
    "SUSPENDED": "our own network is asleep",
    "NODE_DESTROYED": "our own Hyperswarm is stopping",
}


def words_for(code: str, text: str, *, has_relay: bool) -> str:
    """``text`` is what the library said, for a code that a newer one has."""
    words = _WORDS.get(code)
    if words is None:
        return f"no path: {text or code}"
    return words.format(relay=_RELAY_FAILED if has_relay else _NO_RELAY)


#: Between two attempts to start a swarm that does not start, doubled up to the second figure.
RESTART_BACKOFF = Backoff(first_seconds=0.5, longest_seconds=30.0)
#: A command that the sidecar did not take is given again after this; nor is a topic looked up again any sooner.
AGAIN_SECONDS = 3.0
#: Between the farewell to a revoked node and the firewall, which would swallow it. The link is closed on our side already.
FAREWELL_SECONDS = 0.25
#: Open links of peers without a certificate, at auth.
MAX_NEWCOMERS = 20


@dataclass(frozen=True, slots=True)
class MeetingTopics:
    """A topic, and whether we are to be found there, or look for others, or both."""

    topic: bytes
    announce: bool
    look: bool


#: The trouble of a transport whose first sidecar is not ready yet; on an overloaded machine that takes many seconds.
STARTING = "Hyperswarm is starting"


class SwarmTransport:
    """``run`` must run while it is used. ``trust.me`` is the key that Noise proves: the node's own, or that of a process that
    speaks for a client profile. No two running swarms may have the same."""

    def __init__(self, me: LocalNode, trust: Trust, open_swarm: Callable[[], Swarm], *, clock: Callable[[], float] = time.time) -> None:
        self.me = me
        self.trust = trust
        self.loop = asyncio.get_running_loop()
        #: Called with every link, whoever dialled, once the peer's HELLO was good.
        self.on_link: Callable[[Link], None] = lambda link: None
        #: Called with the body of a peer's announcement; may raise ProtocolViolation.
        self.on_announcement: Callable[[Link, bytes], None] = lambda link, body: None
        #: Called with each peer whose HELLO was no good.
        self.on_refused: Callable[[HandshakeRefusal], None] = lambda refusal: None
        #: Called when a peer tells a higher number of the revocation list than ours.
        self.on_number: Callable[[Link, int], None] = lambda link, number: None
        #: Called when a peer was found and could not be reached, with the reason in plain words.
        self.on_unreachable: Callable[[NodeId, str], None] = lambda node, why: None
        #: Called with a node whose link is made anew again and again, as when two processes show its key.
        self.on_contested: Callable[[NodeId], None] = lambda node: None
        #: Called with True when the swarm runs and with False when it is lost.
        self.on_attached: Callable[[bool], None] = lambda attached: None
        #: Why we are not attached, for people; empty while we are.
        self.trouble = STARTING
        #: Answers stock @hyperswarm/rpc clients; to be set before ``run``. None: they are turned away.
        self.on_request: Callable[[Request], Awaitable[bytes]] | None = None
        #: Told the ``channel`` of such a client when its connection is closed.
        self.on_requester_gone: Callable[[bytes], None] = lambda channel: None
        #: How often the sidecar died and was started again.
        self.restarts = 0
        self._open_swarm = open_swarm
        #: The one that runs.
        self._swarm: Swarm | None = None
        self._clock = clock
        self._door = Handshake(trust, me.software, clock)
        self._door.on_entrant = self._open
        self._door.on_refused = self._refused
        self._links: dict[NodeId, SwarmLink] = {}
        self._contests = DuplicateLinks()
        #: Present and former nodes of the DHT to begin with; None: those of ``open_swarm``.
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
        """Connections that were turned away, all told."""
        return self._door.refused

    # --- life ---------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep a swarm open, and watch over the life of the links. Ends by cancellation."""
        failures = 0
        while True:
            try:
                swarm = self._open_swarm()
                swarm.on_event = lambda event, of=swarm: self._on_event(of, event)  # type: ignore[misc]  # a default binds it
                swarm.on_request, swarm.on_requester_gone = self.on_request, self.on_requester_gone
                async with swarm:
                    failures = 0
                    await self._live(swarm)
            except* SwarmError as failed:
                self._tell(f"Hyperswarm does not run: {_first(failed)}")
            failures += 1
            await asyncio.sleep(RESTART_BACKOFF.pause(failures))

    def meet(self, meetings: Sequence[MeetingTopics]) -> None:
        """From now on these are the meeting places, and no others."""
        self._wanted = {meeting.topic: meeting for meeting in meetings if meeting.announce or meeting.look}
        self._changed.set()

    def begin_with(self, bootstrap: Sequence[PeerAddress] | None, older: Sequence[PeerAddress]) -> None:
        """From now on the DHT is found by these nodes, whatever ``open_swarm`` knew; ``older`` are their former addresses."""
        self._bootstrap = (bootstrap, older)
        self._changed.set()

    async def close(self, why: errors.AimeshError | None = None) -> None:
        """Close every link, tell the peers, and take no more. The swarm itself ends with ``run``. Safe to call twice."""
        self._is_closed = True
        self._end_all(why or errors.LinkLost("this node is stopping", retry_after_seconds=0.2))
        if self._on_revoked in self.trust.on_revoked:
            self.trust.on_revoked.remove(self._on_revoked)

    def silence(self) -> None:
        """Say nothing more, as if the process had been killed; for tests of what the others then do."""
        self._is_closed = True
        for link in self.links():
            link.silence()
        self._end_all(errors.LinkLost("this node has fallen silent"))

    async def dht_nodes(self) -> tuple[str, ...]:
        """Nodes of the DHT that are there now, as host:port; none while that cannot be said."""
        if self._swarm is None:
            return ()
        try:
            return tuple(str(node) for node in await self._swarm.dht_nodes())
        except SwarmError:
            return ()

    # --- links --------------------------------------------------------------------------------------------------------

    def find(self, node: NodeId) -> Link | None:
        """The open link to a node."""
        return self._links.get(node)

    def links(self) -> list[SwarmLink]:
        return list(self._links.values())

    def announce(self, body: bytes) -> None:
        """Say what we are to everybody who may know. A peer that does not read misses it, and gets the next."""
        for link in self.links():
            if link.came_as in topics.SEES_ANNOUNCEMENTS_OF[link.peer.role] and not link.is_full:
                link.send(Announce(body))

    def rehello(self) -> None:
        """Show our new certificate on every open link."""
        for link in self.links():
            hello = self._door.hello(link.connection)
            link.came_as = hello.role
            link.send(hello)

    # --- for links ----------------------------------------------------------------------------------------------------

    def admit(self, connection: PeerConnection, hello: Hello) -> TrustedPeer:
        return self._door.admit(connection, hello)

    def hear_announcement(self, link: SwarmLink, body: bytes) -> None:
        self.on_announcement(link, body)

    def hear_number(self, link: SwarmLink, number: int) -> None:
        if number > self.trust.number:
            self.on_number(link, number)

    def forget(self, link: SwarmLink) -> None:
        if self._links.get(link.peer.node) is link:
            del self._links[link.peer.node]
        if link.fell_silent:
            self._door.missed.update(link.connection.topics)

    # --- connections --------------------------------------------------------------------------------------------------

    def _open(self, entrant: Entrant) -> None:
        connection, peer = entrant.connection, entrant.admitted.peer
        if peer.role is Role.NEWCOMER and self._newcomers_besides(peer.node) >= MAX_NEWCOMERS:
            self._door.turn_away(connection)
            return
        old = self._links.get(peer.node)
        if old is not None:
            old.close(errors.LinkLost("a newer connection of the same node takes its place", retry_after_seconds=0.1))
        link = SwarmLink(self, entrant)
        self._links[peer.node] = link
        if self._contests.opened(peer.node, self.loop.time()):
            self.on_contested(peer.node)
        connection.open_window()
        self.on_link(link)
        self.hear_number(link, entrant.hello.revocations)
        if entrant.frames:
            link.read(entrant.frames)
        if link.closed is None:
            link.start()

    def _refused(self, refusal: HandshakeRefusal) -> None:
        self.on_refused(refusal)

    def _newcomers_besides(self, node: NodeId) -> int:
        return sum(1 for link in self._links.values() if link.peer.role is Role.NEWCOMER and link.peer.node != node)

    def _end_all(self, why: errors.AimeshError) -> None:
        for link in self.links():
            link.close(why)
        self._door.close(why)

    def _on_revoked(self, nodes: frozenset[NodeId]) -> None:
        for link in self.links():
            if link.peer.node in nodes or link.peer.certified in nodes:
                link.close(errors.NodeRevoked("this node was revoked", hint="an administrator can make a new ticket for the machine"))
                self._deny_at = self.loop.time() + FAREWELL_SECONDS
        self.loop.call_at(self._deny_at, self._changed.set)

    # --- the swarm ----------------------------------------------------------------------------------------------------

    async def _live(self, swarm: Swarm) -> None:
        self._joined = {}
        self._denied = frozenset()
        self._swarm = swarm
        self._tell("")
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._accept(swarm))
                tasks.create_task(self._steer(swarm))
                tasks.create_task(self._tick())
        finally:
            self._swarm = None
            self._tell("Hyperswarm is not running")
            self._end_all(errors.LinkLost("this node is stopping", retry_after_seconds=0.2))

    async def _accept(self, swarm: Swarm) -> None:
        async for connection in swarm:
            if self._is_closed:
                self._door.turn_away(connection)
            else:
                self._door.arrived(connection)
        raise SwarmError("the swarm has ended")

    async def _steer(self, swarm: Swarm) -> None:
        """Make the swarm what it should be, whenever that changes."""
        while True:
            self._changed.clear()
            try:
                await self._reconcile(swarm)
            except SwarmError:
                await asyncio.sleep(AGAIN_SECONDS)  # its sidecar is being started again
                continue
            await self._changed.wait()

    async def _reconcile(self, swarm: Swarm) -> None:
        revoked = self.trust.revoked
        if revoked != self._denied and self.loop.time() >= self._deny_at:
            await swarm.set_firewall(Firewall(denied=frozenset(node_keys.raw_of(node) for node in revoked)))
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
        missed, self._door.missed = self._door.missed, set()
        for topic in missed & self._joined.keys():
            await swarm.refresh(topic)

    async def _tick(self) -> None:
        looked_again_at = 0.0
        while True:
            await asyncio.sleep(TICK_SECONDS)
            now, wall_clock = self.loop.time(), self._clock()
            for link in self.links():
                link.check_certificate(wall_clock)
                link.tick(now)
            if self._door.missed and now - looked_again_at >= AGAIN_SECONDS:
                looked_again_at = now
                self._changed.set()
            if self.trust.revoked != self._denied:
                self._changed.set()  # nobody is told of those that have left the list

    def _on_event(self, swarm: Swarm, event: Event) -> None:
        match event:
            case SidecarDied():
                self._tell("the Hyperswarm sidecar died and is being started again")
            case SidecarRestarted():
                self.restarts += 1
                self._tell("")
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

    def _tell(self, trouble: str) -> None:
        was, self.trouble = self.connected, trouble
        if was != self.connected:
            self.on_attached(self.connected)


def _first(failed: BaseExceptionGroup[SwarmError]) -> BaseException:
    """The first of what went wrong together."""
    error: BaseException = failed
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
