from shared import errors
from shared.types import Tier
from tests.services.web.browser import Browser
from tests.services.web.pages.admin.admin_mesh import AdminMesh

PATH = "/admin/organisations"


async def test_all_are_listed_and_one_is_found(root: Browser, mesh: AdminMesh) -> None:
    assert "No organisations yet." in (await root.get(PATH)).text
    acme, other = mesh.add_organisation("Acme"), mesh.add_organisation("Other")
    text = (await root.get(PATH)).text
    assert "Acme" in text
    assert "2 organisations" in text
    found = (await root.get(f"{PATH}?search=acm")).text
    assert f"/organisations/{acme.id}" in found
    assert f"/organisations/{other.id}" not in found
    assert "No organisation like that." in (await root.get(f"{PATH}?search=zzz")).text


async def test_a_tier_is_set_for_one(root: Browser, mesh: AdminMesh) -> None:
    acme, _ = mesh.add_organisation("Acme"), mesh.add_organisation("Other")
    done = await root.submit(await root.get(PATH), f"{PATH}/{acme.id}/tier", tier="enterprise")
    assert (done.status_code, done.headers["location"]) == (303, f"{PATH}?done=tier")
    assert [team.tier for team in mesh.organisations] == [Tier.ENTERPRISE, Tier.FREE]
    page = (await root.get(done.headers["location"])).text
    assert "The tier is changed." in page
    assert '<option value="enterprise" selected>' in page


async def test_a_tier_that_there_is_not_is_refused(root: Browser, mesh: AdminMesh) -> None:
    acme = mesh.add_organisation("Acme")
    page = await root.submit(await root.get(PATH), f"{PATH}/{acme.id}/tier", tier="gold")
    assert page.status_code == 400
    assert "Tier: not one of those that there are." in page.text
    assert mesh.organisations == [acme]


async def test_a_form_from_elsewhere_sets_nothing(root: Browser, mesh: AdminMesh) -> None:
    acme = mesh.add_organisation("Acme")
    page = await root.get(PATH)
    assert (await root.submit(page, f"{PATH}/{acme.id}/tier", {"Sec-Fetch-Site": "cross-site"}, tier="pro")).status_code == 403
    assert mesh.organisations == [acme]


async def test_the_password_is_asked_for(root: Browser, mesh: AdminMesh) -> None:
    acme = mesh.add_organisation("Acme")
    mesh.is_stale = True
    asked = await root.submit(await root.get(PATH), f"{PATH}/{acme.id}/tier", tier="pro")
    assert "Confirm it is you" in asked.text
    assert mesh.organisations == [acme]


async def test_hostile_names_are_texts_and_auth_away_is_said(root: Browser, mesh: AdminMesh) -> None:
    mesh.add_organisation('"><script>alert(1)</script>')
    text = (await root.get(PATH)).text
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)" in text
    mesh.broken["auth.listAllOrganisations"] = errors.NotReachable("no auth is reachable")
    assert (await root.get(PATH)).status_code == 503
