import json

import msgspec
import pytest
from litestar.types import ASGIApp

from services.web import features
from services.web.features import HealthWarning, WebPart
from services.web.pages.admin import health
from services.web.request_context import PageRequest
from shared import errors
from shared.api.gateway import Check, NodeRow, ServiceHealth
from shared.api.metrics import ComponentHealth, SystemHealth
from shared.types import ModelName, NodeId, Role, UserRole
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
    # Without the metrics service, the page shows the gateway's state, which is OK.
    assert "OK</span>" in page.text
    assert ("–</p>" in page.text) == (away == "gateway")


async def test_web_reads_the_health_itself_while_auth_is_down(root: Browser, mesh: AdminMesh) -> None:
    await root.get("/admin")
    (credential,) = {call.credential for call in mesh.calls if call.method == "metrics.getSystemHealth"}
    assert credential is None


async def test_missing_response_is_shown_as_unknown(root: Browser, mesh: AdminMesh) -> None:
    mesh.broken |= {"gateway": errors.NotReachable("no"), "metrics": errors.NotReachable("no")}
    assert "Unknown</span>" in (await root.get("/admin")).text


async def test_warnings_of_features_are_shown_while_they_apply(root: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [True, False]

    async def applies(_request: PageRequest) -> bool:
        return found.pop(0)

    warning = HealthWarning(name="no_clock", text="There is no clock.", path="/clock", link="Wind it", applies=applies)
    monkeypatch.setattr(features, "parts", lambda: [WebPart(warnings=(warning,))])
    shown = '<strong>There is no clock.</strong> <a href="/clock">Wind it</a>'
    assert f'data-live-show="no_clock">{shown}' in (await root.get("/admin")).text
    assert f'data-live-show="no_clock" hidden>{shown}' in (await root.get("/admin")).text


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


GATEWAY_HEALTH = ServiceHealth("degraded", (Check("postgresql", False, "start it"), Check("valkey", True)), 1, (ModelName("m"),), 1234)


def row(role: Role, *, usable: bool = True) -> NodeRow:
    return NodeRow(NodeId("UA"), role, role.value, "nats", True, usable, "", (), NOW, "1", 0, 0, 0)


@pytest.mark.parametrize(
    ("whole", "gateway_health", "word", "tone"),
    [
        pytest.param(SystemHealth("healthy", ()), GATEWAY_HEALTH, "OK", "good", id="metrics has the word"),
        pytest.param(SystemHealth("down", ()), None, "Down", "bad", id="down"),
        pytest.param(None, GATEWAY_HEALTH, "Degraded", "warn", id="the gateway where metrics is away"),
        pytest.param(None, None, "Unknown", "warn", id="nobody answers"),
        pytest.param(SystemHealth("melting", ()), None, "melting", "warn", id="a word of a newer version"),
    ],
)
def test_overall_status(whole: SystemHealth | None, gateway_health: ServiceHealth | None, word: str, tone: str) -> None:
    found = health.describe(whole, gateway_health, None)
    assert (found.word, found.tone) == (word, tone)


def test_problems_come_first() -> None:
    parts = tuple(ComponentHealth(status, "service", status, NOW, "why") for status in ("healthy", "down", "degraded"))
    found = health.describe(SystemHealth("down", parts), None, None)
    assert [(part.name, part.tone) for part in found.parts] == [("down", "bad"), ("degraded", "warn"), ("healthy", "good")]
    assert (found.parts[0].since, found.parts[0].why) == ("20 Nov 2026, 14:05 UTC", "why")


def test_node_and_request_counts() -> None:
    rows = (row(Role.WORKER), row(Role.WORKER, usable=False), row(Role.GATEWAY))
    found = health.describe(None, GATEWAY_HEALTH, rows)
    assert (found.workers, found.nodes, found.in_flight, found.models) == ("1 of 2", "2 of 3", "1,234", "1")
    assert [(check.name, check.state, check.why) for check in found.checks] == [
        ("postgresql", "Down", "start it"),
        ("valkey", "OK", ""),
    ]
    nothing = health.describe(None, None, None)
    assert {nothing.workers, nothing.nodes, nothing.in_flight, nothing.models} == {"–"}


def test_event_equals_the_page_and_marks_empty_lists() -> None:
    values = json.loads(msgspec.json.encode(health.values(health.describe(None, GATEWAY_HEALTH, ()))))
    assert (values["word"], values["no_parts"], values["no_checks"]) == ("Degraded", True, False)
    assert values["checks"][0] == {
        "id": "postgresql",
        "name": "postgresql",
        "kind": "",
        "state": "Down",
        "tone": "bad",
        "since": "",
        "why": "start it",
    }
