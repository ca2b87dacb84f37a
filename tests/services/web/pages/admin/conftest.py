"""An administrator's browser on a mesh with data for every admin page."""

import pytest

from shared.types import UserRole
from tests.services.web.browser import Browser
from tests.services.web.pages.admin.admin_mesh import AdminMesh


@pytest.fixture
def mesh() -> AdminMesh:
    return AdminMesh()


@pytest.fixture
async def root(mesh: AdminMesh, browser: Browser) -> Browser:
    """A browser signed in as an administrator called root."""
    mesh.add_person("root", UserRole.ADMIN)
    await browser.sign_in("root", "correct horse")
    return browser
