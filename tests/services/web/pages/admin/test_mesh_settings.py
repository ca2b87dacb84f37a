import msgspec

from services.web.pages.admin import mesh_settings
from shared import errors
from shared.api.service_settings import ShownSetting, TierTerms
from shared.types import Role, Tier
from tests.services.web.browser import Browser
from tests.services.web.pages.admin.admin_mesh import GATEWAY, WORKER, AdminMesh

PATH = "/admin/settings"


async def test_reported_facts_are_shown(root: Browser, mesh: AdminMesh) -> None:
    mesh.add_node(WORKER)
    mesh.add_node(GATEWAY, Role.GATEWAY)
    text = (await root.get(PATH)).text
    for word in (
        "Open: anyone",
        "8 characters",
        "PASSWORD_MIN_LENGTH=15",
        "NIST SP 800-63B",
        "key-one",
        "1.0.0",
        "smollm2",
        "http://localhost:3000",
    ):
        assert word in text


async def test_page_works_without_the_gateway_and_auth_settings(root: Browser, mesh: AdminMesh) -> None:
    mesh.broken |= {name: errors.NotReachable("no") for name in ("gateway", "auth.getSignInOptions", "auth.getSigningKeys")}
    page = await root.get(PATH)
    assert page.status_code == 200
    assert page.text.count("Auth isn’t responding.") == 2
    assert "The gateway isn’t responding." in page.text


async def test_tiers_and_settings_are_shown_with_changed_ones_first(root: Browser, mesh: AdminMesh) -> None:
    mesh.tiers = (
        TierTerms(Tier.FREE, requests_per_hour=100, requests_per_minute=10, concurrency=10, included_tokens=250_000),
        TierTerms(Tier.ENTERPRISE),
    )
    mesh.settings = (
        ShownSetting("AUDIT_DAYS", "365", "365", "days that acts are kept"),
        ShownSetting("REQUEST_LOG_DAYS", "7", "90", "days that rows are kept"),
        ShownSetting("SMTP_URL", "set", "", "where mail goes", is_secret=True),
        ShownSetting("DATA_KEY_OLD", "", "", "the key before", is_secret=True),
        ShownSetting("OIDC_NAME", "<b>Corp</b>", "", "what the button says"),
    )
    text = (await root.get(PATH)).text
    for words in (
        "250,000",
        "Included tokens per month",
        "unlimited",
        "Auth settings",
        "Gateway settings",
        "Days that rows are kept.",
        "set (hidden)",
    ):
        assert words in text
    assert "<b>Corp</b>" not in text
    changed, usual = text.split("2 defaults")[0], text.split("2 defaults")[1].split("</details>")[0]
    assert all(name in changed for name in ("REQUEST_LOG_DAYS", "SMTP_URL", "OIDC_NAME"))
    assert all(name in usual for name in ("AUDIT_DAYS", "DATA_KEY_OLD", "not set"))


async def test_service_without_readable_settings_says_so(root: Browser, mesh: AdminMesh) -> None:
    mesh.broken |= {"auth.getSettings": errors.NotReachable("no"), "gateway.listTiers": errors.NotReachable("no")}
    page = await root.get(PATH)
    assert page.status_code == 200
    assert "This service isn’t responding." in page.text
    assert "The gateway isn’t responding." in page.text


def test_mixed_versions_are_shown_as_an_upgrade_ignoring_gone_nodes() -> None:
    mesh = AdminMesh()
    one, gone = mesh.add_node(WORKER), mesh.add_node(WORKER, alive=False)
    rows = (one, msgspec.structs.replace(one, version="1.1.0"), msgspec.structs.replace(gone, version="0.9"))
    found = mesh_settings.versions_of(rows)
    assert [(each.service, each.versions, each.nodes) for each in found] == [("inference", ("1.0.0", "1.1.0"), 2)]
