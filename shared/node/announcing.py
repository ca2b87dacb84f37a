"""Saying what this node is, and hearing what the others are: the shell around the directory."""

import asyncio
from collections.abc import Callable

from shared import directory, errors, topics
from shared.directory import Announcement, Directory
from shared.nats.protocol import Message
from shared.nats_link import NatsTransport
from shared.types import SERVICE_ROLES

#: Changes within this time leave as one announcement.
SETTLE_SECONDS = 0.05


class Announcer:
    """Fills ``nodes`` from the mesh and, for a service, announces what ``describe`` returns."""

    def __init__(self, transport: NatsTransport, nodes: Directory, describe: Callable[[], Announcement] | None) -> None:
        self._transport = transport
        self._me = transport.me
        self._nodes = nodes
        self._describe = describe
        self._due = asyncio.Event()

    def start(self) -> None:
        """Subscribe, then ask who is there. Call once, after the transport has connected."""
        mesh, nats_client = self._me.mesh, self._transport.nats
        for role in topics.SEES_ANNOUNCEMENTS_OF[self._me.role]:
            nats_client.subscribe(topics.announcements(mesh, role), self._heard)
        if self._describe is not None and self._me.role in SERVICE_ROLES:
            nats_client.subscribe(topics.who(mesh), self._asked)
        self.ask()

    def ask(self) -> None:
        """Everybody answers at once, so that nobody has to wait for the next round."""
        self._transport.nats.publish(topics.who(self._me.mesh), b"")
        self._due.set()

    def announce_soon(self) -> None:
        """Something changed."""
        self._due.set()

    def announce_now(self) -> None:
        if self._describe is not None and self._transport.connected:
            subject = topics.announcement(self._me.mesh, self._me.role, self._me.node)
            self._transport.nats.publish(subject, directory.encode(self._describe()))

    async def run(self) -> None:
        """Announce every ANNOUNCE_SECONDS and on change, and let silent nodes go. Ends by cancellation."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch())
            if self._describe is not None:
                tasks.create_task(self._announce())

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

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(directory.TICK_SECONDS)
            # Without the server nobody can be heard, and whoever has no link is no less alive for it.
            if self._transport.connected:
                self._nodes.tick()

    def _heard(self, message: Message) -> None:
        try:
            announcement = directory.decode(message.payload)
            role, node = topics.sender_of(message.subject.decode())
        except (errors.ProtocolViolation, ValueError):
            return  # of a newer kind, or broken; the next one may not be
        if (announcement.role, announcement.node) == (role, node) and node != self._me.node:
            self._nodes.heard(announcement, "nats")

    def _asked(self, message: Message) -> None:
        self._due.set()
