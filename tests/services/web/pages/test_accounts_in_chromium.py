"""The pages of accounts in a real browser: the way to the provider and back under our policy, and whether everybody can use them."""

import random
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import msgspec
import pytest
import pytest_asyncio

from services.web import application, csrf, door, passthrough, rendering, sessions, visits
from services.web.settings import WebSettings
from shared.api import accounts
from shared.telemetry import Metrics
from shared.tracing import Traces
from tests.acceptance import chromium
from tests.acceptance.chromium import Browser, Page
from tests.services.web.fake_accounts import CODE, GOOD_CODE
from tests.services.web.fake_mesh import NOW, FakeMesh
from tests.services.web.js import axe
from tests.services.web.js.site import wait_for
from tests.services.web.servers import serving

pytestmark = pytest.mark.asyncio(loop_scope="module")

Message = MutableMapping[str, Any]


@dataclass(slots=True)
class Provider:
    """Sends everybody straight back, as one does that knows the browser already."""

    back: str = ""

    async def __call__(self, scope: Message, _: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]) -> None:
        start: Message = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/html")]}
        if scope["path"] == "/authorize":
            state = parse_qs(scope["query_string"].decode())["state"][0]
            way = f"{self.back}?state={state}&code={GOOD_CODE}&iss=https://login.example"
            start = {"type": "http.response.start", "status": 302, "headers": [(b"location", way.encode())]}
        await send(start)
        await send({"type": "http.response.body", "body": b"<!doctype html><title>Provider</title><p>signed out there"})


class MeshWithProvider(FakeMesh):
    def __init__(self) -> None:
        super().__init__()
        self.provider = ""
        self.options = msgspec.structs.replace(self.options, oidc_name="Corp")

    def _begin_oidc(self, request: accounts.BeginOidc, credential: object) -> accounts.OidcStart:
        start = super()._begin_oidc(request, None)
        return accounts.OidcStart(start.url.replace("https://login.example", self.provider), start.binding)


@dataclass(frozen=True, slots=True)
class Stage:
    mesh: MeshWithProvider
    origin: str
    chrome: Browser


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage() -> AsyncIterator[Stage]:
    mesh, provider = MeshWithProvider(), Provider()
    settings = WebSettings(node_key_file=Path("/nowhere/web.nk"), secret="0123456789abcdef" * 4)
    # Each request asks auth.
    ticks = iter(range(0, 10**9, 3600))
    site = visits.Site(
        settings=settings,
        caller=mesh,
        sessions=sessions.Sessions(mesh, lambda: float(next(ticks))),
        tokens=csrf.FormTokens(settings.secret, random.Random(7).randbytes),
        renderer=rendering.Renderer.load(),
        now=lambda: NOW,
    )
    async with AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(passthrough.Passthrough.open("http://127.0.0.1:1"))
        mesh.provider = await stack.enter_async_context(serving(provider))
        pages = door.Door(application.build(site), gateway, Metrics("web"), Traces(ratio=0.0), always_over_tls=False)
        origin = await stack.enter_async_context(serving(pages))
        provider.back = f"{origin}/login/oidc/back"
        mesh.add_account("alice", "correct horse")
        mesh.vouched_for = "alice"
        yield Stage(mesh, origin, await stack.enter_async_context(chromium.launch()))


async def sign_in(stage: Stage, page: Page) -> None:
    await page.goto(f"{stage.origin}/login")
    await page.fill(name="alice", password="correct horse")
    await page.click("button", "Sign in")


async def test_the_way_to_the_provider_and_back_breaks_no_policy(stage: Stage) -> None:
    page = await stage.chrome.open()
    await page.goto(f"{stage.origin}/login?then=/settings")
    await page.click("button", "Continue with Corp")
    await wait_for(page, "location.pathname === '/settings' && document.readyState === 'complete'")
    stage.mesh.ends_at = f"{stage.mesh.provider}/ended"
    await page.evaluate("document.querySelector('.account').open = true")
    await page.click(".menu button", "Sign out")
    await wait_for(page, "document.body?.innerText.includes('signed out there')")
    stage.mesh.ends_at = None
    assert [problem for problem in page.problems if "favicon" not in problem and "404" not in problem] == []
    assert stage.mesh.sessions == {}


async def test_without_javascript_it_works_as_well(stage: Stage) -> None:
    page = await stage.chrome.open(javascript=False)
    await page.goto(f"{stage.origin}/login?then=/settings")
    await page.click("button", "Continue with Corp")
    await wait_for(page, "location.pathname === '/settings'")


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False)], ids=["light", "dark", "phone"])
async def test_everybody_can_use_the_pages(stage: Stage, width: int, dark: bool) -> None:
    mesh = stage.mesh
    alice = mesh.accounts["alice"].user
    team = mesh.add_team("W" * 100, alice, mesh.add_account(f"bob{width}{dark}", "x", "b" * 80 + "@example.com"))
    mesh.add_other_session("A" * 200)
    page = await stage.chrome.open(width=width, dark=dark)
    for path in ("/login", "/register", "/forgot", "/forgot?done=sent", "/reset?token=abc", "/login/oidc?fresh=yes"):
        await check(stage, page, path)
    await sign_in(stage, page)
    for path in ("/settings", "/settings/preferences", "/settings/security", "/settings/data", "/organisations", "/invitation?token=abc"):
        await check(stage, page, path)
    await check(stage, page, f"/organisations/{team}")
    await page.goto(f"{stage.origin}/settings/security")
    await page.click("button", "Set it up")
    await check(stage, page)
    await page.fill(code=CODE)
    await page.click("button", "Switch it on")
    await check(stage, page)
    mesh.erased_at = NOW + timedelta(days=30)
    for path in ("/settings/security", "/settings/data"):
        await check(stage, page, path)
    mesh.erased_at = None
    mesh.with_factor.clear()
    assert page.problems == []


async def check(stage: Stage, page: Page, path: str = "") -> None:
    if path:
        await page.goto(f"{stage.origin}{path}")
    assert page.status == 200
    assert await axe.violations(page) == [], path
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{path} is wider than the window"
