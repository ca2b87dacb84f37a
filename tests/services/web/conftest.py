"""The web application with a fake mesh behind it, and browsers of two kinds before it."""

import random
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from litestar.types import ASGIApp

from services.web import application, rendering, request_context
from services.web.http import front_app, passthrough
from services.web.session import csrf, sessions
from services.web.settings import WebSettings
from shared.telemetry import Metrics
from shared.telemetry.tracing import Traces
from tests.services.web import servers
from tests.services.web.browser import Browser
from tests.services.web.fake_mesh import NOW, FakeMesh

SECRET = "0123456789abcdef" * 4


@pytest.fixture
def mesh() -> FakeMesh:
    return FakeMesh()


@pytest.fixture
def settings() -> WebSettings:
    return WebSettings(node_key_file=Path("/nowhere/web.nk"), secret=SECRET)


@pytest.fixture(scope="session")
def renderer() -> rendering.Renderer:
    return rendering.Renderer.load()


@pytest.fixture
def site(mesh: FakeMesh, settings: WebSettings, renderer: rendering.Renderer) -> request_context.App:
    rng = random.Random(7)
    # A clock that stands still an hour past every memory: each request asks auth.
    ticks = iter(range(0, 10**9, 3600))
    return request_context.App(
        settings=settings,
        caller=mesh,
        sessions=sessions.WebSessions(mesh, lambda: float(next(ticks))),
        tokens=csrf.FormTokens(settings.secret, rng.randbytes),
        renderer=renderer,
        now=lambda: NOW,
    )


@pytest.fixture
async def app(site: request_context.App) -> AsyncIterator[ASGIApp]:
    # Port 1 on loopback: nobody listens there, so the gateway is away.
    async with passthrough.Passthrough.open("http://127.0.0.1:1") as gateway:
        yield front_app.FrontApp(application.build(site), gateway, Metrics("web"), Traces(ratio=0.0), always_over_tls=False)


@pytest.fixture
async def browser(app: ASGIApp) -> AsyncIterator[Browser]:
    """On plain HTTP at localhost, as after `make up`."""
    async with httpx.AsyncClient(transport=servers.in_process(app), base_url="http://localhost:3000") as client:
        yield Browser(client)


@pytest.fixture
async def tls_browser(app: ASGIApp) -> AsyncIterator[Browser]:
    async with httpx.AsyncClient(transport=servers.in_process(app), base_url="https://ai.example.org") as client:
        yield Browser(client)
