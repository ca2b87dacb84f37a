"""The pages Cost and Monthly statement in a browser: accessible on a desktop and a phone, in light and in dark."""

import pytest
from litestar.types import ASGIApp

from shared.types import UserRole
from tests.acceptance.chromium import Browser
from tests.services.web.js.site import wait_for
from tests.services.web.pages import in_chromium
from tests.services.web.pages.admin.admin_mesh import AdminMesh


@pytest.mark.nightly("pages")
@pytest.mark.parametrize("path", ["/admin/cost?mesh=30d", "/admin/cost?utilization=2", "/admin/nodes/statement", "/admin/report?by=plan"])
async def test_the_page_is_accessible_and_fits(app: ASGIApp, mesh: AdminMesh, chrome: Browser, path: str) -> None:
    token = mesh.add_session(mesh.add_person("root", UserRole.ADMIN))
    mesh.names = ("enterprise", None)
    async with in_chromium.signed_in(app, chrome, token) as (page, origin):
        async for _ in in_chromium.each_look(page, f"{origin}{path}", *(["400"] if "=2" in path else [])):
            if "mesh" in path:
                await wait_for(page, "document.querySelector('.uplot canvas').clientWidth > 200")
