from uuid import uuid4

import pytest

from shared import errors
from shared.types import Tier
from tests.services.web.browser import CONFIRM, Browser
from tests.services.web.pages.admin.admin_mesh import AdminMesh

PATH = "/admin/organisations"


async def test_organizations_are_listed_and_searched(root: Browser, mesh: AdminMesh) -> None:
    assert "No organizations yet." in (await root.get(PATH)).text
    acme, other = mesh.add_organisation("Acme"), mesh.add_organisation("Other")
    text = (await root.get(PATH)).text
    assert "Acme" in text
    assert "2 organizations" in text
    found = (await root.get(f"{PATH}?search=acm")).text
    assert f"{PATH}/{acme.id}" in found
    assert f"{PATH}/{other.id}" not in found
    assert "No matching organizations." in (await root.get(f"{PATH}?search=zzz")).text


async def test_set_the_tier_of_an_organization(root: Browser, mesh: AdminMesh) -> None:
    acme, _ = mesh.add_organisation("Acme"), mesh.add_organisation("Other")
    done = await root.submit(await root.get(PATH), f"{PATH}/{acme.id}/tier", tier="enterprise")
    assert (done.status_code, done.headers["location"]) == (303, f"{PATH}?done=tier")
    assert [team.tier for team in mesh.organisations] == [Tier.ENTERPRISE, Tier.FREE]
    page = (await root.get(done.headers["location"])).text
    assert "Tier changed." in page
    assert '<option value="enterprise" selected>' in page


async def test_organization_shows_its_credits_and_gets_more(root: Browser, mesh: AdminMesh) -> None:
    acme = mesh.add_organisation("Acme")
    page = await root.get(f"{PATH}/{acme.id}")
    for word in ("Acme", str(acme.id), "<dd>0.5 by running requests</dd>", f'href="/organisations/{acme.id}"', "free tier"):
        assert word in page.text
    done = await root.submit(page, f"{PATH}/{acme.id}/credits", amount="25.5", note=" paid ")
    assert done.headers["location"] == f"{PATH}/{acme.id}?done=credits"
    shown = (await root.get(done.headers["location"])).text
    assert "Credits updated." in shown
    assert "<dt>Topped up</dt><dd>25.5</dd>" in shown
    again = await root.submit(page, f"{PATH}/{acme.id}/credits", amount="25.5", note=" paid ")
    assert again.status_code == 303
    assert [(each.user, each.amount_micro, each.note) for each in mesh.moved.values()] == [(str(acme.id), 25_500_000, "paid")]


@pytest.mark.parametrize(
    ("amount", "message"), [("many", "is not an amount"), ("0", "The amount is 0."), ("99999999", "That is too much.")]
)
async def test_invalid_amount_is_refused_and_kept(root: Browser, mesh: AdminMesh, amount: str, message: str) -> None:
    acme = mesh.add_organisation("Acme")
    page = await root.submit(await root.get(f"{PATH}/{acme.id}"), f"{PATH}/{acme.id}/credits", amount=amount, note="x")
    assert page.status_code == 400
    assert message in page.text
    assert f'value="{amount}"' in page.text
    assert not mesh.moved


async def test_unknown_organization_and_unavailable_gateway(root: Browser, mesh: AdminMesh) -> None:
    assert (await root.get(f"{PATH}/{uuid4()}")).status_code == 404
    acme = mesh.add_organisation("Acme")
    mesh.broken["gateway.readAccount"] = errors.NotReachable("no gateway is reachable")
    assert "The gateway isn’t responding." in (await root.get(f"{PATH}/{acme.id}")).text


async def test_unknown_tier_is_refused(root: Browser, mesh: AdminMesh) -> None:
    acme = mesh.add_organisation("Acme")
    page = await root.submit(await root.get(PATH), f"{PATH}/{acme.id}/tier", tier="gold")
    assert page.status_code == 404
    assert "There is no plan &#39;gold&#39;." in page.text
    assert mesh.organisations == [acme]


async def test_cross_site_form_is_refused(root: Browser, mesh: AdminMesh) -> None:
    acme = mesh.add_organisation("Acme")
    page = await root.get(PATH)
    assert (await root.submit(page, f"{PATH}/{acme.id}/tier", {"Sec-Fetch-Site": "cross-site"}, tier="pro")).status_code == 403
    assert mesh.organisations == [acme]


async def test_tier_change_needs_the_password(root: Browser, mesh: AdminMesh) -> None:
    acme = mesh.add_organisation("Acme")
    mesh.is_stale = True
    confirm_page = await root.submit(await root.get(PATH), f"{PATH}/{acme.id}/tier", tier="pro")
    assert CONFIRM in confirm_page.text
    assert mesh.organisations == [acme]


async def test_hostile_names_are_escaped_and_unavailable_auth_is_reported(root: Browser, mesh: AdminMesh) -> None:
    mesh.add_organisation('"><script>alert(1)</script>')
    text = (await root.get(PATH)).text
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)" in text
    mesh.broken["auth.listAllOrganisations"] = errors.NotReachable("no auth is reachable")
    assert (await root.get(PATH)).status_code == 503
