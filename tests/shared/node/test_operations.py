"""What a service's port answers before the service is there, and where it has no application of its own."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import httpx

from shared.api.gateway import Check
from shared.node.http_server import App, Operations
from shared.node.member import Node
from shared.node.settings import NodeSettings, PublicNodeSettings
from shared.types import Role
from tests import testnet


class Page:
    """A service whose HTTP application is what it is given."""

    role: ClassVar[Role] = Role.GATEWAY

    def __init__(self, app: App | None = None) -> None:
        self._app = app

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: Any, node: Node) -> AsyncIterator["Page"]:
        yield cls()

    async def checks(self) -> tuple[Check, ...]:
        return ()

    def asgi(self) -> App | None:
        return self._app


@asynccontextmanager
async def _port() -> AsyncIterator[tuple[Operations, httpx.AsyncClient]]:
    async with testnet.testnet() as net:
        started = await net.start(Page)
        operations = Operations(started.node, NodeSettings(node_key_file=Path("/nowhere")))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(operations), base_url="http://here") as http:
            yield operations, http


async def test_a_request_to_a_starting_gateway_is_a_503_and_not_a_404() -> None:
    async with _port() as (operations, http):
        answer = await http.post("/v1/chat/completions")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
        assert answer.headers["retry-after"] == "1"
        assert (await http.get("/healthz")).status_code == 200

        operations.open(Page())
        answer = await http.post("/v1/chat/completions")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


async def test_operations_endpoints_come_before_the_services_own_application() -> None:
    async def own(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 418, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async with _port() as (operations, http):
        operations.open(Page(own))
        assert (await http.get("/anything")).status_code == 418
        assert (await http.get("/readyz")).status_code == 200
        assert (await http.delete("/metrics")).status_code == 405


async def test_metrics_on_a_public_port_are_only_for_scrapers() -> None:
    async with testnet.testnet() as net:
        started = await net.start(Page)
        operations = Operations(started.node, PublicNodeSettings(node_key_file=Path("/nowhere"), metrics_networks=("192.0.2.0/24",)))
        for address, status in (("127.0.0.1", 200), ("192.0.2.7", 200), ("203.0.113.7", 403)):
            transport = httpx.ASGITransport(operations, client=(address, 50000))
            async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
                answer = await http.get("/metrics")
                assert answer.status_code == status, address
                assert ("ai_platform" in answer.text) is (status == 200)
                assert (await http.get("/healthz")).status_code == 200
