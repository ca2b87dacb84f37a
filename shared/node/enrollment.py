"""Enrolls a node in a mesh: a node without a valid certificate finds auth on the enrollment topic and asks for one.

The node tells a peer nothing before that has shown an auth certificate of the mesh's CA, and checks everything that auth answers. A user
is waiting, so progress is reported in plain words.
"""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from shared import addresses, errors
from shared.api import membership as contract
from shared.api.membership import Membership
from shared.api.method import Method, Reply, Request
from shared.identity import certificates, login_tokens, node_keys, tickets
from shared.identity.trust import Trust
from shared.node import membership_file, swarm_settings
from shared.node.lifecycle import background
from shared.node.membership_file import MembershipFile
from shared.node.settings import NodeSettings
from shared.protocol import topics
from shared.rpc import calling
from shared.rpc.connection import RpcConnection
from shared.telemetry import logs
from shared.timing.bounded_waits import wait_until_set
from shared.transports.handshake import HandshakeRefusal
from shared.transports.link import Link, LocalNode
from shared.transports.nats import servers
from shared.transports.nats.login import NatsFiles, NatsLoginRefused
from shared.transports.nats.server_connection import NatsMessage
from shared.transports.nats_link import NatsTransport
from shared.transports.swarm_transport import STARTING, MeetingTopics, SwarmTransport
from shared.types import AuthorityId, MeshName, NodeId, Peer, Role

Report = Callable[[str], None]
T = TypeVar("T")

NO_ANSWER_HINT = "is the mesh up, and does this network let UDP out? If so, the mesh may have a new address: ask for a new ticket"
_ANSWER_SECONDS = 10.0
_PAUSE_SECONDS = 0.5
#: How often to check whether Hyperswarm runs here, and how long it may fail to start.
_LOOK_SECONDS = 1.0
_TROUBLE_SECONDS = 8.0
#: How long auth may refuse our login: an administrator may be changing something, or Hyperswarm finds another auth.
_REFUSED_SECONDS = 10.0
#: Announcements of auth that wait to be looked at.
_MAX_ANNOUNCED = 100
_MAX_TICKET_BYTES = 64 * 1024

_log = logs.get(part="membership")


@dataclass(frozen=True, slots=True)
class EnrollmentRoute:
    """Where to find a mesh from outside, and how to recognize it."""

    mesh: MeshName
    #: The trusted CA keys. Each has its own enrollment topic.
    authorities: tuple[AuthorityId, ...]
    bootstrap: tuple[str, ...]
    relays: tuple[bytes, ...]
    older_bootstrap: tuple[str, ...] = ()
    #: URLs of its NATS servers.
    nats: tuple[str, ...] = ()
    #: Whether Hyperswarm is tried beside them.
    beside: bool = False

    @property
    def has_swarm(self) -> bool:
        return self.beside or not self.nats

    @property
    def servers(self) -> tuple[str, ...]:
        """Return the addresses of its NATS servers, for messages."""
        return tuple(str(server) for url in self.nats for server in servers.read_urls(url))

    @property
    def is_on_this_machine(self) -> bool:
        """Return whether all DHT nodes are on loopback, so that only nodes on this machine can be found."""
        hosts = {address.rpartition(":")[0].strip("[]") for address in self.bootstrap}
        return bool(hosts) and hosts <= addresses.LOOPBACK

    @property
    def places(self) -> str:
        """Return where to look for the mesh, for messages."""
        dht = (self.bootstrap or ("the public DHT",)) if self.has_swarm else ()
        return ", ".join((*self.servers, *dht))


def route_of(found: tickets.Ticket | MembershipFile) -> EnrollmentRoute:
    if isinstance(found, tickets.Ticket):
        return EnrollmentRoute(found.mesh, (found.authority_id,), found.bootstrap, found.relays, nats=found.nats, beside=found.beside)
    return EnrollmentRoute(found.mesh, found.authorities, found.bootstrap, found.relays, found.older_bootstrap, found.nats, found.beside)


def _open_transport(route: EnrollmentRoute, me: LocalNode, trust: Trust, node: Path | None) -> SwarmTransport:
    """Return a transport that uses the mesh's DHT nodes and relays. It is not running yet."""
    return SwarmTransport(me, trust, swarm_settings.opener(trust.me, route.bootstrap, route.relays, node=node, older=route.older_bootstrap))


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrollmentOptions:
    """Timeouts, and what tests replace."""

    #: A first connection takes about a second, and each attempt at random punching 20 s.
    find_seconds: float = 60.0
    poll_seconds: float = 5.0
    approval_seconds: float = 24 * 3600.0
    software: str = "aimesh/0.1"
    clock: Callable[[], float] = time.time
    node: Path | None = None
    nats_files: NatsFiles = field(default_factory=NatsFiles)


@dataclass(frozen=True, slots=True)
class EnrollingNode:
    """What a machine says about itself when it joins."""

    #: What it is to become.
    role: Role
    name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    #: Called with what to save while an administrator still has to approve. After that the ticket is not needed.
    on_pending: Callable[[MembershipFile], object] = lambda membership: None


_DEFAULTS = EnrollmentOptions()


async def enroll(
    ticket: tickets.Ticket, key: node_keys.NodeKey, newcomer: EnrollingNode, report: Report, options: EnrollmentOptions = _DEFAULTS
) -> Membership:
    """Use the ticket for this key. Repeating this with the same two is safe. Waits for an administrator's approval if needed.

    Raises BadTicket, NodeRevoked (the key was a member before: make a new one), NotReachable and Unavailable (no auth was found, or
    Hyperswarm cannot run here), ClockSkew, NotCertified (auth's answer is not for us) and ApprovalPending (nobody approved).
    """
    route = route_of(ticket)

    def use(auth: Peer) -> contract.EnrollNode:
        text = tickets.use_text(ticket.id, key.id, auth.node, auth.channel)
        ours = newcomer.name[:100], dict(newcomer.labels), newcomer.role
        return contract.EnrollNode(ticket.id, ticket.key.sign("enroll", text), key.sign("enroll", text), *ours)

    trust = Trust(key, Role.NEWCOMER, route.authorities)
    async with open_session(
        route, trust, report, options, lambda nonce: login_tokens.of_ticket(ticket.id, ticket.key.sign, key.id, nonce)
    ) as session:
        try:
            found = await session.ask(contract.enroll_node, use)
        except errors.ApprovalPending as pending:
            newcomer.on_pending(
                MembershipFile(
                    route.mesh,
                    Role.NEWCOMER,
                    authorities=route.authorities,
                    bootstrap=route.bootstrap,
                    relays=route.relays,
                    nats=route.nats,
                    beside=route.beside,
                )
            )
            found = await session.wait_for_approval(pending)
    check_role(found.role, newcomer.role)
    return _checked(found, route, key, report, options)


def check_role(found: Role, wanted: Role) -> None:
    """Raise BadTicket if this is another role. Auth refuses such a ticket before it is used, except an auth of version 0.3."""
    if found is not wanted:
        hint = f"ask for a {wanted} ticket: aicli admin tickets create --role {wanted}"
        raise errors.BadTicket(f"this ticket is for a {found}, not a {wanted}, and is now used", hint=hint)


async def renew_as_newcomer(
    membership: MembershipFile,
    key: node_keys.NodeKey,
    report: Report = lambda text: None,
    *,
    options: EnrollmentOptions = _DEFAULTS,
) -> MembershipFile:
    """Get a new certificate for a node whose own expired long ago, or was never issued because the node was not approved.

    Over Hyperswarm, the node's own swarm must be closed, because two with one key disconnect each other.
    Raises what ``enroll`` does.
    """
    async with _known_session(membership, key, report, options) as session:
        try:
            found = await session.ask(contract.renew_certificate, lambda auth: contract.RenewCertificate())
        except errors.ApprovalPending as pending:
            found = await session.wait_for_approval(pending)
    return membership_file.of(_checked(found, route_of(membership), key, report, options), membership)


async def add_sibling(
    machine: MembershipFile, key: node_keys.NodeKey, sibling: node_keys.NodeKey, name: str, report: Report = lambda text: None
) -> MembershipFile:
    """Get a certificate for another worker process of a machine, for which the machine's own key vouches. Raises what ``enroll`` does."""

    def vouch(auth: Peer) -> contract.AddSibling:
        text = tickets.use_text(key.id, sibling.id, auth.node, auth.channel)
        return contract.AddSibling(sibling.id, sibling.sign("sibling", text), name[:100])

    async with _known_session(machine, key, report, _DEFAULTS) as session:
        found = await session.ask(contract.add_sibling, vouch)
    return msgspec.structs.replace(
        membership_file.of(_checked(found, route_of(machine), sibling, report, _DEFAULTS), machine), model="", accept_models=None
    )


async def leave_for_good(
    membership: MembershipFile, key: node_keys.NodeKey, report: Report, options: EnrollmentOptions = _DEFAULTS
) -> None:
    """Have auth revoke this node, whose own process must have ended. Raises what ``enroll`` does, but not NodeRevoked."""
    async with _known_session(membership, key, report, options) as session:
        # A node that is revoked loses its link, usually before it has the answer.
        with suppress(errors.NodeRevoked):
            await session.ask(contract.leave_node, lambda auth: contract.LeaveNode(for_good=True))


@asynccontextmanager
async def _known_session(
    membership: MembershipFile, key: node_keys.NodeKey, report: Report, options: EnrollmentOptions
) -> AsyncIterator["EnrollmentSession"]:
    """Look for auth with the key of a member while the block runs."""
    route = route_of(membership)
    trust = Trust(key, Role.NEWCOMER, route.authorities)
    if membership.revocations:
        trust.take_list(membership.revocations)
    async with open_session(route, trust, report, options, lambda nonce: login_tokens.of_newcomer(membership.certificate)) as session:
        yield session


@asynccontextmanager
async def open_session(
    route: EnrollmentRoute,
    trust: Trust,
    report: Report,
    options: EnrollmentOptions = _DEFAULTS,
    nats_token: Callable[[str], str] = login_tokens.without,
) -> AsyncIterator["EnrollmentSession"]:
    """Look for auth as a newcomer while the block runs."""
    me = LocalNode(route.mesh, Role.NEWCOMER, trust.me, options.software)
    session = EnrollmentSession(route, trust, report, options)
    async with AsyncExitStack() as stack:
        if route.nats:
            nats = NatsTransport(me, ",".join(route.nats), options.nats_files, trust, nats_token)
            await stack.enter_async_context(_look_over_nats(session, nats, route, options))
        if route.has_swarm:
            await stack.enter_async_context(_look_over_swarm(session, _open_transport(route, me, trust, options.node), route))
        report(f"looking for the mesh {route.mesh}{' at ' if route.nats else ''}{', '.join(route.servers)} …")
        yield session


@asynccontextmanager
async def _look_over_swarm(session: "EnrollmentSession", transport: SwarmTransport, route: EnrollmentRoute) -> AsyncIterator[None]:
    session.use(transport)
    transport.on_refused = session.on_refused
    transport.on_unreachable = session.on_unreachable
    transport.meet([MeetingTopics(topics.enrollment_topic(node_keys.raw_of(ca)), announce=False, look=True) for ca in route.authorities])
    async with background() as tasks:
        tasks.create_task(transport.run())
        try:
            yield
        finally:
            await transport.close(errors.LinkLost("the enrollment is complete"))


@asynccontextmanager
async def _look_over_nats(
    session: "EnrollmentSession", transport: NatsTransport, route: EnrollmentRoute, options: EnrollmentOptions
) -> AsyncIterator[None]:
    session.use(transport)
    transport.on_refused = session.on_forbidden
    announced: asyncio.Queue[NodeId] = asyncio.Queue(_MAX_ANNOUNCED)

    def note(message: NatsMessage) -> None:
        with suppress(asyncio.QueueFull):
            announced.put_nowait(topics.sender_of(message.subject.decode())[1])

    async def look() -> None:
        try:
            await transport.connect(deadline_seconds=options.find_seconds)
        except errors.Unavailable as error:
            session.on_nats_away(error)
            return
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(transport.run())
            tasks.create_task(_dial(session, transport, announced))
            tasks.create_task(_ask_for_announcements(transport, route.mesh))

    transport.nats.subscribe(topics.announcements(route.mesh, Role.AUTH), note)
    async with background() as tasks:
        tasks.create_task(look())
        try:
            yield
        finally:
            await transport.close(errors.LinkLost("the enrollment is complete"))


async def _dial(session: "EnrollmentSession", transport: NatsTransport, announced: asyncio.Queue[NodeId]) -> None:
    while True:
        auth = Peer(Role.AUTH, await announced.get())
        if not any(link.peer.node == auth.node for link in transport.links()):
            try:
                session.add(await transport.dial(auth))
            except errors.AimeshError as error:
                session.on_unreachable(auth.node, error.message)


async def _ask_for_announcements(transport: NatsTransport, mesh: MeshName) -> None:
    while True:
        transport.nats.publish(topics.newcomer_query(mesh, transport.me.node), b"")
        await asyncio.sleep(_LOOK_SECONDS)


class EnrollmentSession:
    """A newcomer's links to auth. A request goes to a connected auth, or to the next one to connect."""

    def __init__(self, route: EnrollmentRoute, trust: Trust, report: Report, options: EnrollmentOptions) -> None:
        #: One or two.
        self.transports: list[SwarmTransport | NatsTransport] = []
        self._route = route
        self._trust = trust
        self._report = _ReportChanges(report)
        self._options = options
        self._started = options.clock()
        self._connections: list[RpcConnection] = []
        self._connected = asyncio.Event()
        self._troubled_since: float | None = None
        self._refused_since: float | None = None
        self._refused: errors.AimeshError | None = None
        self._unreachable = ""
        self._failed: errors.AimeshError | None = None
        self._forbidden = ""
        #: Why NATS is not tried any more.
        self._nats_problem: errors.Unavailable | None = None

    def use(self, transport: SwarmTransport | NatsTransport) -> None:
        self.transports.append(transport)
        transport.on_link = self.add

    async def ask(self, method: Method[Request, Reply], request: Callable[[Peer], Request]) -> Reply:
        """Send what ``request`` makes for the auth that gets it. Raises auth's refusal, or why no auth answered in time."""
        return await self._within(self._options.find_seconds, self._ask(method, request))

    async def wait_for_auth(self) -> Link:
        """Return the first link to an auth of this mesh. Raises why there is none in time."""
        return (await self._within(self._options.find_seconds, self._auth())).link

    async def wait_for_approval(self, pending: errors.ApprovalPending) -> Membership:
        """Ask repeatedly. Raises ApprovalPending on timeout, or auth's refusal."""
        self._report("waiting for an administrator to approve this machine (aicli admin nodes approve) …")
        try:
            async with asyncio.timeout(self._options.approval_seconds):
                while True:
                    await asyncio.sleep(self._options.poll_seconds)
                    try:
                        return await self.ask(contract.renew_certificate, lambda auth: contract.RenewCertificate())
                    except errors.ApprovalPending:
                        continue
                    except NatsLoginRefused:
                        raise  # its ticket was revoked meanwhile, or the node
                    except (errors.NotReachable, errors.Unavailable):
                        self._report("lost the mesh; trying again …")
        except TimeoutError:
            hint = "run the same command again once an administrator has approved this machine"
            raise errors.ApprovalPending(pending.message, hint=hint) from None

    async def _within(self, seconds: float, work: Coroutine[Any, Any, T]) -> T:
        try:
            async with asyncio.timeout(seconds):
                return await work
        except TimeoutError:
            raise self._why_no_answer() from None

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
                if self._trust.was_revoked:
                    raise errors.NodeRevoked(error.message) from error
                # The link was lost, or auth's database is down: both requests may be repeated.
                self._failed = error
                await asyncio.sleep(_PAUSE_SECONDS)

    async def _auth(self) -> RpcConnection:
        while True:
            for connection in self._connections:
                if connection.is_usable:
                    return connection
            if self._nats_problem is not None and not self._route.has_swarm:
                raise self._nats_problem
            self._check_login()
            if self._forbidden and not self._route.has_swarm:
                raise errors.NotAllowed(
                    f"this NATS server takes no newcomers: {self._forbidden}", hint="it needs auth_callout, see docs/howto/deploy.md"
                )
            self._connected.clear()
            if not await wait_until_set(self._connected, _LOOK_SECONDS):
                self._report_trouble()

    def _check_login(self) -> None:
        """Raises Unavailable if auth refuses our login, with a used ticket for example: it would refuse us over Hyperswarm, too."""
        trouble = next((each.nats.trouble for each in self.transports if isinstance(each, NatsTransport)), None)
        now = self._options.clock()
        self._refused_since = (self._refused_since or now) if isinstance(trouble, NatsLoginRefused) else None
        if trouble is not None and self._refused_since is not None and now - self._refused_since >= _REFUSED_SECONDS:
            raise trouble

    @property
    def _trouble(self) -> str:
        """Return why a transport doesn't work; empty if all do."""
        return "; ".join(each.trouble for each in self.transports if not each.connected and each.trouble)

    def _report_trouble(self) -> None:
        """Report what doesn't work here. Raises Unavailable if Hyperswarm is alone, and doesn't start. NATS is tried until the deadline."""
        trouble = self._trouble
        if not trouble:
            self._troubled_since = None
            return
        self._report(trouble)
        if trouble == STARTING or self._route.nats:
            return
        now = self._options.clock()
        self._troubled_since = self._troubled_since or now
        if now - self._troubled_since > _TROUBLE_SECONDS:
            raise self._why_no_answer()

    def add(self, link: Link) -> None:
        """Use a link to auth."""
        connection = RpcConnection(link, None)
        connection.on_closed.append(self._closed)
        self._connections.append(connection)
        self._refused_since = None
        self._connected.set()
        self._report(f"found auth of mesh {self._route.mesh} ({link.path}) after {self._options.clock() - self._started:.1f} s")

    def _closed(self, connection: RpcConnection) -> None:
        if connection in self._connections:
            self._connections.remove(connection)

    def on_refused(self, refusal: HandshakeRefusal) -> None:
        self._refused = refusal.why
        self._report(f"found {refusal.node[:9]}…, which is not an auth of mesh {self._route.mesh}: {refusal.why.message}")

    def on_forbidden(self, words: str) -> None:
        """The NATS server gives newcomers no rights: it does not ask auth about logins."""
        self._forbidden = words
        self._connected.set()

    def on_nats_away(self, problem: errors.Unavailable) -> None:
        self._nats_problem = problem
        self._connected.set()

    def on_unreachable(self, node: NodeId, why: str) -> None:
        self._unreachable = f"found {node[:9]}… but cannot reach it: {why}"
        self._report(self._unreachable)

    def _why_no_answer(self) -> errors.AimeshError:
        """Return the most informative error, with the next step."""
        if isinstance(self._refused, errors.ClockSkew):
            return errors.ClockSkew(self._refused.message, hint="set this machine's clock, for example with NTP, and try again")
        if trouble := self._trouble:
            return errors.Unavailable("; ".join(filter(None, (trouble, self._unreachable))), hint="run `aicli doctor --worker`")
        if self._failed is not None:
            return errors.Unavailable(f"auth was found but could not answer: {self._failed.message}", hint="try again in a minute")
        if self._unreachable:
            return errors.NotReachable(self._unreachable, hint="the mesh needs a relay that both sides can reach: aicli mesh relay")
        if self._refused is not None:
            return errors.NotReachable(
                f"no node that answered is an auth of mesh {self._route.mesh}: {self._refused.message}", hint="ask for a new ticket"
            )
        return errors.NotReachable(
            f"no node of mesh {self._route.mesh} was found within {self._options.find_seconds:.0f} s through {self._route.places}",
            hint=self._next(),
        )

    def _next(self) -> str:
        if self._route.is_on_this_machine:
            return "these DHT nodes are on the machine that made the ticket: its administrator must set DHT_HOST and make a new one"
        return f"{NO_ANSWER_HINT}; or run `aicli doctor --worker`"


class _ReportChanges:
    """Reports a message only if it differs from the last one, because peers are tried again and again."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._last = ""

    def __call__(self, text: str) -> None:
        if text != self._last:
            self._last = text
            self._report(text)


def _checked(found: Membership, route: EnrollmentRoute, key: node_keys.NodeKey, report: Report, options: EnrollmentOptions) -> Membership:
    """Return auth's answer if it is for us and from our mesh. Raises NotCertified, ClockSkew and CertificateExpired."""
    trust = Trust(key, Role.NEWCOMER, route.authorities)
    if found.succession:
        trust.take_successor(found.succession)
    now, offset = options.clock(), options.clock() - found.now_ms / 1000
    if abs(offset) > certificates.LEEWAY_SECONDS:
        way = "ahead of" if offset > 0 else "behind"
        report(f"this machine's clock is {abs(offset) / 60:.0f} min {way} the mesh's: set it, for example with NTP")
    certificate = certificates.check(found.certificate, trust.authorities, now)
    if certificate.node != key.id or certificate.role != found.role:
        raise errors.NotCertified("auth answered with a certificate for another node", hint="ask the administrator of the mesh")
    if found.revocations:
        trust.take_list(found.revocations)
    trust.check_not_revoked(key.id)
    report(f"certified as {certificate.role} until {datetime.fromtimestamp(certificate.not_after).astimezone():%Y-%m-%d %H:%M}")
    # Keep only CA keys that a trusted one has signed.
    return msgspec.structs.replace(found, authorities=trust.authorities)


async def join_over_nats(me: LocalNode, ticket_file: Path, settings: NodeSettings) -> MembershipFile:
    """Get a certificate over NATS with the ticket in a file. Raises BadSettings and what ``enroll`` raises."""
    ticket = _read_ticket(ticket_file)
    ticket = msgspec.structs.replace(ticket, nats=(settings.nats_url,), beside=False)
    options = EnrollmentOptions(nats_files=settings.nats_files, software=me.software)
    try:
        joined = await enroll(ticket, me.key, EnrollingNode(me.role, socket.gethostname()), _log_progress, options)
    except NatsLoginRefused as error:
        raise errors.BadSettings(f"this node cannot join with the ticket in JOIN_TICKET_FILE: {error.message}", hint=error.hint) from error
    return membership_file.with_choices(membership_file.of(joined), ticket)


async def renew_over_nats(
    membership: MembershipFile, key: node_keys.NodeKey, settings: NodeSettings, *, beside: bool = False
) -> MembershipFile:
    """Replace a certificate that has expired, also over Hyperswarm if ``beside``. Raises what ``enroll`` raises."""
    options = EnrollmentOptions(nats_files=settings.nats_files, approval_seconds=0)
    found = await renew_as_newcomer(
        msgspec.structs.replace(membership, nats=(settings.nats_url,), beside=beside), key, _log_progress, options=options
    )
    return msgspec.structs.replace(found, nats=membership.nats, beside=membership.beside)


def _read_ticket(path: Path) -> tickets.Ticket:
    try:
        return tickets.parse(
            node_keys.read_private(path, setting="JOIN_TICKET_FILE", most_bytes=_MAX_TICKET_BYTES).decode(errors="replace")
        )
    except OSError as error:
        raise errors.BadSettings(f"JOIN_TICKET_FILE: {path} cannot be read: {error.strerror}") from error


def _log_progress(text: str) -> None:
    _log.info("joining", progress=text)
