"""The pages Cost and Monthly statement in a browser: accessible on a desktop and a phone, in light and in dark."""

import pytest
from litestar.types import ASGIApp

from shared.types import UserRole
from tests.acceptance.chromium import Browser
from tests.acceptance.watching import Watch, expected
from tests.services.web import servers
from tests.services.web.js import axe
from tests.services.web.js.site import wait_for
from tests.services.web.pages.admin.admin_mesh import AdminMesh


@pytest.mark.nightly("pages")
@pytest.mark.parametrize("path", ["/admin/cost?mesh=30d", "/admin/cost?utilization=2", "/admin/nodes/statement", "/admin/report?by=plan"])
async def test_the_page_is_accessible_and_fits(app: ASGIApp, mesh: AdminMesh, chrome: Browser, path: str) -> None:
    token = mesh.add_session(mesh.add_person("root", UserRole.ADMIN))
    mesh.names = ("enterprise", None)
    async with servers.serving(app) as origin:
        watch = Watch(chrome, origin)
        page = await watch.open()
        await page.send("Network.setCookie", name="aimesh_session", value=token, url=origin)
        for width, dark in ((1280, False), (1280, True), (320, False)):
            await page.look(width=width, dark=dark)
            with expected(page, *(["400"] if "=2" in path else [])):
                await page.goto(f"{origin}{path}")
            if "mesh" in path:
                await wait_for(page, "document.querySelector('.uplot canvas').clientWidth > 200")
            assert await axe.violations(page) == [], (width, dark)
            assert await page.evaluate("document.documentElement.scrollWidth") <= width, (width, dark)
        await watch.check()
