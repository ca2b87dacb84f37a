"""The alert banner for administrators; no page waits for it."""

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest
from litestar.types import ASGIApp

from services.web import live_updates
from services.web.request_context import App
from shared import errors
from shared.api.method import Method, Reply, Request
from shared.api.usage_report import GetUsageReport, UsageSummary
from shared.node.lifecycle import background
from shared.types import Credential, NodeId, UserRole
from tests.acceptance.album import Album
from tests.acceptance.chromium import Browser as Chrome
from tests.services.web.browser import Browser
from tests.services.web.fake_usage import FakeUsage
from tests.services.web.pages import in_chromium
from tests.services.web.pages.admin import followed
from tests.services.web.pages.admin.admin_mesh import AdminMesh
from tests.stopwatch import HANG_SECONDS

LINE = (
    '<strong data-live="banner">1 alert:</strong> <bdi data-live="banner_names">no_worker is wrong</bdi>'
    ' <a href="/admin/alerts">View alerts</a>'
)
NO_LINE = 'data-live-show="banner" hidden><strong data-live="banner"></strong>'


class MeshWithGate(AdminMesh):
    """A mesh whose metrics service answers only when the gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()
        #: The number of alert queries that were answered or failed.
        self.answered = 0
        self._polled = asyncio.Event()

    async def call(
        self,
        method: Method[Request, Reply],
        request: Request,
        *,
        to: NodeId | None = None,
        deadline_seconds: float = 10,
        credential: Credential | None = None,
    ) -> Reply:
        if method.name != "metrics.listAlerts":
            return await super().call(method, request, to=to, deadline_seconds=deadline_seconds, credential=credential)
        await self.gate.wait()
        try:
            return await super().call(method, request, to=to, deadline_seconds=deadline_seconds, credential=credential)
        finally:
            self.answered += 1
            self._polled.set()

    async def polled(self) -> None:
        """Wait until an alert query has ended."""
        async with asyncio.timeout(HANG_SECONDS):
            await self._polled.wait()
        await asyncio.sleep(0)

    def _get_usage_report(self, request: GetUsageReport, credential: Credential | None) -> UsageSummary:
        """Answer all users, not only administrators."""
        return FakeUsage._get_usage_report(self, request, credential)


@pytest.fixture
def mesh() -> MeshWithGate:
    made = MeshWithGate()
    made.add_person("root", UserRole.ADMIN)
    return made


@pytest.fixture(autouse=True)
async def looking(site: App, mesh: MeshWithGate) -> AsyncIterator[None]:
    async with background() as tasks:
        tasks.create_task(site.alert_poller.run(mesh))
        yield


@pytest.fixture
async def root(browser: Browser) -> Browser:
    await browser.sign_in("root", "correct horse")
    return browser


@pytest.mark.parametrize("path", ["/admin", "/admin/users", "/admin/prices", "/dashboard"])
async def test_administrator_sees_firing_alerts_on_every_page(root: Browser, mesh: MeshWithGate, path: str) -> None:
    mesh.add_alert()
    mesh.add_alert("cpu_high", "warning")
    await root.get(path)
    await mesh.polled()
    assert LINE in (await root.get(path)).text


@pytest.mark.parametrize("change", [{"severity": "warning"}, {"state": "pending"}, {"state": "over"}])
async def test_warnings_are_not_in_the_banner(root: Browser, mesh: MeshWithGate, change: dict[str, str]) -> None:
    mesh.alerts[:] = [msgspec.structs.replace(mesh.add_alert(), **change)]
    await root.get("/admin")
    await mesh.polled()
    assert NO_LINE in (await root.get("/admin")).text


async def test_alerts_page_has_no_banner(root: Browser, mesh: MeshWithGate) -> None:
    mesh.add_alert()
    await root.get("/admin")
    await mesh.polled()
    for path in ("/admin/alerts", "/usage", "/api-keys", "/settings"):
        assert 'data-live="banner"' not in (await root.get(path)).text, path


@pytest.mark.parametrize("role", [UserRole.USER, UserRole.NODE_OWNER, UserRole.DEVELOPER])
async def test_other_users_see_no_banner_and_cause_no_calls(
    browser: Browser, root: Browser, mesh: MeshWithGate, role: UserRole, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.web.alert_banner.MIN_POLL_SECONDS", 0.0)
    mesh.add_alert()
    await root.get("/admin")
    await mesh.polled()
    mesh.calls.clear()
    browser.client.cookies.clear()
    mesh.add_person("bob", role)
    await browser.sign_in("bob", "correct horse")
    page = await browser.get("/dashboard")
    assert page.status_code == 200
    assert "banner" not in page.text
    assert "no_worker" not in page.text
    await asyncio.sleep(0)
    assert "metrics.listAlerts" not in mesh.called_methods()


async def test_no_page_waits_for_a_hanging_metrics_service(root: Browser, mesh: MeshWithGate) -> None:
    mesh.add_alert()
    mesh.gate.clear()
    for path in ("/admin", "/admin/users", "/dashboard"):
        async with asyncio.timeout(HANG_SECONDS):
            page = await root.get(path)
        assert page.status_code == 200
        assert NO_LINE in page.text
    assert mesh.answered == 0


async def test_pages_have_no_banner_while_metrics_is_down(root: Browser, mesh: MeshWithGate) -> None:
    mesh.broken["metrics"] = errors.NotReachable("no metrics node is reachable")
    await root.get("/admin/users")
    await mesh.polled()
    page = await root.get("/admin/users")
    assert page.status_code == 200
    assert NO_LINE in page.text


async def test_many_pages_share_one_call(root: Browser, mesh: MeshWithGate) -> None:
    for _ in range(10):
        await root.get("/admin/users")
    await mesh.polled()
    await root.get("/dashboard")
    assert mesh.answered == 1


async def test_action_on_the_alerts_page_applies_to_the_next_page(root: Browser, mesh: MeshWithGate) -> None:
    alert = mesh.add_alert()
    await root.get("/admin")
    await mesh.polled()
    page = await root.get("/admin/alerts")
    done = await root.submit(page, f"/admin/alerts/{alert.id}/silence", lifetime="3600", covers="this", why="")
    await root.get(done.headers["location"])
    assert NO_LINE in (await root.get("/admin/users")).text


@pytest.mark.parametrize("path", ["/live/health", "/live/overview", "/live/nodes"])
async def test_live_pages_get_the_banner(app: ASGIApp, mesh: MeshWithGate, root: Browser, path: str) -> None:
    mesh.add_alert()
    await root.get("/admin")
    await mesh.polled()
    values = await followed.first_event(app, path, "root")
    assert (values["banner"], values["banner_names"]) == ("1 alert:", "no_worker is wrong")
    mesh.add_person("bob", UserRole.NODE_OWNER)
    if path != "/live/health":
        assert "banner" not in await followed.first_event(app, path, "bob")


async def test_banner_appears_and_disappears_on_an_open_page(
    app: ASGIApp, site: App, mesh: MeshWithGate, chrome: Chrome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_updates, "_EVERY_SECONDS", 0.02)
    monkeypatch.setattr("services.web.alert_banner.MIN_POLL_SECONDS", 0.0)
    token = mesh.add_session(mesh.accounts["root"].user)
    album = Album()
    shown = "document.querySelector('[data-live-beside]')?.checkVisibility()"
    async with in_chromium.signed_in(app, chrome, token) as (page, origin):
        await page.goto(f"{origin}/admin")
        assert not await page.evaluate(shown)
        alert = mesh.add_alert()
        mesh.add_alert("ledger_drift", "critical")
        await page.until(shown)
        assert "2 alerts: no_worker is wrong, ledger_drift is wrong View alerts" in await page.text()
        await album.add(page, "admin-health-alerts")
        await page.click("main a", "View alerts")
        assert await page.path() == "/admin/alerts"
        await page.goto(f"{origin}/admin")
        mesh.alerts[:] = [msgspec.structs.replace(alert, state="over")]
        await page.until(f"!{shown}")
    album.check()
