"""The account pages in a real browser: the round trip to the login provider under our policy, and accessibility."""

import asyncio
import contextlib
import json
import random
import secrets
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

from services.web import application, csrf, rendering, request_context, sessions
from services.web.http import front_app, passthrough
from services.web.settings import WebSettings
from shared import errors
from shared.api import accounts, organizations
from shared.telemetry import Metrics
from shared.telemetry.tracing import Traces
from shared.types import TenantId, UserRole
from tests import tiers
from tests.acceptance.chromium import Browser, Chromium, Page
from tests.services.web.fake_accounts import CODE, GOOD_CODE, RECOVERY_CODES
from tests.services.web.fake_mesh import NOW, FakeMesh
from tests.services.web.js import axe
from tests.services.web.js.site import wait_for, write
from tests.services.web.pages.admin.hostile import NAMES
from tests.services.web.servers import serving

pytestmark = pytest.mark.asyncio(loop_scope="module")

Message = MutableMapping[str, Any]


@dataclass(slots=True)
class Provider:
    """A login provider that redirects back immediately, as if the browser were already signed in there."""

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
async def stage(chromium_process: Chromium, renderer: rendering.Renderer) -> AsyncIterator[Stage]:
    mesh, provider = MeshWithProvider(), Provider()
    settings = WebSettings(node_key_file=Path("/nowhere/web.nk"), secret="0123456789abcdef" * 4)
    # Each request calls auth.
    ticks = iter(range(0, 10**9, 3600))
    async with AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(passthrough.Passthrough.open("http://127.0.0.1:1"))
        site = request_context.App(
            settings=settings,
            caller=mesh,
            sessions=sessions.WebSessions(mesh, lambda: float(next(ticks))),
            tokens=csrf.FormTokens(settings.secret, random.Random(7).randbytes),
            renderer=renderer,
            now=lambda: NOW,
            gateway=gateway,
        )
        mesh.provider = await stack.enter_async_context(serving(provider))
        pages = front_app.FrontApp(application.build(site), gateway, Metrics("web"), Traces(ratio=0.0), always_over_tls=False)
        origin = await stack.enter_async_context(serving(pages))
        provider.back = f"{origin}/login/oidc/back"
        mesh.add_account("alice", "correct horse")
        mesh.vouched_for = "alice"
        yield Stage(mesh, origin, await stack.enter_async_context(chromium_process.control()))


async def sign_in(stage: Stage, page: Page, name: str = "alice") -> None:
    await page.goto(f"{stage.origin}/login")
    await page.fill(name=name, password="correct horse")
    await page.click("button", "Sign in")


async def test_provider_round_trip_violates_no_policy(stage: Stage) -> None:
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


async def test_login_works_without_javascript(stage: Stage) -> None:
    page = await stage.chrome.open(javascript=False)
    await page.goto(f"{stage.origin}/login?then=/settings")
    await page.click("button", "Continue with Corp")
    await wait_for(page, "location.pathname === '/settings'")


@pytest.mark.nightly("pages")
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False)], ids=["light", "dark", "phone"])
async def test_pages_are_accessible(stage: Stage, width: int, dark: bool) -> None:
    mesh = stage.mesh
    alice = mesh.accounts["alice"].user
    team = mesh.add_team("W" * 100, alice, mesh.add_account(f"bob{width}{dark}", "x", "b" * 80 + "@example.com"))
    mesh.add_other_session("A" * 200)
    page = await stage.chrome.open(width=width, dark=dark)
    for path in ("/login", "/register", "/forgot", "/forgot?done=sent", "/reset?token=abc", "/verify", "/login/oidc?fresh=yes", "/join"):
        await check(stage, page, path)
    await sign_in(stage, page)
    for path in ("/settings", "/settings/preferences", "/settings/security", "/settings/data", "/organisations", "/invitation?token=abc"):
        await check(stage, page, path)
    await check(stage, page, f"/organisations/{team}")
    await page.goto(f"{stage.origin}/settings/security")
    await page.click("button", "Set up")
    await check(stage, page)
    await page.fill(code=CODE)
    await page.click("button", "Enable")
    await check(stage, page)
    mesh.erased_at = NOW + timedelta(days=30)
    for path in ("/settings/security", "/settings/data"):
        await check(stage, page, path)
    mesh.erased_at = None
    mesh.with_factor.clear()
    assert page.problems == []


#: Like the codes that auth generates.
CODE_OF_MAIL = "Zm9yLWJvYi1hbmQtbm9ib2R5LWVsc2UtaW4tYWxsLVg"


@dataclass(slots=True)
class Invited:
    """bob, who is invited to an organization."""

    stage: Stage
    page: Page
    name: str
    team: TenantId

    @property
    def read(self) -> list[str]:
        """The codes that the page has looked up."""
        return [call.request.token for call in self.stage.mesh.calls if isinstance(call.request, organizations.ReadInvitation)]

    async def opens(self, path: str) -> None:
        await self.page.goto(f"{self.stage.origin}{path}")

    async def pastes(self, code: str) -> None:
        await self.page.evaluate("document.getElementById('code').select()")
        # Like Paste in the browser's menu, but without the clipboard, which all tests share.
        await self.page.evaluate(
            "(text => { const field = document.getElementById('code'); field.value = text;"
            f" field.dispatchEvent(new InputEvent('input', {{inputType: 'insertFromPaste', bubbles: true}})) }})({json.dumps(code)})"
        )

    async def offer(self) -> str:
        await wait_for(self.page, "document.querySelector('[data-offer]').checkVisibility()")
        return str(await self.page.evaluate("document.querySelector('[data-offer]').innerText.replace(/\\s+/g, ' ')"))

    async def refusal(self) -> str:
        await wait_for(self.page, "document.querySelector('[data-no-offer]').checkVisibility()")
        return str(await self.page.evaluate("document.querySelector('[data-no-offer]').innerText"))


@contextlib.asynccontextmanager
async def invited(stage: Stage, name: str = "Acme", *, signed_in: bool = True, **window: Any) -> AsyncIterator[Invited]:
    mesh = stage.mesh
    bob = "bob-" + secrets.token_hex(4)
    mesh.add_account(bob, "correct horse")
    team = mesh.add_team(name, mesh.add_account(name, "x"))
    mesh.invitations[CODE_OF_MAIL] = team
    mesh.calls.clear()
    page = await stage.chrome.open(**window)
    if signed_in:
        await sign_in(stage, page, bob)
    yield Invited(stage, page, bob, team)
    # The code is in no URL that a server sees.
    assert not [url for url in page.requests if CODE_OF_MAIL in url.partition("#")[0]]
    mesh.invitations.clear()
    await page.send("Page.close")


async def test_invitation_shows_the_organization_before_joining(stage: Stage) -> None:
    async with invited(stage) as bob:
        await bob.opens(f"/invitation#{CODE_OF_MAIL}")
        assert await bob.offer() == "Join Acme as a member? Invited by Acme. Expires 27 Nov 2026."
        assert await bob.page.evaluate("location.href") == f"{stage.origin}/invitation"
        assert bob.read == [CODE_OF_MAIL]
        await bob.page.click("button", "Join")
        assert await bob.page.evaluate("location.pathname") == f"/organisations/{bob.team}"
        assert bob.page.problems == []


async def test_visitor_signs_in_and_then_sees_the_invitation(stage: Stage) -> None:
    async with invited(stage, signed_in=False) as bob:
        await bob.opens(f"/invitation#{CODE_OF_MAIL}")
        await bob.page.fill(name=bob.name, password="correct horse")
        await bob.page.click("button", "Sign in")
        assert "Join Acme as a member?" in await bob.offer()
        assert bob.page.problems == []


@pytest.mark.parametrize("javascript", [True, False])
async def test_the_link_of_a_colleague_shows_the_offer_and_registers(stage: Stage, javascript: bool) -> None:
    mesh, name = stage.mesh, "carl-" + secrets.token_hex(4)
    mesh.add_colleague("an-older-invitation", "other@example.com")
    mesh.add_colleague(CODE_OF_MAIL, f"{name}@example.com", UserRole.DEVELOPER, "Acme")
    page = await stage.chrome.open(javascript=javascript)
    for code in ("an-older-invitation", CODE_OF_MAIL):
        # The second link in the same browser replaces the first invitation.
        await page.goto(f"{stage.origin}/forgot")
        await page.goto(f"{stage.origin}/join#{code}")
        if not javascript:
            await page.evaluate("document.querySelector('[data-join]').closest('details')?.setAttribute('open', '')")
            await page.fill(code=code)
            await page.click("button", "View invitation")
        await wait_for(page, f"document.body?.innerText.includes('{mesh.colleagues[code].email}')")
    assert await page.evaluate("location.href.split('#')[0]") == f"{stage.origin}/join"
    assert "alice invited you to this AI platform as a developer, and a member of Acme." in await page.text()
    assert not await page.evaluate("document.querySelector('[data-join]').checkVisibility()")
    await page.click("a", "Create account")
    await page.fill(username=name, password="correct horse")
    await page.click("button", "Create account")
    assert "Your new API key" in await page.text()
    assert mesh.accounts[name].user.email == f"{name}@example.com"
    assert CODE_OF_MAIL not in mesh.colleagues
    assert not [url for url in page.requests if CODE_OF_MAIL in url.partition("#")[0]]
    assert page.problems == []
    await page.send("Page.close")


@pytest.mark.parametrize("javascript", [True, False])
async def test_recovery_codes_are_saved_as_a_file(stage: Stage, javascript: bool, tmp_path: Path) -> None:
    mesh, name = stage.mesh, "dora-" + secrets.token_hex(4)
    mesh.add_account(name, "correct horse")
    page = await stage.chrome.open(javascript=javascript)
    await sign_in(stage, page, name)
    await page.goto(f"{stage.origin}/settings/security")
    await page.click("button", "Set up")
    await page.fill(code=CODE)
    await page.click("button", "Enable")
    await page.send("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    x, y = await page.evaluate(
        "(box => [box.x + box.width / 2, box.y + box.height / 2])([...document.querySelectorAll('main button')]"
        ".find(button => button.textContent === 'Download').getBoundingClientRect())"
    )
    for event in ("mousePressed", "mouseReleased"):
        await mouse(page, event, x, y)
    saved = tmp_path / "aimesh-recovery-codes.txt"
    async with asyncio.timeout(60):
        while not saved.exists() or RECOVERY_CODES[-1] not in saved.read_text():  # noqa: ASYNC110 - the browser sends no event
            await asyncio.sleep(0.01)
    assert [line for line in saved.read_text().splitlines() if line in RECOVERY_CODES] == list(RECOVERY_CODES)
    assert await page.evaluate("document.querySelector('h1').textContent") == "Your recovery codes", "the page stays"
    mesh.with_factor.discard(name)
    await page.send("Page.close")


async def test_typed_code_is_looked_up_once_complete(stage: Stage) -> None:
    async with invited(stage) as bob:
        await bob.opens("/invitation")
        await bob.page.evaluate("document.getElementById('code').focus()")
        for letter in CODE_OF_MAIL:
            await write(bob.page, letter)
        assert bob.read == []
        await bob.page.evaluate("document.getElementById('code').blur()")
        assert "Join Acme" in await bob.offer()
        # Pasting another code removes the first offer immediately.
        stage.mesh.broken["auth.readInvitation"] = errors.Unavailable("auth is away")
        await bob.pastes("another-code-of-another-mail")
        assert await bob.refusal() == "We can’t show the details of this invitation right now. You can still join."
        assert not await bob.page.evaluate("document.querySelector('[data-offer]').checkVisibility()")
        stage.mesh.broken.clear()
        await bob.pastes(CODE_OF_MAIL)
        assert "Join Acme" in await bob.offer()
        assert await bob.page.evaluate("!document.querySelector('[data-no-offer]').checkVisibility()")
        assert bob.read == [CODE_OF_MAIL, "another-code-of-another-mail", CODE_OF_MAIL]
        assert len([problem for problem in bob.page.problems if "503" not in problem]) == 0


@pytest.mark.parametrize("is_refused", [False, True])
async def test_details_that_arrive_during_a_click_do_not_take_the_click_away(stage: Stage, is_refused: bool) -> None:
    async with invited(stage) as bob:
        if is_refused:
            stage.mesh.broken["auth.readInvitation"] = errors.Unavailable("auth is away")
        await bob.opens("/invitation")
        await bob.page.evaluate("document.getElementById('code').focus()")
        await write(bob.page, CODE_OF_MAIL)
        x, y = await bob.page.evaluate(
            "(box => [box.x + box.width / 2, box.y + box.height / 2])([...document.querySelectorAll('main button')].at(-1)"
            ".getBoundingClientRect())"
        )
        await mouse(bob.page, "mousePressed", x, y)
        # Leaving the field triggers the lookup while the button is pressed.
        await wait_for(bob.page, "performance.getEntriesByType('resource').some(each => each.name.endsWith('/invitation/offer'))")
        await bob.page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        async with bob.page.loading():
            await mouse(bob.page, "mouseReleased", x, y)
        assert await bob.page.evaluate("location.pathname") == f"/organisations/{bob.team}"
        stage.mesh.broken.clear()


async def mouse(page: Page, event: str, x: float, y: float) -> None:
    await page.send("Input.dispatchMouseEvent", type=event, x=x, y=y, button="left", buttons=int(event == "mousePressed"), clickCount=1)


async def test_unknown_code_is_reported_before_submitting(stage: Stage) -> None:
    async with invited(stage) as bob:
        stage.mesh.invitations.clear()
        await bob.opens(f"/invitation#{CODE_OF_MAIL}")
        assert await bob.refusal() == "No open invitation for you has this code. Copy the whole code, or ask for a new invitation."
        assert await axe.violations(bob.page) == []
        await bob.pastes("short")
        assert await bob.page.evaluate("!document.querySelector('[data-no-offer]').checkVisibility()")
        await bob.page.fill(code=CODE_OF_MAIL)
        await bob.page.click("button", "Join")
        # The form shows its own error, so the page shows no second one.
        assert "There is no such invitation." in await bob.page.text()
        assert await bob.page.evaluate("!document.querySelector('[data-no-offer]').checkVisibility()")
        assert [problem for problem in bob.page.problems if "404" not in problem] == []


async def test_joining_works_without_javascript(stage: Stage) -> None:
    async with invited(stage, javascript=False) as bob:
        await bob.opens("/invitation")
        await bob.page.fill(code=CODE_OF_MAIL)
        assert "Acme" not in await bob.page.text()
        await bob.page.click("button", "Join")
        assert await bob.page.evaluate("location.pathname") == f"/organisations/{bob.team}"


@pytest.mark.parametrize("name", tiers.by_day(NAMES, *sorted(NAMES)[:1], group="pages"))
@pytest.mark.parametrize(
    ("width", "dark"),
    [pytest.param(1280, False, id="light", marks=pytest.mark.nightly("pages")), pytest.param(390, True, id="dark phone")],
)
async def test_hostile_organization_name_is_escaped(stage: Stage, name: str, width: int, dark: bool) -> None:
    hostile = NAMES[name]
    async with invited(stage, hostile, width=width, dark=dark) as bob:
        await bob.opens(f"/invitation#{CODE_OF_MAIL}")
        await bob.offer()
        for part in ("organisation", "invited_by"):
            shown = await bob.page.evaluate(f"document.querySelector('[data-offer-part={part}]').textContent")
            assert shown == hostile
            # BDI limits text reversal to the name.
            assert await bob.page.evaluate(f"document.querySelector('[data-offer-part={part}]').tagName") == "BDI"
        assert await bob.page.evaluate("document.querySelectorAll('.offer script, .offer img').length") == 0
        assert await axe.violations(bob.page) == []
        assert await bob.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert bob.page.problems == []


async def check(stage: Stage, page: Page, path: str = "") -> None:
    if path:
        await page.goto(f"{stage.origin}{path}")
    assert page.status == 200
    assert await axe.violations(page) == [], path
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{path} is wider than the window"
