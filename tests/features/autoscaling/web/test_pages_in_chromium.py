"""The Capacity page in a browser: accessible on a desktop and a phone, in light and in dark."""

import pytest
from litestar.types import ASGIApp
from msgspec.structs import replace

from features.autoscaling.contract import Scaling
from shared.types import UserRole
from tests.acceptance.chromium import Browser
from tests.acceptance.watching import Watch
from tests.features.autoscaling.web.test_pages import CALLS, POOL, STALE
from tests.services.web import servers
from tests.services.web.js import axe
from tests.services.web.pages.admin.admin_mesh import AdminMesh
from tests.services.web.pages.admin.test_audit_in_a_browser import WIDER

_LONG = replace(POOL, pool="p" * 63, reason="r" * 300)


@pytest.mark.nightly("pages")
@pytest.mark.parametrize("found", [Scaling((POOL, STALE, _LONG), CALLS, "E" * 200), Scaling(())], ids=["pools", "none"])
async def test_the_page_is_accessible_and_fits(app: ASGIApp, mesh: AdminMesh, chrome: Browser, found: Scaling) -> None:
    token = mesh.add_session(mesh.add_person("root", UserRole.ADMIN))
    mesh.scaling = found
    mesh.keep("wanted_replicas", lambda step: 2.0 + step % 30 // 10, service="metrics", pool="l4")
    mesh.keep("pool_replicas", lambda step: 2.0 + max(0, step - 5) % 30 // 10, service="metrics", pool="l4", state="ready")
    mesh.keep("pool_replicas", lambda step: float(step % 10 < 5), service="metrics", pool="l4", state="starting")
    async with servers.serving(app) as origin:
        watch = Watch(chrome, origin)
        page = await watch.open()
        await page.send("Network.setCookie", name="aimesh_session", value=token, url=origin)
        for width, dark in ((1280, False), (1280, True), (320, False)):
            await page.look(width=width, dark=dark)
            await page.goto(f"{origin}/admin/capacity")
            assert await axe.violations(page) == [], (width, dark)
            assert await page.evaluate("document.documentElement.scrollWidth") <= width
            assert await page.evaluate(WIDER) == [], (width, dark)
            assert bool(found.pools) == bool(await page.evaluate("document.querySelectorAll('figure canvas').length"))
        await watch.check()
