"""Keeps this node's certificate, revocation list and topics up to date, and saves them to disk.

One task per node. It renews the certificate through auth, and pulls a newer revocation list from any peer that has one.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from shared import errors
from shared.api import membership as membership_api
from shared.api import node as node_api
from shared.api.gateway import Check
from shared.identity import certificates
from shared.identity.node_keys import raw_of
from shared.identity.trust import Trust
from shared.node import membership_file
from shared.node.membership_file import MembershipFile
from shared.protocol import topics
from shared.protocol.directory import Directory, DirectoryEntry
from shared.rpc import calling
from shared.rpc.calling import RpcClient
from shared.rpc.connection import RpcConnection
from shared.timing.bounded_waits import wait_until_set
from shared.transports.swarm_transport import MeetingTopics, SwarmTransport
from shared.types import NodeId, Role

#: Auth confirms the list every two minutes, so a revocation arrives in time even if every push was lost.
PULL_SECONDS = 30.0
RETRY_SECONDS = 2.0
DEADLINE_SECONDS = 5.0
#: The share of a certificate's life after which it is renewed, plus or minus the jitter.
RENEW_AFTER = 2 / 3
JITTER = 0.05
#: After so long without auth, the node also looks for it on the enrollment topic: the known topics may be of a past epoch.
LOST_SECONDS = 10.0
#: The DHT changes slowly, and saved nodes are used for a day.
DHT_NODES_SECONDS = 600.0
#: Wait until a peer was met: only then are the DHT nodes known to work.
MET_SECONDS = 0.2


class CertificateRenewal:
    """``run`` is the task. ``changed`` is called after every change."""

    def __init__(self, trust: Trust, membership: MembershipFile, path: Path, nodes: Directory, rpc: RpcClient) -> None:
        self._trust = trust
        self._path = path
        self._nodes = nodes
        self._rpc = rpc
        self.membership = membership
        self.changed: Callable[[], None] = lambda: None
        self.note: Callable[[str, str], None] = lambda what, why: None
        #: Finds a link to auth without an announcement: auth announces nothing to a node without a certificate.
        self.find_auth: Callable[[], RpcConnection | None] = lambda: None
        #: Renews an expired certificate over NATS, which accepts us only as a newcomer then.
        self.as_newcomer: Callable[[MembershipFile], Awaitable[MembershipFile]] | None = None
        self._wake = asyncio.Event()
        self._newer: set[NodeId] = set()
        self._jitter = random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - spreads load
        self._pull_at = 0.0
        self._try_at = 0.0
        self._met_at = time.monotonic()
        #: Whether we had a valid certificate and had lost auth, at the last check.
        self._situation = (trust.has_certificate(time.time()), False)
        trust.on_revoked.append(self._remove_revoked)
        nodes.watch(self._on_entry)

    def record_list_number(self, node: NodeId, number: int) -> None:
        """Record that a peer has a newer list. Replicas of one role see each other's announcements but may not call each other."""
        if not self._may_ask(node):
            return
        self._newer.add(node)
        if not self._trust.has_certificate(time.time()):
            # Only auth talks to us, and it can be asked now.
            self._try_at = 0.0
        self._wake.set()

    def check(self) -> Check:
        """Return whether a revocation would reach us. Information only: with an old list the node works on."""
        found = self._trust.list
        age = 0.0 if found is None else time.time() - found.issued_at
        if age < certificates.LIST_IS_OLD_AFTER_SECONDS:
            return Check("revocation list", ok=True, needed=False)
        why = f"auth has not confirmed it for {age / 60:.0f} min; a node revoked since still has access"
        return Check("revocation list", False, why, needed=False)

    def meetings(self) -> list[MeetingTopics]:
        """Return the Hyperswarm topics on which this node announces itself and looks for others."""
        role, trust = self._trust.role, self._trust
        found = [
            MeetingTopics(topics.meeting_topic(secret, place), announce=role in place.announced_by, look=role in place.looked_up_by)
            for _, secret in trust.topics
            for place in topics.MEETING_PLACES
            if role in (*place.announced_by, *place.looked_up_by)
        ]
        certified = trust.has_certificate(time.time())
        # Newcomers find auth there, as do nodes with an expired certificate or a past epoch.
        if role is Role.AUTH:
            found += [MeetingTopics(topics.enrollment_topic(raw_of(ca)), announce=True, look=False) for ca in trust.authorities]
            return found if certified else []
        enrollment = [MeetingTopics(topics.enrollment_topic(raw_of(ca)), announce=False, look=True) for ca in trust.authorities]
        _, lost = self._situation
        if not certified:
            return enrollment
        return [*found, *enrollment] if lost or role is Role.CLIENT else found

    async def run(self) -> None:
        while True:
            self._wake.clear()
            now = time.monotonic()
            self._update_topics(now)
            if now >= self._try_at and self._is_renewal_due(time.time()):
                self._try_at = now + (0 if await self._renew() else RETRY_SECONDS)
            await self._pull_newer()
            if now >= self._pull_at:
                self._pull_at = now + (PULL_SECONDS if await self._pull_from_auth() else RETRY_SECONDS)
            is_urgent = bool(self._newer) or self._is_renewal_due(time.time())
            await wait_until_set(self._wake, RETRY_SECONDS if is_urgent else PULL_SECONDS / 6)

    def _update_topics(self, now: float) -> None:
        """Change topics when the certificate has expired, or when auth was not seen for a while."""
        if self._trust.role is Role.AUTH:
            return
        if self._nodes.usable(Role.AUTH):
            self._met_at = now
        situation = (self._trust.has_certificate(time.time()), now - self._met_at > LOST_SECONDS)
        if situation != self._situation:
            self._situation = situation
            self.changed()

    def _is_renewal_due(self, now: float) -> bool:
        if self._trust.role is Role.AUTH:
            return False  # it issues its own
        standing = self._trust.standing()
        if standing is None or self._is_epoch_over():
            return True
        start = standing.not_before + certificates.BACKDATED_SECONDS
        return now >= start + (standing.not_after - start) * RENEW_AFTER * self._jitter

    def _is_epoch_over(self) -> bool:
        """Return whether the revocation list names an epoch whose secret we lack."""
        return self._trust.list is not None and self._trust.list.epoch > max((epoch for epoch, _ in self._trust.topics), default=0)

    async def _renew(self) -> bool:
        method, request = membership_api.renew_certificate, membership_api.RenewCertificate()
        connection = None if self._nodes.usable(Role.AUTH) else self.find_auth()
        try:
            if connection is not None:
                reply = await calling.ask(connection, method, request, deadline_seconds=DEADLINE_SECONDS)
            elif self.as_newcomer is not None and self._trust.certificate and not self._trust.has_certificate(time.time()):
                self.membership = await self.as_newcomer(self.membership)
                membership_file.load_into(self._trust, self.membership)
                self._save()
                self.changed()
                return True
            elif self._nodes.usable(Role.AUTH):
                reply = await self._rpc.call(method, request, deadline_seconds=DEADLINE_SECONDS)
            else:
                return False
            self.take(reply)
        except errors.AimeshError as error:
            self._trust.was_revoked |= isinstance(error, errors.NodeRevoked)
            self.note("certificate not renewed", error.message)
            return False
        return True

    def take(self, reply: membership_api.Membership) -> None:
        """Apply auth's reply. Raises NotCertified if it is not for us or not from this mesh."""
        trust = self._trust
        if trust.authorities:
            if reply.succession:
                trust.take_successor(reply.succession)
        else:
            # The first reply comes over NATS, whose server vouches for auth.
            trust.authorities = reply.authorities
        found = certificates.check(reply.certificate, trust.authorities, time.time())
        if found.node not in (trust.me.id, self._certified()):
            raise errors.NotCertified("auth has sent a certificate for another node")
        if set(reply.authorities) < set(trust.authorities):
            # The successor has taken over: signatures of the old key are no longer valid.
            trust.authorities = reply.authorities
        trust.certificate, trust.was_revoked = reply.certificate, False
        trust.topics = tuple((secret.epoch, secret.secret) for secret in reply.topics)
        if reply.revocations:
            trust.take_list(reply.revocations)
        self.membership = membership_file.of(reply, self.membership)
        self._save()
        self.note("certified", f"as {found.role}")
        self.changed()

    def _certified(self) -> NodeId:
        """Return our certified key, which for a delegate is the profile's key."""
        standing = self._trust.standing()
        return self._trust.me.id if standing is None else standing.node

    async def _pull_newer(self) -> None:
        """Pull from the peers that announced a newer list, until one has it. Peers that announce one meanwhile are asked in the next
        round, so that an unavailable list does not delay the certificate's renewal."""
        newer, self._newer = self._newer, set()
        for node in newer:
            if await self._pull(node):
                return

    async def _pull_from_auth(self) -> bool:
        if self._trust.role is Role.AUTH:
            return True  # each auth signs the list itself, from the shared database
        nodes = self._nodes.usable(Role.AUTH)
        return bool(nodes) and await self._pull(nodes[0].node)

    def _may_ask(self, node: NodeId) -> bool:
        """A node unknown to the directory has a link to us, so its role was checked."""
        entry = self._nodes.find(node)
        return entry is None or topics.may_call(self._trust.role, entry.role)

    async def _pull(self, node: NodeId) -> bool:
        try:
            reply = await self._rpc.call(node_api.read_revocations, node_api.ReadRevocations(), to=node, deadline_seconds=DEADLINE_SECONDS)
            return self.take_list(reply.body)
        except errors.AimeshError as error:
            self.note("no revocation list", f"from {node[:12]}: {error.message}")
            return False

    def remember(self, nodes: tuple[str, ...], now: float) -> None:
        """Save DHT nodes that are online. They help to find the mesh again when the configured ones are gone."""
        self.membership = msgspec.structs.replace(self.membership, nodes=nodes, nodes_seen_at=now)
        self._save()

    def take_list(self, body: bytes) -> bool:
        """Return whether this was a list of this mesh. Raises NotCertified if it is another mesh's."""
        if not body or not self._trust.authorities:
            return False
        if self._trust.take_list(body):
            self._save()
            self.changed()
        return True

    def remember_revocation(self) -> None:
        """Save that this node is revoked. Only a new key ends that."""
        self.membership = msgspec.structs.replace(self.membership, was_revoked=True)
        self._save()

    def remember_model_consent(self, *, accepts_models: bool) -> bool:
        """Return whether it is saved."""
        self.membership = msgspec.structs.replace(self.membership, accept_models=accepts_models)
        return self._save()

    def _on_entry(self, entry: DirectoryEntry) -> None:
        """Renew at once when auth appears."""
        if entry.role is Role.AUTH and entry.alive and not self._trust.certificate:
            self._try_at = 0.0
            self._wake.set()

    def _remove_revoked(self, nodes: frozenset[NodeId]) -> None:
        for node in nodes:
            self._nodes.mark_gone(node, "revoked by an administrator", corrects=True)

    def _save(self) -> bool:
        self.membership = msgspec.structs.replace(
            self.membership,
            certificate=self._trust.certificate,
            revocations=self._trust.list_body,
            authorities=self._trust.authorities,
            topics=tuple(membership_api.TopicSecret(epoch, secret) for epoch, secret in self._trust.topics),
        )
        try:
            membership_file.save(self._path, self.membership)
        except OSError as error:
            self.note("the state file cannot be written", f"{error.strerror}; the revocation list will be lost on restart")
            return False
        return True


async def save_dht_nodes(swarm: SwarmTransport, renewal: CertificateRenewal) -> None:
    """Save the DHT nodes that are online, so that the node finds the mesh again when the configured ones are gone. Ends by cancellation.
    Short-lived clients keep a recent list, because they end before the second round."""
    age = time.time() - renewal.membership.nodes_seen_at
    await asyncio.sleep(max(0.0, min(DHT_NODES_SECONDS, DHT_NODES_SECONDS - age)))
    while True:
        while not swarm.links():  # noqa: ASYNC110 - there is no event for links
            await asyncio.sleep(MET_SECONDS)
        if nodes := await swarm.dht_nodes():
            renewal.remember(nodes, time.time())
        await asyncio.sleep(DHT_NODES_SECONDS)
