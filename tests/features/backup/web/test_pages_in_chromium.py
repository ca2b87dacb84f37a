"""The Backups page in a browser: accessible on a desktop and a phone, in light and in dark."""

import pytest
from litestar.types import ASGIApp

from features.backup.contract import Backups, BackupState
from shared.types import UserRole
from tests.acceptance.chromium import Browser
from tests.acceptance.watching import Watch
from tests.features.backup.web.backup_samples import backups
from tests.services.web import servers
from tests.services.web.js import axe
from tests.services.web.pages.admin.admin_mesh import AdminMesh
from tests.services.web.pages.admin.test_audit_in_a_browser import WIDER

_LONG = backups(to="s3://" + "b" * 200, store_error="E" * 200, store_failing_since=backups().reported_at)


@pytest.mark.nightly("pages")
@pytest.mark.parametrize("found", [_LONG, Backups(state=BackupState.MISSING)], ids=["on", "missing"])
async def test_the_page_is_accessible_and_fits(app: ASGIApp, mesh: AdminMesh, chrome: Browser, found: Backups) -> None:
    token = mesh.add_session(mesh.add_person("root", UserRole.ADMIN))
    mesh.backups = found
    async with servers.serving(app) as origin:
        watch = Watch(chrome, origin)
        page = await watch.open()
        await page.send("Network.setCookie", name="aimesh_session", value=token, url=origin)
        for width, dark in ((1280, False), (1280, True), (320, False)):
            await page.look(width=width, dark=dark)
            await page.goto(f"{origin}/admin/backups")
            assert await axe.violations(page) == [], (width, dark)
            assert await page.evaluate("document.documentElement.scrollWidth") <= width
            # Commands scroll in their own box.
            assert [each for each in await page.evaluate(WIDER) if not each.startswith("<code>aicli")] == [], (width, dark)
        await watch.check()
