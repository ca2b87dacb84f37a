"""The admin charts in a real browser: drawn, live, and accessible."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from litestar.types import ASGIApp

from services.web import live_updates
from services.web.pages.admin import charts
from shared.types import UserRole
from tests.acceptance.chromium import Browser, Page
from tests.services.web import servers
from tests.services.web.js import axe
from tests.services.web.js.site import key, wait_for
from tests.services.web.pages.admin.admin_mesh import AdminMesh

NAVIGATION = "document.querySelector('nav.groups')"
DRAWN = "document.querySelectorAll('.uplot canvas').length"


@asynccontextmanager
async def opened(
    app: ASGIApp, mesh: AdminMesh, chrome: Browser, path: str = "/admin/charts", *, javascript: bool = True
) -> AsyncIterator[Page]:
    """Yield a page of an administrator. At the end, the page must have no problems."""
    user = mesh.add_person("root", UserRole.ADMIN)
    async with servers.serving(app) as origin:
        page = await chrome.open(javascript=javascript)
        await page.send("Network.setCookie", name="aimesh_session", value=mesh.add_session(user), url=origin)
        await page.goto(f"{origin}{path}")
        yield page
        assert page.problems == []


@pytest.mark.nightly("pages")
async def test_page_is_accessible(app: ASGIApp, mesh: AdminMesh, chrome: Browser) -> None:
    mesh.keep_everything(model="W" * 200)
    for place in range(14):
        mesh.keep_machine(f"UMANY{place:07}", cpu=place / 14)
    async with opened(app, mesh, chrome) as page:
        await wait_for(page, f"{DRAWN} === 12")
        await page.evaluate("document.querySelectorAll('main details').forEach(each => { each.open = true })")
        for width, dark in ((1280, False), (1280, True), (390, False)):
            await page.look(width=width, dark=dark)
            assert await axe.violations(page) == [], (width, dark)
            assert await page.evaluate("document.documentElement.scrollWidth") <= width
            # Without it, the last items could only be found by scrolling the navigation.
            assert width < 1280 or await page.evaluate(f"{NAVIGATION}.scrollWidth <= {NAVIGATION}.clientWidth")


async def test_values_are_readable_without_scripts(app: ASGIApp, mesh: AdminMesh, chrome: Browser) -> None:
    mesh.keep_everything()
    async with opened(app, mesh, chrome, "/admin/charts?span=week", javascript=False) as page:
        text = await page.text()
        assert "Completed\t2.5" in text
        assert await page.evaluate("[...document.querySelectorAll('table')].every(each => each.checkVisibility())")


async def test_open_page_is_live(app: ASGIApp, mesh: AdminMesh, chrome: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_updates, "_EVERY_SECONDS", 0.02)
    monkeypatch.setattr(charts, "SOONEST_SECONDS", 0.0)
    load = [0.25]
    mesh.keep("active_users", 1.0)
    mesh.keep_machine("UAAAAAAAAAAA", cpu=lambda _: load[0])
    async with opened(app, mesh, chrome) as page:
        await wait_for(page, "document.querySelector('[data-live-source]').dataset.liveState === 'live'")
        place = "document.getElementById('chart-cpu').parentElement"
        await wait_for(page, f"{place}.querySelector('canvas')")
        await page.evaluate(f"{place}.querySelector('[aria-roledescription=chart]').focus()")
        await key(page, "End")
        said = f"{place}.querySelector('output').textContent"
        await wait_for(page, f"{said} === '14:04 inference: 25 %'")
        load[0] = 0.75
        await wait_for(page, f"{said} === '14:04 inference: 75 %'")
        # A new machine is drawn, too, and added to the table.
        mesh.keep_machine("UBBBBBBBBBBB", "gateway", cpu=0.5)
        await wait_for(page, f"{said} === '14:04 gateway: 50 %inference: 75 %'")
        assert await page.evaluate(f"{place}.querySelectorAll('tbody tr').length") == 2
