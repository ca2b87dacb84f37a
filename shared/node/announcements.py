"""Announces this node and feeds the directory with the announcements of others."""

import asyncio
import time
from collections.abc import Callable

import msgspec

from shared import errors
from shared.node.transports import Transports
from shared.protocol import directory, topics
from shared.protocol.directory import Announcement, Directory
from shared.protocol.duplicate_keys import DuplicateKeys, process_name
from shared.protocol.wire import Announce
from shared.transports.handshake import HandshakeRefusal
from shared.transports.link import Link, LocalNode
from shared.transports.nats.server_connection import NatsMessage
from shared.transports.swarm_link import SwarmLink
from shared.types import SERVICE_ROLES, NodeId, Role

SETTLE_SECONDS = 0.05


class Announcer:
    """Fills ``nodes``, and for a service announces what ``describe`` returns."""

    def __init__(self, me: LocalNode, node_transports: Transports, nodes: Directory, describe: Callable[[], Announcement] | None) -> None:
        self._me = me
        self._transports = node_transports
        self._nodes = nodes
        self._describe = describe
        self._due = asyncio.Event()
        self.duplicate_keys = DuplicateKeys()
        #: Called with a node whose key two processes use, once per younger process.
        self.on_contested: Callable[[NodeId], None] = lambda node: None
        self.must_stop = asyncio.Event()
        node_transports.on_link = self._announce_to
        if node_transports.swarm is not None:
            node_transports.swarm.on_announcement = self._on_swarm_announcement
            node_transports.swarm.on_refused = self._refused
            node_transports.swarm.on_unreachable = self._unreachable

    def start(self) -> None:
        """Subscribe and ask all services to announce themselves. Call once, after NATS (if used) has connected."""
        if self._transports.nats is not None:
            mesh, nats_client = self._me.mesh, self._transports.nats.nats
            for role in topics.SEES_ANNOUNCEMENTS_OF[self._me.role]:
                nats_client.subscribe(topics.announcements(mesh, role), self._on_announcement)
            if self._describe is not None and self._me.role in SERVICE_ROLES:
                nats_client.subscribe(topics.announcement_query(mesh), lambda _: self._due.set())
        self.ask()

    def ask(self) -> None:
        """Ask all services to announce themselves now."""
        if self._transports.nats is not None and self._transports.nats.connected:
            self._transports.nats.nats.publish(topics.announcement_query(self._me.mesh), b"")
        self._due.set()

    def announce_soon(self) -> None:
        self._due.set()

    def announce_now(self) -> None:
        if self._describe is None:
            return
        body = directory.encode(self._describe())
        if self._transports.nats is not None and self._transports.nats.connected:
            self._transports.nats.nats.publish(topics.announcement(self._me.mesh, self._me.role, self._me.node), body)
        if self._transports.swarm is not None:
            self._transports.swarm.announce(body)

    async def run(self) -> None:
        """Announce regularly and on change, and remove silent nodes. Ends by cancellation, or for a service with BadSettings if an older
        process uses the same key."""
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
                pass

    async def _stop_if_younger(self) -> None:
        await self.must_stop.wait()
        raise errors.BadSettings(
            f"another process already runs as this node ({self._me.role} {self._me.node[:12]}), with the same key",
            hint="stop that process, or give this one its own NODE_KEY_FILE; if you know of no other, see docs/runbooks/contested_key.md",
        )

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(directory.TICK_SECONDS)
            if self._transports.note_connection():
                self.ask()
            # Ignore transports that are down: silence there proves nothing.
            self._nodes.tick(self._transports.listening())

    def _announce_to(self, link: Link) -> None:
        """Announce ourselves to a peer that has just connected over Hyperswarm. Not to auth if we came as a newcomer: an announcement would
        then violate the protocol."""
        if not isinstance(link, SwarmLink) or self._describe is None:
            return
        if link.own_role in topics.SEES_ANNOUNCEMENTS_OF[link.peer.role]:
            link.send(Announce(directory.encode(self._describe())))

    def _on_announcement(self, message: NatsMessage) -> None:
        try:
            announcement = directory.decode(message.payload)
            role, node = topics.sender_of(message.subject.decode())
        except (errors.ProtocolViolation, ValueError):
            return  # from a newer version, or broken: the node is not used once its last one is too old
        if (announcement.role, announcement.node) == (role, node):
            self._apply(announcement, "nats", "nats")

    def _on_swarm_announcement(self, link: Link, body: bytes) -> None:
        try:
            announcement = directory.decode(body)
        except errors.ProtocolViolation:
            return
        if (announcement.role, announcement.node) == (link.peer.role, link.peer.node):
            # Labels and owner decide whose prompts a node gets, so only the certificate counts.
            labels, owner = dict(link.peer.labels), link.peer.owner
            self._apply(msgspec.structs.replace(announcement, labels=labels, owner=owner), link.path, "swarm")

    def _apply(self, announcement: Announcement, path: str, transport: str) -> None:
        if self._transports.is_revoked(announcement.node):
            return
        if self.duplicate_keys.record_announcement(announcement, time.monotonic()):
            self.on_contested(announcement.node)
            self._due.set()
        if self.duplicate_keys.must_stop(process_name(self._me.node, self._me.instance), announcement):
            self.must_stop.set()
        if announcement.node == self._me.node:
            return
        if transport == "nats" and (announcement.over_web or self._transports.is_over_web):
            path = "web"
        self._nodes.apply_announcement(announcement, path, transport)
        self._transports.record_list_number(announcement.node, announcement.revocations)

    def _refused(self, refusal: HandshakeRefusal) -> None:
        if refusal.role is not None:
            self._nodes.add_refused(refusal.node, refusal.role, refusal.software, refusal.why.message)

    def _unreachable(self, node: NodeId, why: str) -> None:
        # The nodes found on these topics are mostly workers, which these roles list for administrators. That a revoked one cannot be
        # reached is no news.
        if self._me.role in (Role.GATEWAY, Role.METRICS, Role.AUTH) and not self._transports.is_revoked(node):
            known = self._nodes.find(node)
            self._nodes.add_refused(node, Role.WORKER if known is None else known.role, "", why)
