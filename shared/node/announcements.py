"""Saying what this node is, and hearing what the others are: the shell around the directory."""

import asyncio
import time
from collections.abc import Callable

import msgspec

from shared import errors
from shared.discovery import directory, topics
from shared.discovery.directory import Announcement, Directory
from shared.discovery.duplicate_keys import DuplicateKeys, process_name
from shared.frames.wire import Announce
from shared.node.transports import Transports
from shared.transports.link import Link, LocalNode
from shared.transports.nats.nats_protocol import NatsMessage
from shared.transports.swarm_link import HandshakeRefusal, SwarmLink
from shared.types import SERVICE_ROLES, NodeId, Role

#: Changes within this time leave as one announcement.
SETTLE_SECONDS = 0.05


class Announcer:
    """Fills ``nodes`` from the mesh and, for a service, announces what ``describe`` returns."""

    def __init__(self, me: LocalNode, node_transports: Transports, nodes: Directory, describe: Callable[[], Announcement] | None) -> None:
        self._me = me
        self._roads = node_transports
        self._nodes = nodes
        self._describe = describe
        self._due = asyncio.Event()
        self.contests = DuplicateKeys()
        #: Called with a node whose key two processes use, once for each of the younger ones.
        self.on_contested: Callable[[NodeId], None] = _ignore_node
        #: This process has to stop: an older one uses the same key.
        self.must_stop = asyncio.Event()
        node_transports.on_link = self._greet
        if node_transports.swarm is not None:
            node_transports.swarm.on_announcement = self._heard_by_swarm
            node_transports.swarm.on_refused = self._refused
            node_transports.swarm.on_unreachable = self._unreachable

    def start(self) -> None:
        """Subscribe, then ask who is there. Call once, after the NATS transport, if there is one, has connected."""
        if self._roads.nats is not None:
            mesh, nats_client = self._me.mesh, self._roads.nats.nats
            for role in topics.SEES_ANNOUNCEMENTS_OF[self._me.role]:
                nats_client.subscribe(topics.announcements(mesh, role), self._heard)
            if self._describe is not None and self._me.role in SERVICE_ROLES:
                nats_client.subscribe(topics.who(mesh), self._asked)
        self.ask()

    def ask(self) -> None:
        """Everybody answers at once, so that nobody has to wait for the next round."""
        if self._roads.nats is not None and self._roads.nats.connected:
            self._roads.nats.nats.publish(topics.who(self._me.mesh), b"")
        self._due.set()

    def announce_soon(self) -> None:
        """Something changed."""
        self._due.set()

    def announce_now(self) -> None:
        if self._describe is None:
            return
        body = directory.encode(self._describe())
        if self._roads.nats is not None and self._roads.nats.connected:
            self._roads.nats.nats.publish(topics.announcement(self._me.mesh, self._me.role, self._me.node), body)
        if self._roads.swarm is not None:
            self._roads.swarm.announce(body)

    async def run(self) -> None:
        """Announce every ANNOUNCE_SECONDS and on change, and let silent nodes go. Ends by cancellation, and for a service with
        BadSettings when an older process uses the same key."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch())
            if self._describe is not None:
                tasks.create_task(self._announce())
                tasks.create_task(self._stop_if_younger())

    async def _announce(self) -> None:
        while True:
            self.announce_now()
            self._due.clear()
            try:
                async with asyncio.timeout(directory.ANNOUNCE_SECONDS):
                    await self._due.wait()
                    await asyncio.sleep(SETTLE_SECONDS)
            except TimeoutError:
                pass  # the regular round

    async def _stop_if_younger(self) -> None:
        await self.must_stop.wait()
        raise errors.BadSettings(
            f"another process already runs as this node ({self._me.role} {self._me.node[:12]}), with the same key",
            hint="stop that process, or give this one its own NODE_KEY_FILE; if you know of no other, see docs/runbooks/contested_key.md",
        )

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(directory.TICK_SECONDS)
            # On a transport that is down nobody can be heard, and whoever has no link is no less alive for it.
            self._nodes.tick(self._roads.listening())

    def _greet(self, link: Link) -> None:
        """A peer that has just come over Hyperswarm need not wait for the next round to learn what we are. To auth a node without a
        good certificate is a newcomer, and a newcomer that announced itself would break the protocol."""
        if not isinstance(link, SwarmLink) or self._describe is None:
            return
        if link.came_as in topics.SEES_ANNOUNCEMENTS_OF[link.peer.role]:
            link.send(Announce(directory.encode(self._describe())))

    def _heard(self, message: NatsMessage) -> None:
        try:
            announcement = directory.decode(message.payload)
            role, node = topics.sender_of(message.subject.decode())
        except (errors.ProtocolViolation, ValueError):
            return  # of a newer kind, or broken; the next one may not be
        if (announcement.role, announcement.node) == (role, node):
            self._take(announcement, "nats", "nats")

    def _heard_by_swarm(self, link: Link, body: bytes) -> None:
        try:
            announcement = directory.decode(body)
        except errors.ProtocolViolation:
            return  # as above
        if (announcement.role, announcement.node) == (link.peer.role, link.peer.node):
            # What its certificate says, whatever it says itself: both decide whose prompts it gets.
            labels, owner = dict(link.peer.labels), link.peer.owner
            self._take(msgspec.structs.replace(announcement, labels=labels, owner=owner), link.path, "swarm")

    def _take(self, announcement: Announcement, path: str, transport: str) -> None:
        if self._roads.is_revoked(announcement.node):
            return
        if self.contests.heard(announcement, time.monotonic()):
            self.on_contested(announcement.node)
            self._due.set()
        if self.contests.must_stop(process_name(self._me.node, self._me.instance), announcement):
            self.must_stop.set()
        if announcement.node == self._me.node:
            return
        self._nodes.heard(msgspec.structs.replace(announcement, made_at=None), path, transport)
        self._roads.told(announcement.node, announcement.revocations)

    def _refused(self, refusal: HandshakeRefusal) -> None:
        if refusal.role is not None:
            self._nodes.refused(refusal.node, refusal.role, refusal.software, refusal.why.message)

    def _unreachable(self, node: NodeId, why: str) -> None:
        # Whom they look for and show to people are workers; what else is announced where they look is each other. A revoked one is let
        # in nowhere, and that it cannot be reached for that is not what people are to read.
        if self._me.role in (Role.GATEWAY, Role.METRICS, Role.AUTH) and not self._roads.is_revoked(node):
            known = self._nodes.find(node)
            self._nodes.refused(node, Role.WORKER if known is None else known.role, "", why)

    def _asked(self, message: NatsMessage) -> None:
        self._due.set()


def _ignore_node(node: NodeId) -> None:
    """Before somebody logs."""
