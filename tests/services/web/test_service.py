from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import httpx
import pytest

from services.web.service import WebService
from services.web.settings import WebSettings
from shared.node import Node
from shared.telemetry import Metrics
from shared.telemetry.tracing import Traces
from shared.types import Role
from tests.services.web import servers
from tests.services.web.fake_mesh import FakeMesh
from tests.services.web.servers import Receive, Scope, Send, serving


@dataclass(slots=True)
class FakeDirectory:
    alive: tuple[Role, ...] = (Role.AUTH,)

    def usable(self, role: Role) -> list[Role]:
        return [there for there in self.alive if there is role]


@dataclass(slots=True)
class FakeNode:
    """The parts of a node that web uses."""

    rpc: FakeMesh
    directory: FakeDirectory = field(default_factory=FakeDirectory)
    metrics: Metrics = field(default_factory=lambda: Metrics("web"))
    traces: Traces = field(default_factory=lambda: Traces(ratio=0.0))


@pytest.fixture
def node(mesh: FakeMesh) -> FakeNode:
    return FakeNode(mesh)


async def healthy_gateway(scope: Scope, receive: Receive, send: Send) -> None:
    status = 200 if scope["path"] == "/healthz" else 404
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def settings(gateway_url: str, public_url: str = "") -> WebSettings:
    return WebSettings(node_key_file=Path("/nowhere"), secret="s" * 32, gateway_url=gateway_url, public_url=public_url)


async def test_ready_when_auth_and_gateway_are_there(node: FakeNode) -> None:
    async with serving(healthy_gateway) as url, WebService.open(settings(url), cast("Node", node)) as service:
        assert [(check.name, check.ok, check.detail) for check in await service.checks()] == [("auth", True, ""), ("gateway", True, "")]


async def test_missing_services_are_named(node: FakeNode) -> None:
    node.directory.alive = ()
    async with WebService.open(settings("http://127.0.0.1:1"), cast("Node", node)) as service:
        auth, gateway = await service.checks()
    assert (auth.ok, gateway.ok) == (False, False)
    assert "python -m services.auth" in auth.detail
    assert "http://127.0.0.1:1 is not responding" in gateway.detail


async def test_behind_a_tls_proxy_the_public_url_decides(node: FakeNode) -> None:
    async with WebService.open(settings("http://127.0.0.1:1", "https://ai.example.org"), cast("Node", node)) as service:
        transport = servers.in_process(service.asgi())
        async with httpx.AsyncClient(transport=transport, base_url="http://10.0.0.5:3000") as client:
            page = await client.get("/login")
            landing = await client.get("/")
    assert page.headers["set-cookie"].startswith("__Host-aimesh_form=")
    assert "Secure" in page.headers["set-cookie"]
    assert "strict-transport-security" in page.headers
    assert "curl https://ai.example.org/v1" in landing.text
