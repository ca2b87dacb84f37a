import pytest
from litestar.types import ASGIApp

from shared import errors
from shared.api.gateway import Check
from shared.api.metrics import ComponentHealth, SystemHealth
from shared.types import Role, UserRole
from tests.services.web.browser import Browser
from tests.services.web.fake_mesh import NOW
from tests.services.web.pages.admin import followed
from tests.services.web.pages.admin.admin_mesh import GATEWAY, WORKER, AdminMesh


async def test_every_component_is_shown_with_reason_and_time(root: Browser, mesh: AdminMesh) -> None:
    parts = (ComponentHealth("auth", "service", "healthy", NOW), ComponentHealth("Valkey", "server", "down", NOW, "start <it>"))
    mesh.health, mesh.checks = SystemHealth("down", parts), (Check("postgresql", False, "no connection"),)
    mesh.add_node(WORKER)
    mesh.add_node(GATEWAY, Role.GATEWAY)
    page = await root.get("/admin")
    assert page.status_code == 200
    for text in ("Down</span>", "Valkey", "start &lt;it&gt;", "20 Nov 2026, 14:05 UTC", "no connection", "1 of 1", "2 of 2"):
        assert text in page.text
    assert 'data-live-source="/live/health"' in page.text


@pytest.mark.parametrize("away", ["gateway", "metrics"])
async def test_page_is_shown_while_a_part_is_unavailable(root: Browser, mesh: AdminMesh, away: str) -> None:
    mesh.health = SystemHealth("healthy", (ComponentHealth("auth", "service", "healthy", NOW),))
    mesh.broken[away] = errors.NotReachable("nobody there")
    page = await root.get("/admin")
    assert page.status_code == 200
    assert f"aicli stack {'logs gateway' if away == 'gateway' else 'status'}</code>" in page.text
    # Without metrics the gateway has the word, and it is well.
    assert "OK</span>" in page.text
    assert ("–</p>" in page.text) == (away == "gateway")


async def test_web_reads_the_health_itself_while_auth_is_down(root: Browser, mesh: AdminMesh) -> None:
    await root.get("/admin")
    (credential,) = {call.credential for call in mesh.calls if call.method == "metrics.getSystemHealth"}
    assert credential is None


async def test_missing_response_is_shown_as_unknown(root: Browser, mesh: AdminMesh) -> None:
    mesh.broken |= {"gateway": errors.NotReachable("no"), "metrics": errors.NotReachable("no")}
    assert "Unknown</span>" in (await root.get("/admin")).text


async def test_page_is_live(app: ASGIApp, mesh: AdminMesh) -> None:
    mesh.checks = (Check("valkey", True),)
    mesh.add_person("root", UserRole.ADMIN)
    values = await followed.first_event(app, "/live/health", "root")
    assert values["word"] == "OK"
    assert values["checks"][0]["name"] == "valkey"


async def test_only_administrators_open_and_follow_it(browser: Browser, mesh: AdminMesh) -> None:
    mesh.add_person("bob", UserRole.NODE_OWNER)
    await browser.sign_in("bob", "correct horse")
    for path in ("/admin", "/live/health", "/admin/users", "/admin/audit", "/admin/prices", "/admin/settings", "/admin/nodes"):
        assert (await browser.get(path)).status_code == 403, path
    assert set(mesh.called_methods()) <= {"auth.loginUser", "auth.resumeSession", "auth.getSignInOptions"}


async def test_visitor_is_redirected_to_sign_in(browser: Browser) -> None:
    answer = await browser.get("/admin/users")
    assert (answer.status_code, answer.headers["location"]) == (303, "/login?then=/admin/users")
