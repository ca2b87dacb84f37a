import pytest

from tests.services.web.browser import Browser, forms_of
from tests.services.web.fake_mesh import FakeMesh


@pytest.fixture
async def bob(mesh: FakeMesh, browser: Browser) -> Browser:
    """Invited to an organisation of alice's."""
    mesh.add_account("bob", "battery staple")
    team = mesh.add_team("Acme", mesh.add_account("alice", "correct horse"))
    mesh.invitations["invited-bob"] = team
    await browser.sign_in("bob", "battery staple")
    return browser


async def test_looking_at_an_invitation_does_not_use_it(bob: Browser, mesh: FakeMesh) -> None:
    page = await bob.get("/invitation?token=invited-bob")
    assert forms_of(page)["/invitation"]["code"] == "invited-bob"
    assert "bob@example.com" in page.text
    assert "invited-bob" in mesh.invitations


@pytest.mark.parametrize("typed", [False, True], ids=["of the address", "from the mail"])
async def test_accepting_leads_to_the_organisation(bob: Browser, mesh: FakeMesh, typed: bool) -> None:
    page = await bob.get("/invitation" if typed else "/invitation?token=invited-bob")
    answer = await bob.submit(page, "/invitation", **({"code": " invited-bob\n"} if typed else {}))
    (team,) = mesh.teams
    assert answer.headers["location"] == f"/organisations/{team}?done=joined"
    joined = await bob.get(answer.headers["location"])
    assert "You belong to this organisation now." in joined.text
    assert "Act for it" in joined.text


async def test_a_code_that_is_none_stays_in_the_form(bob: Browser) -> None:
    page = await bob.submit(await bob.get("/invitation"), "/invitation", code='"><script>alert(1)</script>')
    assert page.status_code == 404
    assert "Copy the whole code from the mail." in page.text
    assert "<script>alert" not in page.text
    assert forms_of(page)["/invitation"]["code"] == '"><script>alert(1)</script>'


async def test_a_visitor_signs_in_first_and_comes_back(browser: Browser, mesh: FakeMesh) -> None:
    mesh.add_account("bob", "battery staple")
    answer = await browser.get("/invitation?token=invited-bob")
    assert answer.headers["location"] == "/login?then=/invitation"
    answer = await browser.submit(await browser.get(answer.headers["location"]), "/login", name="bob", password="battery staple")
    assert answer.headers["location"] == "/invitation"


async def test_a_form_from_elsewhere_joins_nobody(bob: Browser, mesh: FakeMesh) -> None:
    page = await bob.get("/invitation?token=invited-bob")
    assert (await bob.submit(page, "/invitation", {"Sec-Fetch-Site": "cross-site"})).status_code == 403
    assert (await bob.submit(page, "/invitation", token="")).status_code == 403
    assert "invited-bob" in mesh.invitations
