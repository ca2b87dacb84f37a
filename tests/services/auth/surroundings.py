"""A fake node for auth that tests can inspect, with helpers that call auth's methods."""

import asyncio
import base64
import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import msgspec

from services.auth.dependencies import Dependencies
from services.auth.service import AuthService
from services.auth.settings import AuthSettings
from shared import errors
from shared.api import auth, events, gateway, membership, service_settings
from shared.api.method import Method, Nothing, Reply, Request
from shared.api.usage_report import DailyUsage, UserUsage
from shared.identity import node_keys, tickets
from shared.identity.trust import Trust
from shared.node import Node
from shared.node.certificate_renewal import CertificateRenewal
from shared.node.membership_file import MembershipFile
from shared.protocol.directory import Directory
from shared.rpc import Dispatcher, RpcCall
from shared.rpc.authorization import check_declared
from shared.telemetry import Metrics
from shared.types import Credential, MeshName, NodeId, Peer, Role, TenantId, UserId

ADMIN_PASSWORD = "correct horse battery"
PASSWORD = "secure_password"
NO_LIMITS = auth.ApiKeyLimits()


def settings_of(database_url: str, redis_url: str) -> AuthSettings:
    return AuthSettings(
        node_key_file=Path("/nowhere"),
        database_url=database_url,
        redis_url=redis_url,
        admin_mfa=False,
        open_registration=True,
        api_key_pepper="p" * 32,
        admin_password=ADMIN_PASSWORD,
        data_key=base64.b64encode(bytes(range(32))).decode(),
    )


class Gateway:
    """Answers readUsage, listTiers, dropStoredItems and eraseStored as the gateway would."""

    def __init__(self) -> None:
        self.asked: list[UserId] = []
        self.days: tuple[DailyUsage, ...] = ()
        self.dropped: list[TenantId] = []
        #: Also the feature.
        self.without: list[tuple[TenantId, str]] = []
        #: Features that it lacks.
        self.lacks: set[str] = set()
        self.away = False
        self.plans: tuple[str, ...] = ("free", "pro", "enterprise")

    async def call(self, method: Method[Request, Reply], request: Request, *, to: NodeId | None = None, deadline_seconds: float) -> Reply:
        if self.away:
            raise errors.NotReachable("no gateway on the mesh")
        if isinstance(request, service_settings.ListTiers):
            assert method is service_settings.list_tiers
            return cast("Reply", service_settings.Tiers(tuple(service_settings.TierTerms(name) for name in self.plans)))
        if isinstance(request, gateway.DropStoredItems):
            assert method is gateway.drop_stored_items
            self.dropped.append(request.tenant_id)
            return cast("Reply", Nothing())
        if isinstance(request, gateway.EraseStored):
            assert method is gateway.erase_stored
            if request.feature in self.lacks:
                raise errors.UnknownMethod(f"this gateway has no feature {request.feature}")
            self.without.append((request.tenant_id, request.feature))
            return cast("Reply", Nothing())
        assert method is gateway.read_usage
        assert isinstance(request, gateway.ReadUsage)
        assert deadline_seconds > 0
        self.asked.append(UserId(request.tenant_id))
        return cast("Reply", UserUsage(UserId(request.tenant_id), 3, 30, self.days))


def _no_tasks() -> Dispatcher:
    """Return a dispatcher that finds handlers and checks callers. Calls run in the test's own task."""
    return Dispatcher(cast("asyncio.TaskGroup", None), lambda method, status, seconds: None, lambda method, error: None)


@dataclass
class Surroundings:
    mesh: MeshName = field(default=MeshName("test"))
    key: node_keys.NodeKey = field(default_factory=lambda: node_keys.NodeKey(node_keys.new_seed()))
    #: Written only if a test names a folder that exists.
    state_file: Path = Path("/nowhere/auth.mesh")
    dispatcher: Dispatcher = field(default_factory=_no_tasks)
    trust: Trust = field(init=False)
    renewal: CertificateRenewal = field(init=False)
    #: How often the node was notified that its membership changed.
    changes: int = 0
    rpc: Gateway = field(default_factory=Gateway)
    metrics: Metrics = field(default_factory=lambda: Metrics("auth"))
    directory: Directory = field(default_factory=lambda: Directory(time.monotonic))
    drain_started: asyncio.Event = field(default_factory=asyncio.Event)
    published: list[events.Event] = field(default_factory=list)
    _service: AuthService = field(init=False)
    _admin: Credential | None = None

    def __post_init__(self) -> None:
        self.trust = Trust(self.key, Role.AUTH)
        kept = MembershipFile(self.mesh, Role.AUTH)
        self.renewal = CertificateRenewal(self.trust, kept, self.state_file, Directory(time.monotonic), cast("Any", None))
        self.renewal.changed = self._changed

    @property
    def service(self) -> AuthService:
        return self._service

    @service.setter
    def service(self, service: AuthService) -> None:
        """Register the service's handlers, as its node does."""
        self._service = service
        self.dispatcher.add(service)
        check_declared(self.dispatcher.methods, self.dispatcher.gate)

    @property
    def parts(self) -> Dependencies:
        """Return what the handlers of the running service share."""
        return self._service._wiring._parts

    @property
    def id(self) -> NodeId:
        return self.key.id

    def _changed(self) -> None:
        self.changes += 1

    def as_node(self) -> Node:
        return cast("Node", self)

    def publish(self, event: events.Event) -> None:
        self.published.append(event)

    def refusals(self, reason: str) -> float:
        return self.metrics.registry.get_sample_value("ai_platform_auth_failures_total", {"reason": reason}) or 0

    async def register(self, name: str = "john_doe", password: str = PASSWORD, email: str | None = None) -> auth.User:
        body = auth.UserData(name, email or f"{name}@example.com", password)
        return await self.ask(auth.register_user, auth.RegisterUser(body))

    async def login(self, name: str = "john_doe", password: str = PASSWORD) -> auth.LoginSession:
        return await self.ask(auth.login_user, auth.LoginUser(auth.Credentials(password, username=name)))

    async def new_key(self, credential: str, name: str = "default", limits: auth.ApiKeyLimits = NO_LIMITS) -> auth.CreatedApiKey:
        request = auth.GenerateApiKey(name, limits=limits, all_rights=True)
        return await self.ask(auth.generate_api_key, request, credential)

    async def user_with_key(self, name: str = "john_doe") -> tuple[auth.User, auth.CreatedApiKey]:
        await self.register(name)
        session = await self.login(name)
        return session.user, await self.new_key(session.access_token)

    async def ask(
        self, method: Method[Request, Reply], request: Request, credential: str | None = None, *, peer: Peer | None = None
    ) -> Reply:
        """Call a method as over a link: the handler is looked up for this peer, and the gate checks the credential."""
        peer = peer or Peer(Role.CLIENT if Role.CLIENT in method.callers else min(method.callers), CLIENT.node)
        handler, asked = self.dispatcher.find(method.name, peer), call(credential, peer=peer)
        assert self.dispatcher.gate is not None
        asked.found = await self.dispatcher.gate.admit(method, request, asked)
        made = await handler.function(request, asked)
        return cast("Reply", made if self.dispatcher.finish is None else await self.dispatcher.finish(made))

    async def ticket(self, role: Role = Role.WORKER, **changed: Any) -> membership.NewTicket:
        """Create a ticket as an administrator, through a client."""
        return await self.administer(membership.create_ticket, membership.CreateTicket(role, **changed))

    async def administer(self, method: Method[Request, Reply], request: Request) -> Reply:
        self._admin = self._admin or await self.admin_token()
        return await self.ask(method, request, self._admin)

    async def admin_token(self) -> Credential:
        return (await self.login("admin", ADMIN_PASSWORD)).access_token


class Newcomer:
    """A machine with its own key, connected over Hyperswarm."""

    def __init__(self) -> None:
        self.key = node_keys.NodeKey(node_keys.new_seed())
        self.reconnect()

    def reconnect(self) -> None:
        self.peer = Peer(Role.NEWCOMER, self.key.id, self.key.id, channel=secrets.token_bytes(64))

    async def enroll(self, world: Surroundings, ticket: str, **changed: Any) -> membership.Membership:
        request = msgspec.structs.replace(self.request(world, tickets.parse(ticket)), **changed)
        return await world.ask(membership.enroll_node, request, peer=self.peer)

    def request(self, world: Surroundings, ticket: tickets.Ticket) -> membership.EnrollNode:
        text = tickets.use_text(ticket.id, self.key.id, world.id, self.peer.channel)
        return membership.EnrollNode(ticket.id, ticket.key.sign("enroll", text), self.key.sign("enroll", text), name="box")

    async def vouch_for(self, world: Surroundings, sibling: "Newcomer", signer: "Newcomer | None" = None) -> membership.Membership:
        text = tickets.use_text(self.key.id, sibling.key.id, world.id, self.peer.channel)
        request = membership.AddSibling(sibling.key.id, (signer or sibling).key.sign("sibling", text), name="box ollama")
        return await world.ask(membership.add_sibling, request, peer=self.peer)

    async def renew(self, world: Surroundings) -> membership.Membership:
        return await world.ask(membership.renew_certificate, membership.RenewCertificate(), peer=self.peer)


CLIENT = Peer(Role.CLIENT, NodeId("U" * 56))


def call(credential: str | None = None, role: Role = Role.CLIENT, peer: Peer | None = None) -> RpcCall:
    return RpcCall(
        peer or Peer(role, CLIENT.node),
        deadline=time.monotonic() + 10,
        credential=None if credential is None else Credential(credential),
        idempotency_key=None,
    )


def fields_of(struct: msgspec.Struct) -> str:
    """Return everything in an answer, as it would be sent."""
    return msgspec.json.encode(struct).decode()
