"""Alerts in a real browser: they appear and disappear without a reload, and typed input is kept."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
from litestar.types import ASGIApp

from services.web import live_updates
from shared.types import UserRole
from tests.acceptance.album import Album
from tests.acceptance.chromium import Browser, Page
from tests.services.web.fake_mesh import NOW
from tests.services.web.pages import in_chromium
from tests.services.web.pages.admin.admin_mesh import AdminMesh

#: Wider than a phone, and breakable only at its dots.
MACHINE = "gpu-17.rack-3.basement.building-north.campus.university.example.org"


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make pages receive changes immediately."""
    monkeypatch.setattr(live_updates, "_EVERY_SECONDS", 0.02)


@asynccontextmanager
async def alerts_page(app: ASGIApp, mesh: AdminMesh, chrome: Browser, *, javascript: bool = True) -> AsyncIterator[Page]:
    """Yield the alerts page of an administrator called root. At the end, the page must have no problems."""
    token = mesh.add_session(mesh.add_person("root", UserRole.ADMIN))
    async with in_chromium.signed_in(app, chrome, token, javascript=javascript) as (page, origin):
        await page.goto(f"{origin}/admin/alerts")
        yield page


async def press_key(page: Page, name: str, code: int, text: str = "") -> None:
    facts = {"key": name, "code": name, "windowsVirtualKeyCode": code}
    await page.send("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **facts, **({"text": text} if text else {}))
    await page.send("Input.dispatchKeyEvent", type="keyUp", **facts)


async def shows(page: Page, *words: str) -> None:
    for each in words:
        await page.until(f"document.body.innerText.includes({each!r})")


async def test_alerts_appear_and_disappear_without_a_reload(app: ASGIApp, mesh: AdminMesh, chrome: Browser) -> None:
    async with alerts_page(app, mesh, chrome) as page:
        await page.evaluate("window.isTheSame = true")
        await shows(page, "No alerts")
        alert = mesh.add_alert(node="n1")
        await shows(page, "1 alert", "no_worker is wrong", "for 12 min", "Runbook")
        assert "No alerts" not in await page.text()
        mesh.alerts[0] = msgspec.structs.replace(alert, state="over", ended=NOW)
        await shows(page, "No alerts", "Resolved in the last 24 hours", "12 min")
        assert await page.evaluate("document.querySelectorAll('.alerts > [data-id]').length") == 0
        assert await page.evaluate("isTheSame")


async def test_input_is_kept_while_alerts_arrive(app: ASGIApp, mesh: AdminMesh, chrome: Browser) -> None:
    alert = mesh.add_alert("cpu_high", "warning", node="n1")
    async with alerts_page(app, mesh, chrome) as page:
        await page.press(".silencing summary")
        await page.evaluate("document.querySelector('.alerts input[name=why]').focus()")
        await page.send("Input.insertText", text="moving")
        # A more severe alert appears above it, and its own details change.
        mesh.alerts[0] = msgspec.structs.replace(alert, value=3.5, shown="3.5 s", description="More of it.")
        mesh.add_alert("no_worker")
        mesh.alerts.reverse()
        await shows(page, "no_worker is wrong", "More of it.", "3.5")
        await page.send("Input.insertText", text=" house")
        own = f"document.querySelector('[data-id=\"{alert.id}\"]')"
        assert await page.evaluate(f"{own}.querySelector('input[name=why]').value") == "moving house"
        assert await page.evaluate(f"{own}.querySelector('details').open")
        assert await page.evaluate(f"document.activeElement === {own}.querySelector('input[name=why]')")


@pytest.mark.parametrize("javascript", [True, False])
async def test_alert_is_silenced_and_unsilenced(app: ASGIApp, mesh: AdminMesh, chrome: Browser, javascript: bool) -> None:
    if not javascript:
        mesh.add_alert(node="n1")
    async with alerts_page(app, mesh, chrome, javascript=javascript) as page:
        if javascript:
            # An alert that arrives after the page was opened can be silenced, too.
            mesh.add_alert(node="n1")
            await shows(page, "no_worker is wrong")
        await page.press(".silencing summary")
        await page.evaluate("document.querySelector('.alerts select[name=lifetime]').value = '86400'")
        await page.evaluate("document.querySelector('.alerts input[name=why]').focus()")
        await page.send("Input.insertText", text="moving house")
        await page.click(".silencing button", "Silence")
        await shows(page, "Alert silenced", "Silenced until", "21 Nov 2026, 14:05 UTC", "moving house")
        (silence,) = mesh.silences
        assert (silence.name, silence.labels, silence.by, silence.why) == ("no_worker", {"node": "n1"}, "root", "moving house")
        await page.click("main button", "End")
        await shows(page, "Silence ended.")
        assert mesh.silences == []
        assert not await page.evaluate("document.getElementById('silences').checkVisibility()")


async def test_everything_is_reachable_by_keyboard(app: ASGIApp, mesh: AdminMesh, chrome: Browser) -> None:
    mesh.add_alert(node="n1")
    async with alerts_page(app, mesh, chrome) as page:
        await page.evaluate("document.querySelector('.tabs > div:last-of-type a:last-of-type').focus()")
        reached = []
        for _ in range(3):
            await press_key(page, "Tab", 9)
            reached.append(await page.evaluate("document.activeElement.getAttribute('aria-label') ?? document.activeElement.name"))
            if reached[-1] == "Silence: no_worker is wrong":
                break
        assert reached == ["", "Silence: no_worker is wrong"]
        await press_key(page, "Enter", 13, "\r")
        assert await page.evaluate("document.querySelector('.silencing').open")
        for name in ("lifetime", "covers", "why"):
            await press_key(page, "Tab", 9)
            assert await page.evaluate("document.activeElement.name") == name


@pytest.mark.nightly("pages")
async def test_full_page_has_no_layout_problems(app: ASGIApp, mesh: AdminMesh, chrome: Browser) -> None:
    album = Album()
    for name, severity in (("no_worker", "page"), ("error_rate_spike", "critical"), ("cpu_high", "warning"), ("disk_low", "ticket")):
        mesh.add_alert(name, severity, node=MACHINE)
    mesh.add_alert("gpu_saturation", "warning", "pending", minutes=3)
    mesh.add_alert("worker_gone", "warning", "over", minutes=200, ended_minutes_ago=90, node=MACHINE)
    async with alerts_page(app, mesh, chrome) as page:
        await page.press(".silencing summary")
        await page.evaluate("document.querySelector('.alerts input[name=why]').focus()")
        await page.send("Input.insertText", text="The rack moves to another room until the evening, and everybody knows of it.")
        await page.click(".silencing button", "Silence")
        await page.press("[data-id]:nth-of-type(2) .silencing summary")
        await album.add(page, "admin-alerts-many")
    album.check()
