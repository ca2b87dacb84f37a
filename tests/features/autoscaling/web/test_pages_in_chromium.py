"""The Capacity page in a browser: accessible on a desktop and a phone, in light and in dark."""

import pytest
from litestar.types import ASGIApp
from msgspec.structs import replace

from features.autoscaling.contract import Scaling
from shared.types import UserRole
from tests.acceptance.chromium import Browser
from tests.features.autoscaling.web.test_pages import CALLS, POOL, STALE
from tests.services.web.pages import in_chromium
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
    async with in_chromium.signed_in(app, chrome, token) as (page, origin):
        async for width in in_chromium.each_look(page, f"{origin}/admin/capacity"):
            assert await page.evaluate(WIDER) == [], width
            assert bool(found.pools) == bool(await page.evaluate("document.querySelectorAll('figure canvas').length"))
