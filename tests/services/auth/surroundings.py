"""What auth sees of its node, kept for tests to look at, and short ways to call its methods."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import cast

import msgspec

from services.auth.service import AuthService
from shared.api import auth, events, gateway
from shared.api.method import Method, Reply, Request
from shared.api.usage import UserUsage
from shared.node import Node
from shared.rpc import Call
from shared.telemetry import Metrics
from shared.types import Credential, MeshName, NodeId, Peer, Role, UserId

ADMIN_PASSWORD = "correct horse battery"
PASSWORD = "secure_password"


class Gateway:
    """Answers readUsage as the gateway would."""

    def __init__(self) -> None:
        self.asked: list[UserId] = []

    async def call(self, method: Method[Request, Reply], request: Request, *, deadline_seconds: float) -> Reply:
        assert method is gateway.read_usage
        assert isinstance(request, gateway.ReadUsage)
        assert deadline_seconds > 0
        self.asked.append(request.user_id)
        return cast("Reply", UserUsage(request.user_id, 3, 30))


@dataclass
class Surroundings:
    mesh: MeshName = field(default=MeshName("test"))
    rpc: Gateway = field(default_factory=Gateway)
    metrics: Metrics = field(default_factory=lambda: Metrics("auth"))
    drain_started: asyncio.Event = field(default_factory=asyncio.Event)
    published: list[events.Event] = field(default_factory=list)
    service: AuthService = field(init=False)

    def as_node(self) -> Node:
        return cast("Node", self)

    def publish(self, event: events.Event) -> None:
        self.published.append(event)

    def refusals(self, reason: str) -> float:
        return self.metrics.registry.get_sample_value("ai_platform_auth_failures_total", {"reason": reason}) or 0

    async def register(self, name: str = "john_doe", password: str = PASSWORD, email: str | None = None) -> auth.User:
        body = auth.UserData(name, email or f"{name}@example.com", password)
        return await self.service.register_user(auth.RegisterUser(body), call())

    async def login(self, name: str = "john_doe", password: str = PASSWORD) -> auth.Session:
        return await self.service.login_user(auth.LoginUser(auth.Credentials(password, username=name)), call())

    async def new_key(self, credential: str, name: str = "default", requests_per_hour: int | None = None) -> auth.NewApiKey:
        request = auth.GenerateApiKey(name, requests_per_hour=requests_per_hour)
        return await self.service.generate_api_key(request, call(credential))

    async def user_with_key(self, name: str = "john_doe") -> tuple[auth.User, auth.NewApiKey]:
        await self.register(name)
        session = await self.login(name)
        return session.user, await self.new_key(session.access_token)

    async def admin_token(self) -> Credential:
        return (await self.login("admin", ADMIN_PASSWORD)).access_token


def call(credential: str | None = None, role: Role = Role.CLIENT) -> Call:
    return Call(
        Peer(role, NodeId("U" * 56)),
        deadline=time.monotonic() + 10,
        credential=None if credential is None else Credential(credential),
        idempotency_key=None,
    )


def fields_of(struct: msgspec.Struct) -> str:
    """Everything that an answer says, as it would travel."""
    return msgspec.json.encode(struct).decode()
