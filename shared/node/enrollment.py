"""The way into a mesh, and back into it: who has no good certificate finds auth at the enrolment topic, and asks for one.

Nothing is said to a peer before it has shown an auth's certificate by the mesh's own CA; nothing that auth answers is
believed before it is checked. What happens is told in plain words, because a person is waiting for it.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from shared import addresses, errors, rpc
from shared.api import membership as contract
from shared.api.membership import Membership
from shared.api.method import Method, Reply, Request
from shared.discovery import topics
from shared.identity import certificates, node_keys, tickets
from shared.identity.trust import Trust
from shared.node import membership_file, swarm_settings
from shared.node.lifecycle import background
from shared.node.membership_file import MembershipFile
from shared.rpc import calling
from shared.transports.link import Link, LocalNode
from shared.transports.swarm_link import HandshakeRefusal, MeetingTopics, SwarmTransport
from shared.transports.swarm_link.swarm_transport import STARTING
from shared.types import AuthorityId, MeshName, NodeId, Peer, Role

Say = Callable[[str], None]
T = TypeVar("T")

#: What people can do about a mesh that is silent.
NOBODY_ANSWERS = "is the mesh up, and does this network let UDP out? If so, the mesh may have a new address: ask for a new ticket"
#: One question to auth: a few statements of SQL, over a relay at worst.
_ANSWER_SECONDS = 10.0
#: Before auth is asked once more after it could not answer.
_PAUSE_SECONDS = 0.5
#: How often it is looked whether Hyperswarm runs here at all, and how long it may fail to start.
_LOOK_SECONDS = 1.0
_TROUBLE_SECONDS = 8.0


@dataclass(frozen=True, slots=True)
class EnrollmentRoute:
    """Where a mesh is found by who is not in it, and how it is recognised."""

    mesh: MeshName
    #: The CA keys that are trusted; each has an enrolment topic of its own.
    authorities: tuple[AuthorityId, ...]
    #: DHT nodes as host:port; none means the public DHT.
    bootstrap: tuple[str, ...]
    relays: tuple[bytes, ...]
    #: Where the DHT nodes were before.
    older_bootstrap: tuple[str, ...] = ()

    @property
    def is_on_this_machine(self) -> bool:
        """All DHT nodes are on loopback, so whoever is found is here too."""
        hosts = {address.rpartition(":")[0].strip("[]") for address in self.bootstrap}
        return bool(hosts) and hosts <= addresses.LOOPBACK

    @property
    def dht(self) -> str:
        return ", ".join(self.bootstrap) or "the public DHT"


def door_of(found: tickets.Ticket | MembershipFile) -> EnrollmentRoute:
    if isinstance(found, tickets.Ticket):
        return EnrollmentRoute(found.mesh, (found.authority_id,), found.bootstrap, found.relays)
    return EnrollmentRoute(found.mesh, found.authorities, found.bootstrap, found.relays, found.older_bootstrap)


def open_transport(door: EnrollmentRoute, me: LocalNode, trust: Trust, node: Path | None) -> SwarmTransport:
    """A transport that finds others by the mesh's own DHT nodes and relays; not running yet."""
    return SwarmTransport(me, trust, swarm_settings.opener(trust.me, door.bootstrap, door.relays, node=node, older=door.older_bootstrap))


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """How long to be patient, and what a test replaces."""

    #: A first connection takes about a second; random punching one try each 20 s.
    find_seconds: float = 60.0
    #: How often it is asked whether an administrator has approved the node, and for how long.
    poll_seconds: float = 5.0
    approval_seconds: float = 24 * 3600.0
    software: str = "aimesh/0.1"
    clock: Callable[[], float] = time.time
    #: The Node program for Hyperswarm's sidecar; None means the one that came with aimesh.
    node: Path | None = None
    open_transport: Callable[[EnrollmentRoute, LocalNode, Trust, Path | None], SwarmTransport] = open_transport


@dataclass(frozen=True, slots=True)
class EnrollingNode:
    """What a machine says of itself when it joins."""

    #: What it is called, for people.
    name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    #: Called with what is to be kept when an administrator still has to approve: from then on the ticket is not needed.
    on_pending: Callable[[MembershipFile], None] = lambda kept: None


_MEANS = Means()


async def enrol(ticket: tickets.Ticket, key: node_keys.NodeKey, newcomer: EnrollingNode, say: Say, means: Means = _MEANS) -> Membership:
    """Use the ticket for this key; safe to repeat with the same two. Waits for an administrator's approval if it needs one.

    Raises BadTicket, NodeRevoked (the key was a member once: make another), NotReachable and Unavailable (nobody found, or
    Hyperswarm cannot run here), ClockSkew, NotCertified (what auth sent is not ours) and ApprovalPending (nobody approved).
    """
    door = door_of(ticket)

    def use(auth: Peer) -> contract.EnrollNode:
        text = tickets.use_text(ticket.id, key.id, auth.node, auth.channel)
        ours = newcomer.name[:100], dict(newcomer.labels)
        return contract.EnrollNode(ticket.id, ticket.key.sign("enroll", text), key.sign("enroll", text), *ours)

    async with visiting(door, Trust(key, Role.NEWCOMER, door.authorities), say, means) as visit:
        try:
            found = await visit.ask(contract.enroll_node, use)
        except errors.ApprovalPending as pending:
            newcomer.on_pending(
                MembershipFile(door.mesh, Role.NEWCOMER, authorities=door.authorities, bootstrap=door.bootstrap, relays=door.relays)
            )
            found = await visit.wait_for_approval(pending)
    return _checked(found, door, key, say, means)


async def renew_at_enrolment_topic(
    kept: MembershipFile, key: node_keys.NodeKey, say: Say = lambda text: None, *, node: Path | None = None, means: Means = _MEANS
) -> MembershipFile:
    """A new certificate for a node whose own ended long ago, or was never made because nobody had approved the node.

    Opens a swarm with the node's key: the node's own must be closed, because two with one key push each other out.
    Raises what ``enrol`` does.
    """
    means = replace(means, node=node or means.node)
    door = door_of(kept)
    trust = Trust(key, Role.NEWCOMER, door.authorities)
    if kept.revocations:
        trust.take_list(kept.revocations)
    async with visiting(door, trust, say, means) as visit:
        try:
            found = await visit.ask(contract.renew_certificate, lambda auth: contract.RenewCertificate())
        except errors.ApprovalPending as pending:
            found = await visit.wait_for_approval(pending)
    return membership_file.of(_checked(found, door, key, say, means), kept)


@asynccontextmanager
async def visiting(door: EnrollmentRoute, trust: Trust, say: Say, means: Means = _MEANS) -> AsyncIterator["EnrollmentVisit"]:
    """Look for auth as a newcomer while the block runs."""
    me = LocalNode(door.mesh, Role.NEWCOMER, trust.me, means.software)
    transport = means.open_transport(door, me, trust, means.node)
    visit = EnrollmentVisit(door, transport, say, means)
    transport.meet([MeetingTopics(topics.enrolment_topic(node_keys.raw_of(ca)), announce=False, look=True) for ca in door.authorities])
    say(f"looking for the mesh {door.mesh} …")
    async with background() as tasks:
        tasks.create_task(transport.run())
        try:
            yield visit
        finally:
            await transport.close(errors.LinkLost("the newcomer has what it came for"))


class EnrollmentVisit:
    """A newcomer's links to auth: what is asked goes to one that is there, or to the next one that comes."""

    def __init__(self, door: EnrollmentRoute, transport: SwarmTransport, say: Say, means: Means) -> None:
        self.transport = transport
        self._door = door
        self._say = _Once(say)
        self._means = means
        self._started = means.clock()
        self._connections: list[rpc.RpcConnection] = []
        self._came = asyncio.Event()
        self._troubled_since: float | None = None
        self._refused: errors.AimeshError | None = None
        self._unreachable = ""
        self._failed: errors.AimeshError | None = None
        transport.on_link = self._opened
        transport.on_refused = self._found_another
        transport.on_unreachable = self._not_reached

    @property
    def links(self) -> list[Link]:
        return [connection.link for connection in self._connections]

    async def ask(self, method: Method[Request, Reply], request: Callable[[Peer], Request]) -> Reply:
        """``request`` makes it for the auth that will get it. Raises auth's refusal, or why no auth answered in time."""
        return await self._within(self._means.find_seconds, self._ask(method, request))

    async def wait_for_auth(self) -> Link:
        """The first link to an auth of this mesh. Raises why there is none in time."""
        return (await self._within(self._means.find_seconds, self._auth())).link

    async def wait_for_approval(self, pending: errors.ApprovalPending) -> Membership:
        """Ask again and again. Raises ApprovalPending when patience ends, and auth's refusal."""
        self._say("waiting for an administrator to approve this machine (aicli admin nodes approve) …")
        try:
            async with asyncio.timeout(self._means.approval_seconds):
                while True:
                    await asyncio.sleep(self._means.poll_seconds)
                    try:
                        return await self.ask(contract.renew_certificate, lambda auth: contract.RenewCertificate())
                    except errors.ApprovalPending:
                        continue
                    except (errors.NotReachable, errors.Unavailable):
                        self._say("lost the mesh; trying again …")
        except TimeoutError:
            hint = "run the same command again when an administrator has approved this machine"
            raise errors.ApprovalPending(pending.message, hint=hint) from None

    # --- inside -----------------------------------------------------------------------------------------------------

    async def _within(self, seconds: float, work: Coroutine[Any, Any, T]) -> T:
        try:
            async with asyncio.timeout(seconds):
                return await work
        except TimeoutError:
            raise self._why_nobody() from None

    async def _ask(self, method: Method[Request, Reply], request: Callable[[Peer], Request]) -> Reply:
        while True:
            connection = await self._auth()
            try:
                return await calling.ask(connection, method, request(connection.peer), deadline_seconds=_ANSWER_SECONDS)
            except errors.ApprovalPending:
                raise
            except errors.AimeshError as error:
                if not error.retryable:
                    raise
                # The link died, or auth lacks its database for a moment: both requests may be repeated.
                self._failed = error
                await asyncio.sleep(_PAUSE_SECONDS)

    async def _auth(self) -> rpc.RpcConnection:
        while True:
            for connection in self._connections:
                if connection.is_usable:
                    return connection
            self._came.clear()
            try:
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._came.wait()
            except TimeoutError:
                self._tell_trouble()

    def _tell_trouble(self) -> None:
        """What keeps Hyperswarm from running here; raises Unavailable when it does not pass."""
        if self.transport.connected or not self.transport.trouble:
            self._troubled_since = None
            return
        self._say(self.transport.trouble)
        if self.transport.trouble == STARTING:
            return
        now = self._means.clock()
        self._troubled_since = self._troubled_since or now
        if now - self._troubled_since > _TROUBLE_SECONDS:
            raise self._why_nobody()

    def _opened(self, link: Link) -> None:
        connection = rpc.RpcConnection(link, None)
        connection.on_closed.append(self._closed)
        self._connections.append(connection)
        self._came.set()
        self._say(f"found auth of mesh {self._door.mesh} ({link.path}) after {self._means.clock() - self._started:.1f} s")

    def _closed(self, connection: rpc.RpcConnection) -> None:
        if connection in self._connections:
            self._connections.remove(connection)

    def _found_another(self, refusal: HandshakeRefusal) -> None:
        self._refused = refusal.why
        self._say(f"found {refusal.node[:9]}…, which is no auth of mesh {self._door.mesh}: {refusal.why.message}")

    def _not_reached(self, node: NodeId, why: str) -> None:
        self._unreachable = f"found {node[:9]}… and cannot reach it: {why}"
        self._say(self._unreachable)

    def _why_nobody(self) -> errors.AimeshError:
        """The most telling of what went wrong; each with the next step."""
        if not self.transport.connected and self.transport.trouble:
            return errors.Unavailable(self.transport.trouble, hint="aicli doctor --worker looks at each step")
        if self._failed is not None:
            return errors.Unavailable(f"auth is there and could not answer: {self._failed.message}", hint="try again in a minute")
        if isinstance(self._refused, errors.ClockSkew):
            return errors.ClockSkew(self._refused.message, hint="set this machine's clock, as by NTP, and try again")
        if self._unreachable:
            return errors.NotReachable(self._unreachable, hint="the mesh needs a relay that both sides reach: aicli mesh relay")
        if self._refused is not None:
            return errors.NotReachable(
                f"nobody who answered is an auth of mesh {self._door.mesh}: {self._refused.message}", hint="ask for a new ticket"
            )
        return errors.NotReachable(
            f"nobody of mesh {self._door.mesh} was found within {self._means.find_seconds:.0f} s, asking {self._door.dht}",
            hint=self._next(),
        )

    def _next(self) -> str:
        if self._door.is_on_this_machine:
            return "these DHT nodes are on the machine that made the ticket: its administrator has to set DHT_HOST, then make a new one"
        return f"{NOBODY_ANSWERS}; aicli doctor --worker looks at each step"


class _Once:
    """Says nothing twice in a row: peers are tried again and again."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._last = ""

    def __call__(self, text: str) -> None:
        if text != self._last:
            self._last = text
            self._say(text)


def _checked(found: Membership, door: EnrollmentRoute, key: node_keys.NodeKey, say: Say, means: Means) -> Membership:
    """What auth sent, if it is for us and by the mesh that we came to. Raises NotCertified, ClockSkew and CertificateExpired."""
    trust = Trust(key, Role.NEWCOMER, door.authorities)
    if found.succession:
        trust.take_successor(found.succession)
    now, offset = means.clock(), means.clock() - found.now_ms / 1000
    if abs(offset) > certificates.LEEWAY_SECONDS:
        way = "ahead of" if offset > 0 else "behind"
        say(f"this machine's clock is {abs(offset) / 60:.0f} min {way} the mesh's: set it, as by NTP")
    certificate = certificates.check(found.certificate, trust.authorities, now)
    if certificate.node != key.id or certificate.role != found.role:
        raise errors.NotCertified("auth answered with a certificate for another node", hint="ask the administrator of the mesh")
    if found.revocations:
        trust.take_list(found.revocations)
    trust.check_not_revoked(key.id)
    say(f"certified as {certificate.role} until {datetime.fromtimestamp(certificate.not_after).astimezone():%Y-%m-%d %H:%M}")
    # A CA key that no trusted one has named is not believed, whoever sends it.
    return msgspec.structs.replace(found, authorities=trust.authorities)
