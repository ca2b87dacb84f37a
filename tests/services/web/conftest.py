"""The web application with a fake mesh, and two kinds of browsers."""

import random
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import cast

import httpx
import pytest
from litestar import Litestar
from litestar.types import ASGIApp

from services.web import application, csrf, features, rendering, request_context, runbooks, sessions
from services.web.http import front_app, passthrough
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
    return rendering.Renderer.load(tabs=[tab for part in features.parts() for tab in part.tabs])


@pytest.fixture(scope="session")
def all_runbooks() -> Mapping[str, str]:
    return runbooks.load()


@pytest.fixture
async def gateway() -> AsyncIterator[passthrough.Passthrough]:
    # Nothing listens on port 1 of loopback, so the gateway is down. Loading the CA certificates would take longer than a page.
    async with httpx.AsyncClient(verify=False, trust_env=False) as client:
        yield passthrough.Passthrough(client, "http://127.0.0.1:1")


@pytest.fixture
def site(
    mesh: FakeMesh, settings: WebSettings, gateway: passthrough.Passthrough, renderer: rendering.Renderer, all_runbooks: Mapping[str, str]
) -> request_context.App:
    rng = random.Random(7)
    # Each reading is an hour after the last one, so cache entries have expired and each request calls auth.
    ticks = iter(range(0, 10**9, 3600))
    return request_context.App(
        settings=settings,
        caller=mesh,
        gateway=gateway,
        sessions=sessions.WebSessions(mesh, lambda: float(next(ticks))),
        tokens=csrf.FormTokens(settings.secret, rng.randbytes),
        renderer=renderer,
        now=lambda: NOW,
        runbooks=all_runbooks,
    )


class CurrentSite:
    """Forwards every attribute to the site of the current test."""

    def __init__(self) -> None:
        self.site: request_context.App | None = None

    def __getattr__(self, name: str) -> object:
        return getattr(self.site, name)


@pytest.fixture(scope="session")
def current_site() -> CurrentSite:
    return CurrentSite()


@pytest.fixture(scope="session")
def all_pages(current_site: CurrentSite) -> Litestar:
    """The application, shared by all tests: building it takes 0.15 s, ten times as long as testing a page."""
    return application.build(cast("request_context.App", current_site))


@pytest.fixture
def pages(all_pages: Litestar, current_site: CurrentSite, site: request_context.App) -> Litestar:
    """The shared application, serving this test's site."""
    current_site.site = site
    return all_pages


@pytest.fixture
def app(pages: Litestar, gateway: passthrough.Passthrough) -> ASGIApp:
    return front_app.FrontApp(pages, gateway, Metrics("web"), Traces(ratio=0.0), always_over_tls=False)


@pytest.fixture
async def browser(app: ASGIApp) -> AsyncIterator[Browser]:
    """A browser on plain HTTP at localhost, as after `make up`."""
    async with httpx.AsyncClient(transport=servers.in_process(app), base_url="http://localhost:3000") as client:
        yield Browser(client)


@pytest.fixture
async def alice(mesh: FakeMesh, browser: Browser) -> Browser:
    """A user's browser."""
    mesh.add_account("alice", "correct horse")
    await browser.sign_in("alice", "correct horse")
    return browser


@pytest.fixture
async def tls_browser(app: ASGIApp) -> AsyncIterator[Browser]:
    async with httpx.AsyncClient(transport=servers.in_process(app), base_url="https://ai.example.org") as client:
        yield Browser(client)
