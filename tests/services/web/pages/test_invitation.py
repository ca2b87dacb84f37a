import httpx
import pytest

from shared import errors
from shared.api import organizations
from shared.api.organizations import TeamRole
from tests.services.web.browser import SAME_ORIGIN, Browser, forms_of
from tests.services.web.fake_mesh import FakeMesh
from tests.services.web.pages.admin.hostile import NAMES


@pytest.fixture
async def bob(mesh: FakeMesh, browser: Browser) -> Browser:
    """A browser of bob, who is invited to alice's organization."""
    mesh.add_account("bob", "battery staple")
    team = mesh.add_team("Acme", mesh.add_account("alice", "correct horse"))
    mesh.invitations["invited-bob"] = team
    await browser.sign_in("bob", "battery staple")
    return browser


async def test_viewing_an_invitation_does_not_use_it(bob: Browser, mesh: FakeMesh) -> None:
    page = await bob.get("/invitation?token=invited-bob")
    assert forms_of(page)["/invitation"]["code"] == "invited-bob"
    assert "bob@example.com" in page.text
    assert "invited-bob" in mesh.invitations


@pytest.mark.parametrize("typed", [False, True], ids=["of the address", "from the mail"])
async def test_accepting_leads_to_the_organization(bob: Browser, mesh: FakeMesh, typed: bool) -> None:
    page = await bob.get("/invitation" if typed else "/invitation?token=invited-bob")
    answer = await bob.submit(page, "/invitation", **({"code": " invited-bob\n"} if typed else {}))
    (team,) = mesh.teams
    assert answer.headers["location"] == f"/organisations/{team}?done=joined"
    joined = await bob.get(answer.headers["location"])
    assert "You joined this organization." in joined.text
    assert "Switch to this organization" in joined.text


async def test_invalid_code_stays_in_the_form(bob: Browser) -> None:
    page = await bob.submit(await bob.get("/invitation"), "/invitation", code='"><script>alert(1)</script>')
    assert page.status_code == 404
    assert "Copy the whole code from the mail." in page.text
    assert "<script>alert" not in page.text
    assert forms_of(page)["/invitation"]["code"] == '"><script>alert(1)</script>'


async def test_visitor_signs_in_first_and_comes_back(browser: Browser, mesh: FakeMesh) -> None:
    mesh.add_account("bob", "battery staple")
    answer = await browser.get("/invitation?token=invited-bob")
    assert answer.headers["location"] == "/login?then=/invitation"
    answer = await browser.submit(await browser.get(answer.headers["location"]), "/login", name="bob", password="battery staple")
    assert answer.headers["location"] == "/invitation"


async def test_cross_site_form_joins_nothing(bob: Browser, mesh: FakeMesh) -> None:
    page = await bob.get("/invitation?token=invited-bob")
    assert (await bob.submit(page, "/invitation", {"Sec-Fetch-Site": "cross-site"})).status_code == 403
    assert (await bob.submit(page, "/invitation", token="")).status_code == 403
    assert "invited-bob" in mesh.invitations


async def post_code(browser: Browser, code: str, /, **headers: str) -> httpx.Response:
    """Look up the code like the page's script."""
    token = forms_of(await browser.get("/invitation"))["/invitation"]["token"]
    sent = SAME_ORIGIN | {"X-Form-Token": token} | {name.replace("_", "-"): value for name, value in headers.items()}
    return await browser.client.post("/invitation/offer", json={"code": code}, headers=sent)


@pytest.mark.parametrize(("role", "words"), [(TeamRole.MEMBER, "a member"), (TeamRole.OWNER, "an owner")])
async def test_script_reads_the_invitation_of_a_code(bob: Browser, mesh: FakeMesh, role: TeamRole, words: str) -> None:
    mesh.offered = role
    answer = await post_code(bob, " invited-bob\n")
    assert answer.json() == {"organisation": "Acme", "role": words, "invited_by": "alice", "until": "27 Nov 2026"}
    assert answer.headers["cache-control"] == "no-store"
    assert "invited-bob" in mesh.invitations
    (call,) = [each for each in mesh.calls if each.method == "auth.readInvitation"]
    assert call.request == organizations.ReadInvitation("invited-bob")


@pytest.mark.parametrize("name", NAMES)
async def test_hostile_name_is_json_not_html(bob: Browser, mesh: FakeMesh, name: str) -> None:
    mesh.invitations["another-code"] = mesh.add_team(NAMES[name], mesh.add_account(NAMES[name], "x"))
    answer = await post_code(bob, "another-code")
    assert answer.headers["content-type"].startswith("application/json")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert (answer.json()["organisation"], answer.json()["invited_by"]) == (NAMES[name], NAMES[name])


@pytest.mark.parametrize("code", ["", "nobody's", '"><script>alert(1)</script>'])
async def test_unknown_code_is_refused_as_json(bob: Browser, code: str) -> None:
    answer = await post_code(bob, code)
    assert answer.status_code == 404
    assert answer.json()["error"]["message"] == "no open invitation for you has this code"


async def test_too_many_guesses_get_retry_after(bob: Browser, mesh: FakeMesh) -> None:
    mesh.broken["auth.readInvitation"] = errors.Limited("too many codes", hint="wait a while", retry_after_seconds=60)
    answer = await post_code(bob, "invited-bob")
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "60")


async def test_offer_is_same_origin_only(bob: Browser, mesh: FakeMesh) -> None:
    for headers in ({"Sec_Fetch_Site": "cross-site"}, {"X_Form_Token": ""}, {"X_Form_Token": "0" * 97}):
        assert (await post_code(bob, "invited-bob", **headers)).status_code == 403
    page = await bob.get("/invitation")
    as_form = {"token": forms_of(page)["/invitation"]["token"], "code": "invited-bob"}
    assert (await bob.client.post("/invitation/offer", data=as_form, headers=SAME_ORIGIN)).status_code == 415
    assert (await bob.get("/invitation/offer?code=invited-bob")).status_code == 405
    assert "auth.readInvitation" not in mesh.called_methods()


async def test_visitor_gets_no_offer(browser: Browser, mesh: FakeMesh) -> None:
    answer = await browser.client.post("/invitation/offer", json={"code": "invited-bob"}, headers=SAME_ORIGIN)
    assert answer.status_code == 303
    assert "auth.readInvitation" not in mesh.called_methods()
