"""Keeps this node in good standing: its certificate renewed, the revocation list of now, the meeting places of this epoch.

One task per node. It asks auth in good time, pulls a list from whoever has a newer one, and writes what it learns to disk.
"""

import asyncio
import random
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from shared import errors
from shared.api import membership as membership_api
from shared.api import node as node_api
from shared.api.gateway import Check
from shared.discovery import topics
from shared.discovery.directory import Directory, DirectoryEntry
from shared.identity import certificates
from shared.identity.node_keys import raw_of
from shared.identity.trust import Trust
from shared.node import membership_file
from shared.node.membership_file import MembershipFile
from shared.rpc import calling
from shared.rpc.calling import RpcClient
from shared.rpc.connection import RpcConnection
from shared.transports.swarm_link import MeetingTopics
from shared.types import NodeId, Role

#: Auth confirms the list every two minutes; whoever asks this often hears of a revocation even if every push was lost.
PULL_SECONDS = 30.0
RETRY_SECONDS = 2.0
DEADLINE_SECONDS = 5.0
#: A certificate is renewed when this much of its life is over, give or take the jitter.
RENEW_AFTER = 2 / 3
JITTER = 0.05
#: Without auth for so long, it is looked for at the enrolment topic too: the meeting places that we know may be of an epoch
#: that is long over.
LOST_SECONDS = 10.0


class CertificateRenewal:
    """``run`` is the task; ``changed`` is called after something of it has changed."""

    def __init__(self, trust: Trust, kept: MembershipFile, path: Path, nodes: Directory, rpc: RpcClient) -> None:
        self._trust = trust
        self._path = path
        self._nodes = nodes
        self._rpc = rpc
        self.kept = kept
        self.changed: Callable[[], None] = _nothing
        #: Told what happened and why, for the log.
        self.note: Callable[[str, str], None] = _forget
        #: A link to auth that did not come by an announcement: auth makes none to who has no certificate.
        self.door: Callable[[], RpcConnection | None] = _no_door
        self._wake = asyncio.Event()
        #: Whoever told of a newer list, and is to be asked for it.
        self._newer: set[NodeId] = set()
        self._jitter = random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - spreads load
        self._pull_at = 0.0
        self._try_at = 0.0
        self._met_at = time.monotonic()
        #: Whether we had a good certificate, and had lost auth, when it was last looked.
        self._situation = (trust.has_certificate(time.time()), False)
        trust.on_revoked.append(self._strike_off)
        nodes.watch(self._seen)

    def told(self, node: NodeId, number: int) -> None:
        """A peer has a newer list. Replicas of one role hear each other's announcements and may not ask each other."""
        if not self._may_ask(node):
            return
        self._newer.add(node)
        if not self._trust.has_certificate(time.time()):
            # Nobody speaks to us but auth: it can be asked now.
            self._try_at = 0.0
        self._wake.set()

    def check(self) -> Check:
        """Whether a revocation would reach us. For people: a node with an old list works on, and so do valid certificates."""
        found = self._trust.list
        age = 0.0 if found is None else time.time() - found.issued_at
        if age < certificates.LIST_IS_OLD_AFTER_SECONDS:
            return Check("revocation list", ok=True)
        return Check("revocation list", False, f"auth has not confirmed it for {age / 60:.0f} min; a node revoked since is still let in")

    def meetings(self) -> list[MeetingTopics]:
        """Where this node announces itself and looks for others on Hyperswarm."""
        role, trust = self._trust.role, self._trust
        found = [
            MeetingTopics(topics.meeting_topic(secret, place), announce=role in place.announced_by, look=role in place.looked_up_by)
            for _, secret in trust.topics
            for place in topics.MEETING_PLACES
            if role in (*place.announced_by, *place.looked_up_by)
        ]
        certified = trust.has_certificate(time.time())
        # Newcomers find auth there, and so does a node whose certificate has ended or whose epoch is long over.
        if role is Role.AUTH:
            found += [MeetingTopics(topics.enrolment_topic(raw_of(ca)), announce=True, look=False) for ca in trust.authorities]
            return found if certified else []
        door = [MeetingTopics(topics.enrolment_topic(raw_of(ca)), announce=False, look=True) for ca in trust.authorities]
        _, lost = self._situation
        if not certified:
            return door
        # A client's process lives for one question, so it cannot wait to see whether the meeting places are still those.
        return [*found, *door] if lost or role is Role.CLIENT else found

    async def run(self) -> None:
        """Ends by cancellation."""
        while True:
            self._wake.clear()
            now = time.monotonic()
            self._look_around(now)
            if now >= self._try_at and self._is_renewal_due(time.time()):
                self._try_at = now + (0 if await self._renew() else RETRY_SECONDS)
            await self._pull_newer()
            if now >= self._pull_at:
                self._pull_at = now + (PULL_SECONDS if await self._pull_from_auth() else RETRY_SECONDS)
            try:
                async with asyncio.timeout(RETRY_SECONDS if self._newer or self._is_renewal_due(time.time()) else PULL_SECONDS / 6):
                    await self._wake.wait()
            except TimeoutError:
                pass  # the regular round

    def _look_around(self, now: float) -> None:
        """Meet elsewhere when the certificate has ended, as in a long sleep, and when auth has been out of sight."""
        if self._trust.role is Role.AUTH:
            return
        if self._nodes.usable(Role.AUTH):
            self._met_at = now
        situation = (self._trust.has_certificate(time.time()), now - self._met_at > LOST_SECONDS)
        if situation != self._situation:
            self._situation = situation
            self.changed()

    # --- the certificate --------------------------------------------------------------------------------------------------

    def _is_renewal_due(self, now: float) -> bool:
        if self._trust.role is Role.AUTH:
            return False  # it issues its own
        standing = self._trust.standing()
        if standing is None or self._is_epoch_over():
            return True
        start = standing.not_before + certificates.BACKDATED_SECONDS
        return now >= start + (standing.not_after - start) * RENEW_AFTER * self._jitter

    def _is_epoch_over(self) -> bool:
        """The list tells of an epoch whose secret we do not have."""
        return self._trust.list is not None and self._trust.list.epoch > max((epoch for epoch, _ in self._trust.topics), default=0)

    async def _renew(self) -> bool:
        method, request = membership_api.renew_certificate, membership_api.RenewCertificate()
        door = None if self._nodes.usable(Role.AUTH) else self.door()
        try:
            if door is not None:
                reply = await calling.ask(door, method, request, deadline_seconds=DEADLINE_SECONDS)
            elif self._nodes.usable(Role.AUTH):
                reply = await self._rpc.call(method, request, deadline_seconds=DEADLINE_SECONDS)
            else:
                return False
            self.take(reply)
        except errors.AimeshError as error:
            self.note("certificate not renewed", error.message)
            return False
        return True

    def take(self, reply: membership_api.Membership) -> None:
        """Believe what auth says of our standing. Raises NotCertified if that is not for us or not of this mesh."""
        trust = self._trust
        if trust.authorities:
            if reply.succession:
                trust.take_successor(reply.succession)
        else:
            # The first word of it comes over NATS, whose server vouches for auth.
            trust.authorities = reply.authorities
        found = certificates.check(reply.certificate, trust.authorities, time.time())
        if found.node not in (trust.me.id, self._certified()):
            raise errors.NotCertified("auth has sent a certificate for another node")
        if set(reply.authorities) < set(trust.authorities):
            # The successor has taken over: what the old key signs is worth nothing from now on.
            trust.authorities = reply.authorities
        trust.certificate, trust.told_revoked = reply.certificate, False
        trust.topics = tuple((secret.epoch, secret.secret) for secret in reply.topics)
        if reply.revocations:
            trust.take_list(reply.revocations)
        self.kept = membership_file.of(reply, self.kept)
        self._save()
        self.note("certified", f"as {found.role}")
        self.changed()

    def _certified(self) -> NodeId:
        """The profile that we speak for, where that is another key than ours."""
        standing = self._trust.standing()
        return self._trust.me.id if standing is None else standing.node

    # --- the list ---------------------------------------------------------------------------------------------------------

    async def _pull_newer(self) -> None:
        """From the peers that told of it; one that has it is enough. Who tells again meanwhile is asked in the next round: a list
        that cannot be had must not keep the certificate from being renewed."""
        newer, self._newer = self._newer, set()
        for node in newer:
            if await self._pull(node):
                return

    async def _pull_from_auth(self) -> bool:
        if self._trust.role is Role.AUTH:
            return True  # every auth signs the list itself, from the database that they share
        nodes = self._nodes.usable(Role.AUTH)
        return bool(nodes) and await self._pull(nodes[0].node)

    def _may_ask(self, node: NodeId) -> bool:
        """A node that the directory does not know has a link to us, so its role was checked."""
        entry = self._nodes.find(node)
        return entry is None or topics.may_link(self._trust.role, entry.role)

    async def _pull(self, node: NodeId) -> bool:
        try:
            reply = await self._rpc.call(node_api.read_revocations, node_api.ReadRevocations(), to=node, deadline_seconds=DEADLINE_SECONDS)
            return self.take_list(reply.body)
        except errors.AimeshError as error:
            self.note("no revocation list", f"from {node[:12]}: {error.message}")
            return False

    def remember(self, nodes: tuple[str, ...], now: float) -> None:
        """DHT nodes that are there: with them the mesh is found again when those that we were told of are gone."""
        self.kept = msgspec.structs.replace(self.kept, nodes=nodes, nodes_seen_at=now)
        self._save()

    def take_list(self, body: bytes) -> bool:
        """Whether it was a list of this mesh. Raises NotCertified if it is another's."""
        if not body or not self._trust.authorities:
            return False
        if self._trust.take_list(body):
            self._save()
            self.changed()
        return True

    def _seen(self, entry: DirectoryEntry) -> None:
        """Auth is there: whoever waits for it need not wait for the next round."""
        if entry.role is Role.AUTH and entry.alive and not self._trust.certificate:
            self._try_at = 0.0
            self._wake.set()

    def _strike_off(self, nodes: frozenset[NodeId]) -> None:
        for node in nodes:
            self._nodes.gone(node, "revoked by an administrator")

    def _save(self) -> None:
        self.kept = msgspec.structs.replace(
            self.kept,
            certificate=self._trust.certificate,
            revocations=self._trust.list_body,
            authorities=self._trust.authorities,
            topics=tuple(membership_api.TopicSecret(epoch, secret) for epoch, secret in self._trust.topics),
        )
        try:
            membership_file.save(self._path, self.kept)
        except OSError as error:
            self.note("the state file cannot be written", f"{error.strerror}; a restart will forget the revocation list")


def _nothing() -> None:
    """Before somebody wants to know."""


def _no_door() -> RpcConnection | None:
    """Where there is no Hyperswarm."""
    return None


def _forget(what: str, why: str) -> None:
    """Before somebody logs."""
