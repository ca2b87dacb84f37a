"""The audit log on a phone: every entry is readable, and nothing is wider than the screen."""

import msgspec
import pytest
from litestar.types import ASGIApp

from shared.api.audit import Result
from shared.types import UserRole
from tests.acceptance.chromium import Browser
from tests.services.web.pages import in_chromium
from tests.services.web.pages.admin.admin_mesh import WORKER, AdminMesh

#: Visible elements that extend beyond the screen. The navigation may: it scrolls.
WIDER = """
[...document.querySelectorAll('main *')].filter(each => !each.closest('nav, .unseen, thead') && each.checkVisibility()
  && each.getBoundingClientRect().right > innerWidth + 1).map(each => each.outerHTML.slice(0, 80))
"""


@pytest.mark.nightly("pages")
@pytest.mark.parametrize("width", [320, 375])
async def test_audit_log_fits_a_phone(app: ASGIApp, mesh: AdminMesh, chrome: Browser, width: int) -> None:
    token = mesh.add_session(mesh.add_person("root", UserRole.ADMIN))
    mesh.add_row(1, "organisation.remove_member_by_administrator", Result.REFUSED, str(WORKER))
    mesh.add_row(2, target="W" * 200)
    act = msgspec.structs.replace(mesh.rows[1].act, details={"a-rather-long-name-of-a-detail": "D" * 200}, times=1234)
    mesh.rows[1] = msgspec.structs.replace(mesh.rows[1], act=act, actor_name="N" * 60)
    async with in_chromium.signed_in(app, chrome, token, width=width) as (page, origin):
        await page.goto(f"{origin}/admin/audit")
        await page.evaluate("document.querySelectorAll('main details').forEach(each => { each.open = true })")
        assert await page.evaluate("document.documentElement.scrollWidth") <= width
        assert await page.evaluate(WIDER) == []
        # No cell of an entry is so narrow that its text becomes a column of letters.
        cells = "[...document.querySelectorAll('.audit tbody :is(th, td):not(.more)')].map(each => each.getBoundingClientRect())"
        assert await page.evaluate(f"{cells}.filter(({{width, height}}) => width < 60 && height > 60).length") == 0
        # The current item of the navigation is on the screen.
        link = "document.querySelector('nav.groups [aria-current]').getBoundingClientRect()"
        assert await page.evaluate(f"{link}.left >= 0 && {link}.right <= innerWidth")
