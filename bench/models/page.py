"""The page Models of an administrator: 100 models, each on 10 of 50 machines, with prices, downloads and servers of other programs.

The page is served by a process of its own, whose mesh answers at once, but encodes and decodes what the gateway would send.
"""

import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import msgspec

from bench import http_load, processes
from bench.http_load import Load, Steady
from bench.report import Options, Rows
from services.web import application, csrf, rendering, request_context, runbooks, sessions
from services.web.http import front_app, passthrough
from services.web.settings import WebSettings
from shared.api import gateway, ledger
from shared.api.gateway import ModelPullRow
from shared.api.servers import ServerRow
from shared.config_documents import ServerKind
from shared.telemetry import Metrics
from shared.telemetry.tracing import Traces
from shared.types import MicroCredits, ModelName, UserRole
from tests.services.web import servers
from tests.services.web.browser import Browser
from tests.services.web.fake_mesh import Account, FakeMesh

MODELS, MACHINES, ON_EACH, SERVERS = 100, 50, 20, 8
MAX_MS = 300.0
PERSON = "ada", "correct horse"


class _Mesh(FakeMesh):
    """Has what the page shows."""

    def __init__(self) -> None:
        super().__init__()
        names = [ModelName(f"family-{number % 9}/model-{number}-instruct") for number in range(MODELS)]
        self.served = tuple(gateway.ServedModel(name, ON_EACH * MACHINES // MODELS, 32_768, aliases=(f"alias-{name}",)) for name in names)
        self.prices = [ledger.ModelPrice(name, MicroCredits(100_000), MicroCredits(200_000), MicroCredits(100)) for name in names]
        for number in range(MACHINES):
            has = [names[(number * ON_EACH + each) % MODELS] for each in range(ON_EACH)]
            row = self.add_worker(f"U{number:03}{'A' * 52}", *has, labels={"room": str(number % 5), "gpu": "yes"})
            pull = ModelPullRow(ModelName("coming"), 10**9, 4 * 10**9, 5e7)
            self.nodes[-1] = msgspec.structs.replace(row, pulls=(pull,) if number % 5 == 0 else ())
        self.servers = tuple(
            ServerRow(f"rack-{number}", f"http://10.0.0.{number}:8000/v1", ServerKind.VLLM, True, tuple(names[:5]), 2, "")
            for number in range(SERVERS)
        )
        user = msgspec.structs.replace(self.add_account(*PERSON), role=UserRole.ADMIN)
        self.accounts[PERSON[0]] = Account(user, PERSON[1])

    async def call(self, method: Any, request: Any, **more: Any) -> Any:
        self.calls.clear()
        return msgspec.msgpack.decode(msgspec.msgpack.encode(await super().call(method, request, **more)), type=method.reply)


async def serve() -> None:
    """Serve the page until the other process ends."""
    mesh, settings = _Mesh(), WebSettings(node_key_file=Path("/nowhere/web.nk"), secret="0123456789abcdef" * 4)
    async with httpx.AsyncClient(verify=False, trust_env=False) as client:
        nowhere = passthrough.Passthrough(client, "http://127.0.0.1:1")
        site = request_context.App(
            settings=settings,
            caller=mesh,
            sessions=sessions.WebSessions(mesh, time.monotonic),
            tokens=csrf.FormTokens(settings.secret, os.urandom),
            renderer=rendering.Renderer.load(),
            now=lambda: datetime.now(UTC),
            gateway=nowhere,
            runbooks=runbooks.load(),
        )
        app = front_app.FrontApp(application.build(site), nowhere, Metrics("web"), Traces(ratio=0.0), always_over_tls=False)
        async with servers.serving(app) as url:
            await processes.serve_until_stdin_ends(port=int(url.rpartition(":")[2]))


async def measure(rows: Rows, _shared: None, options: Options) -> None:
    async with processes.serving("models") as web:
        port = int(web.ready["port"])
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            await Browser(client).sign_in(*PERSON)
            page = (await client.get("/models")).text
            assert page.count("-instruct</bdi>") >= MODELS, page[:1000]
            cookie = "; ".join(f"{name}={value}" for name, value in client.cookies.items())
        asked = http_load.get("/models", f"cookie: {cookie}")
        outcome = await http_load.make(Load(port=port, requests=(asked,), pace=Steady(1, options.seconds)))
        assert all(answer.is_good for answer in outcome.answers), outcome.answers[:3]
    size = f"page Models, {MODELS} models on {MACHINES} machines"
    rows.alone(f"{size}: whole page, p95", outcome.percentile(0.95), "ms", at_most=MAX_MS)
    rows.alone(f"{size}: size", len(page.encode()) / 1e6, "MB")
