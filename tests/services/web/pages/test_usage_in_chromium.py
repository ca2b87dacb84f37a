"""The overview, usage, the log and the models in a real browser: live numbers and accessibility."""

import json
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from uuid import uuid4

import msgspec
import pytest
import pytest_asyncio

from services.web import application, csrf, live_updates, rendering, request_context, sessions
from services.web.http import front_app, passthrough
from services.web.settings import WebSettings
from shared.api import gateway, ledger
from shared.api.usage_report import UsageOfKey, UsageOfModel, UsageSum
from shared.telemetry import Metrics
from shared.telemetry.tracing import Traces
from shared.types import MicroCredits, ModelName, RequestId, RequestStatus, UserRole
from tests.acceptance.chromium import Browser, Chromium, Page
from tests.services.web.fake_mesh import NOW, Account, FakeMesh
from tests.services.web.js import axe
from tests.services.web.js.site import wait_for
from tests.services.web.servers import serving

UNVERIFIED = gateway.AccountNotice(
    gateway.NoticeKind.UNVERIFIED,
    "your plan's tokens are for verified email addresses, one account each, and your credits are too low",
    "verify your address in the settings or with `aicli billing verify`, or add credits",
)
pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass(slots=True)
class Stage:
    mesh: FakeMesh
    origin: str
    chrome: Browser
    now: datetime = NOW

    def clock(self) -> datetime:
        return self.now


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(chromium_process: Chromium, renderer: rendering.Renderer) -> AsyncIterator[Stage]:
    settings = WebSettings(node_key_file=Path("/nowhere/web.nk"), secret="0123456789abcdef" * 4)
    # Each request calls auth.
    ticks = iter(range(0, 10**9, 3600))
    async with AsyncExitStack() as stack:
        stack.enter_context(pytest.MonkeyPatch.context()).setattr(live_updates, "_EVERY_SECONDS", 0.02)
        made = Stage(FakeMesh(), "", await stack.enter_async_context(chromium_process.control()))
        passed = await stack.enter_async_context(passthrough.Passthrough.open("http://127.0.0.1:1"))
        site = request_context.App(
            settings=settings,
            caller=made.mesh,
            sessions=sessions.WebSessions(made.mesh, lambda: float(next(ticks))),
            tokens=csrf.FormTokens(settings.secret, random.Random(7).randbytes),
            renderer=renderer,
            now=made.clock,
            gateway=passed,
        )
        pages = front_app.FrontApp(application.build(site), passed, Metrics("web"), Traces(ratio=0.0), always_over_tls=False)
        made.origin = await stack.enter_async_context(serving(pages))
        yield made


async def opened(stage: Stage, username: str, *, width: int = 1280, dark: bool = False) -> Page:
    """Open a page in which a developer of this name is signed in."""
    user = msgspec.structs.replace(stage.mesh.add_account(username, "correct horse"), role=UserRole.DEVELOPER)
    stage.mesh.accounts[username] = Account(user, "correct horse")
    page = await stage.chrome.open(width=width, dark=dark)
    await page.send("Network.setCookie", name="aimesh_session", value=stage.mesh.add_session(user), url=stage.origin)
    await page.goto(f"{stage.origin}/dashboard")
    return page


async def test_new_request_appears_without_a_reload(stage: Stage) -> None:
    mesh = stage.mesh
    page = await opened(stage, "newcomer")
    await wait_for(page, "document.querySelector('[data-live-source]').dataset.liveState === 'live'")
    assert await page.evaluate("document.querySelector('[data-live=requests]').textContent") == "0"
    assert await page.evaluate("document.querySelector('[data-live-show=no_recent]').hidden") is False
    mesh.log(NOW, RequestStatus.ERROR, "worker_lost", model="<b>smollm2</b>")
    stage.now += timedelta(minutes=1)
    # The log, the sums and the chart update, and the empty-state text is gone.
    await wait_for(page, "document.querySelector('[data-live=requests]').textContent === '1'")
    await wait_for(page, "document.querySelector('[data-live-list=recent] > [data-id] bdi').textContent === '<b>smollm2</b>'")
    await wait_for(page, "document.querySelector('[data-live-list=buckets] > :last-child td').dataset.value === '1'")
    await wait_for(page, "document.querySelector('.uplot canvas').clientWidth > 300")
    assert await page.evaluate("document.querySelector('[data-live-show=no_recent]').hidden") is True
    assert await page.evaluate("document.querySelector('[data-live-show=is_unused]').hidden") is True
    assert page.problems == []
    await page.send("Page.close")


async def test_numbers_change_without_a_reload(stage: Stage) -> None:
    mesh = stage.mesh
    page = await opened(stage, "watcher")
    await wait_for(page, "document.querySelector('[data-live-source]').dataset.liveState === 'live'")
    seen = "['requests', 'tokens', 'cost'].map(name => document.querySelector(`[data-live=${name}]`).textContent).join()"
    left = "document.querySelector('.meters [data-live=left]').textContent"
    before = [await page.evaluate(text) for text in (seen, left)]
    for _ in range(2):
        mesh.log(stage.now, id=RequestId(uuid4()))
        mesh.used += 1
        stage.now += timedelta(seconds=2)
        await wait_for(page, f"{seen} !== {json.dumps(before[0])} && {left} !== {json.dumps(before[1])}")
        before = [await page.evaluate(text) for text in (seen, left)]
    assert page.problems == []
    await page.send("Page.close")


async def test_a_notice_comes_and_goes_without_a_reload(stage: Stage) -> None:
    page = await opened(stage, "refused")
    await wait_for(page, "document.querySelector('[data-live-source]').dataset.liveState === 'live'")
    assert await page.evaluate("document.querySelector('.notices').hidden") is True
    stage.mesh.notices = (UNVERIFIED,)
    shown = "document.querySelector('.notices > [data-id=unverified]')"
    await wait_for(page, f"{shown} && !document.querySelector('.notices').hidden && !{shown}.querySelector('a').hidden")
    assert await page.evaluate(f"{shown}.querySelector('a').getAttribute('href')") == "/settings"
    stage.mesh.notices = ()
    await wait_for(page, "document.querySelector('.notices').hidden")
    assert page.problems == []
    await page.send("Page.close")


@pytest.mark.nightly("pages")
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False)], ids=["light", "dark", "phone"])
async def test_pages_are_accessible(stage: Stage, width: int, dark: bool) -> None:
    mesh, long = stage.mesh, "W" * 120
    page = await opened(stage, f"ada{width}{dark}", width=width, dark=dark)
    user = mesh.accounts[f"ada{width}{dark}"].user
    key = mesh.add_key(user, long)
    sums = UsageSum(4000, 7, 10**9, 10**8, MicroCredits(10**12), 9, 400, 84_000)
    mesh.use(NOW, 4000, 10**9, 10**12, 84_000)
    mesh.used_models = (UsageOfModel(ModelName(long), sums, 3, 1),)
    mesh.used_keys = (UsageOfKey(key.id, sums), UsageOfKey(None, sums))
    for status, code in ((RequestStatus.SUCCESS, None), (RequestStatus.LIMITED, "rate_limited"), (RequestStatus.ERROR, "worker_lost")):
        mesh.log(NOW, status, code, model=long, key_id=key.id, rating=1, cached=True)
    mesh.limits = tuple(gateway.LimitState("user", kind, 10**6, 10**5 // 2, 90.0) for kind in ("requests_per_hour", "tokens_per_minute"))
    mesh.notices = (UNVERIFIED, gateway.AccountNotice(gateway.NoticeKind.LIMIT, long, "wait 41 min"))
    mesh.served = (gateway.ServedModel(ModelName(long), 1, 32_768, aliases=(long,)),)
    mesh.nodes = []
    mesh.add_worker("U" + "A" * 55, long, "unserved", labels={"room": "r" * 63})
    mesh.prices = [ledger.ModelPrice(None, MicroCredits(1), MicroCredits(1), MicroCredits(1), MicroCredits(1))]
    for path in (
        "/dashboard?span=day&show=latency",
        "/usage?days=90",
        "/usage.csv?since=x",
        "/requests?status=error",
        "/requests",
        "/models",
        "/playground",
        "/api-keys",
    ):
        await page.goto(f"{stage.origin}{path}")
        await page.evaluate("document.querySelectorAll('main details').forEach(each => { each.open = true })")
        assert await axe.violations(page) == [], path
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{path} is wider than the window"
    assert [problem for problem in page.problems if "400" not in problem] == []
    await page.send("Page.close")
