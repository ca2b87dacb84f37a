"""Rules for every admin page."""

import re
from uuid import UUID

import msgspec
import pytest

from services.web import features
from shared.api.alerts import Silence
from shared.api.membership import MemberState
from shared.types import Role, TenantId, UserRole
from tests import feature_parts
from tests.services.web.browser import Browser, forms_of
from tests.services.web.fake_mesh import NOW
from tests.services.web.pages.admin.admin_mesh import GATEWAY, WAITING, WORKER, AdminMesh

#: Of features.
_TABS = [tab for part in features.parts() for tab in part.tabs if tab.path.startswith("/admin/")]
_FAKES = feature_parts.modules("web.fake_mesh")
ACME = TenantId(UUID(int=77))
PATHS = (
    "/admin",
    "/admin/charts",
    "/admin/alerts",
    "/admin/runbooks/no_worker",
    "/admin/nodes",
    f"/admin/nodes/{WAITING}/approve",
    f"/admin/nodes/{WORKER}/revoke",
    "/admin/nodes/tickets",
    "/admin/users",
    "/admin/users/{user}",
    "/admin/organisations",
    f"/admin/organisations/{ACME}",
    "/admin/prices?history=yes",
    "/admin/routes",
    "/admin/audit",
    "/admin/settings",
    "/admin/setup",
    "/admin/invitations",
    *(tab.path for tab in _TABS),
    *(path for part in _FAKES for path in getattr(part, "PATHS", ())),
)
#: No other method may be called by a GET.
_READING = {
    "auth.loginUser", "auth.resumeSession", "auth.listNodes", "auth.listTickets", "auth.listUsers", "auth.getUserCalled",
    "auth.listAllOrganisations", "auth.getOrganisation", "auth.listAudit", "auth.getSettings", "gateway.getSettings", "gateway.listTiers",
    "auth.getSignInOptions", "auth.getSigningKeys", "gateway.listNodes", "gateway.getServiceHealth", "gateway.listModels",
    "gateway.listPrices", "gateway.readAccount", "gateway.getUserQuota", "gateway.getUsageReport", "gateway.getBusinessReport",
    "auth.countNewAccounts", "auth.nameUsers", "auth.getSetup", "auth.listColleagueInvitations",
    "gateway.listRoutes", "gateway.listRollouts", "metrics.getSystemHealth", "metrics.getHistory",
    "metrics.listAlerts",
}.union(*(getattr(part, "READING", ()) for part in _FAKES))  # fmt: skip


@pytest.fixture
def dana(mesh: AdminMesh) -> str:
    """The id of a user, in a mesh with something on every page."""
    mesh.add_member(WORKER)
    mesh.add_member(WAITING, MemberState.PENDING)
    mesh.add_node(WORKER)
    mesh.add_node(GATEWAY, Role.GATEWAY)
    mesh.add_ticket("abcd")
    mesh.add_organisation("Acme")
    mesh.organisations[0] = msgspec.structs.replace(mesh.organisations[0], id=ACME)
    mesh.add_row(1)
    for state in ("firing", "pending", "over"):
        mesh.add_alert(state=state, node="n1")
    mesh.silences.append(Silence("0001", "no_worker", {}, NOW, "root", ""))
    return str(mesh.add_person("dana", UserRole.USER).id)


@pytest.mark.parametrize("path", PATHS)
async def test_every_page_keeps_the_rules(root: Browser, mesh: AdminMesh, dana: str, path: str) -> None:
    page = await root.get(path.format(user=dana))
    assert page.status_code == 200
    check_sources(page.text)
    check_order(page.text)
    for fields in forms_of(page).values():
        assert len(fields["token"]) == 97
    # A GET changes nothing.
    assert set(mesh.called_methods()) <= _READING
    assert ('<nav class="tabs groups" aria-label="Administration">' in page.text) is not path.endswith(("/approve", "/revoke"))


def check_sources(text: str) -> None:
    """Check that nothing is inline or loaded from third parties."""
    assert text.count("<script") == len(re.findall(r'<script(?: type="module"| defer)? src="/static/[^"]+"></script>', text))
    assert " style=" not in text
    assert not re.search(r' on\w+="', text)
    for address in re.findall(r'(?:src|href|action)="([^"]*)"', text):
        assert address == "" or address.startswith(("/", "#")), address
        assert not address.startswith("//")


def check_order(text: str) -> None:
    """Check the structure of headings, tabs, tables and ids."""
    assert text.count("<h1") == 1
    assert text.index("<h1") < text.find("<h2") or "<h2" not in text
    assert text.count("<table") == text.count('<caption class="unseen">')
    assert "<th>" not in text
    assert ('aria-label="Administration"' in text) == ("narrow" not in text)
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))


#: Group -> page name -> path.
NAVIGATION = {
    "Operate": {
        "Health": "/admin",
        "Alerts": "/admin/alerts",
        "Charts": "/admin/charts",
        "Nodes": "/admin/nodes",
        "Routes": "/admin/routes",
    },
    "People": {"Users": "/admin/users", "Organizations": "/admin/organisations"},
    "Money": {"Prices": "/admin/prices"},
    "System": {"Audit log": "/admin/audit", "Settings": "/admin/settings", "Setup": "/admin/setup"},
}
for _tab in _TABS:
    NAVIGATION[_tab.group][_tab.text] = _tab.path


async def test_navigation_is_grouped_and_each_page_has_its_own_heading(root: Browser, dana: str) -> None:
    for pages in NAVIGATION.values():
        for name, path in pages.items():
            text = (await root.get(path)).text
            nav = text.partition('<nav class="tabs groups"')[2].partition("</nav>")[0]
            groups = re.split(r'<span id="nav-\w+">(\w+)</span>', nav)[1:]
            found = {
                label: {words: link for link, words in re.findall(r'<a href="([^"]+)"[^>]*>([^<]+)</a>', links)}
                for label, links in zip(groups[::2], groups[1::2], strict=True)
            }
            assert found == NAVIGATION, path
            assert re.findall(r'aria-current="page">([^<]+)</a>', nav) == [name]
            assert re.findall(r"<h1>([^<]+)</h1>", text) == [name]
