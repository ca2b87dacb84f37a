"""The Backups page in a browser: accessible on a desktop and a phone, in light and in dark."""

import pytest
from litestar.types import ASGIApp

from features.backup.contract import Backups, BackupState
from shared.types import UserRole
from tests.acceptance.chromium import Browser
from tests.features.backup.web.backup_samples import backups
from tests.services.web.pages import in_chromium
from tests.services.web.pages.admin.admin_mesh import AdminMesh
from tests.services.web.pages.admin.test_audit_in_a_browser import WIDER

_LONG = backups(to="s3://" + "b" * 200, store_error="E" * 200, store_failing_since=backups().reported_at)


@pytest.mark.nightly("pages")
@pytest.mark.parametrize("found", [_LONG, Backups(state=BackupState.MISSING)], ids=["on", "missing"])
async def test_the_page_is_accessible_and_fits(app: ASGIApp, mesh: AdminMesh, chrome: Browser, found: Backups) -> None:
    token = mesh.add_session(mesh.add_person("root", UserRole.ADMIN))
    mesh.backups = found
    async with in_chromium.signed_in(app, chrome, token) as (page, origin):
        async for width in in_chromium.each_look(page, f"{origin}/admin/backups"):
            # Commands scroll in their own box.
            assert [each for each in await page.evaluate(WIDER) if not each.startswith("<code>aicli")] == [], width
