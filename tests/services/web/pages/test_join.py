"""An invitation to the mesh, from its link to the account: for visitors, for users, and after a login at the provider."""

import httpx
import pytest

from shared import errors
from shared.api import accounts, organizations
from shared.api.auth import ClientFacts, Step
from shared.types import UserRole
from tests.services.web.browser import SAME_ORIGIN, Browser, forms_of, shown_key
from tests.services.web.fake_accounts import CODE, GOOD_CODE
from tests.services.web.fake_mesh import FakeMesh

INVITED = "invited-as-a-colleague"


@pytest.fixture
def offer(mesh: FakeMesh) -> organizations.ColleagueInvitation:
    mesh.options = accounts.SignInOptions(open_registration=False, password_min_length=8, oidc_name="Corp")
    return mesh.add_colleague(INVITED, "ben@example.com", UserRole.DEVELOPER, "Acme")


async def opened(browser: Browser, code: str = INVITED) -> str:
    """Submit the link's code like the page's script, and return the page that it leads to."""
    answer = await browser.submit(await browser.get("/join"), "/join", code=f" {code}\n")
    assert (answer.status_code, answer.headers["location"]) == (303, "/join")
    return (await browser.get("/join")).text


async def test_the_link_shows_a_visitor_who_invites_to_what(browser: Browser, mesh: FakeMesh, offer: object) -> None:
    text = await opened(browser)
    assert "<bdi>alice</bdi> invited you to this AI platform as <bdi>a developer, and a member of Acme</bdi>." in text
    assert "ben@example.com" in text
    assert INVITED not in text
    assert INVITED in mesh.colleagues
    (call,) = [each for each in mesh.calls if each.method == "auth.readColleagueInvitation"]
    assert call.request == organizations.ReadColleagueInvitation(INVITED, ClientFacts("127.0.0.1", f"python-httpx/{httpx.__version__}"))


async def test_the_code_is_in_a_cookie_that_scripts_cannot_read(browser: Browser, offer: object) -> None:
    answer = await browser.submit(await browser.get("/join"), "/join", code=INVITED)
    (cookie,) = [each for each in answer.headers.get_list("set-cookie") if INVITED in each]
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    assert "Max-Age" not in cookie


async def test_registering_uses_the_invitation_although_registration_is_closed(browser: Browser, mesh: FakeMesh, offer: object) -> None:
    await opened(browser)
    form = await browser.get("/register")
    assert "a developer, and a member of Acme" in form.text
    assert forms_of(form)["/register"]["email"] == "ben@example.com"
    assert forms_of(form)["/login/oidc"]["then"] == "/join"
    wrong = await browser.submit(form, "/register", username="ben", password="short")
    assert (wrong.status_code, forms_of(wrong)["/register"]["invitation"]) == (400, INVITED)
    welcome = await browser.submit(wrong, "/register", username="ben", password="correct horse")
    assert shown_key(welcome)
    assert mesh.colleagues == {}
    assert "You’re invited" not in (await browser.get("/join")).text


async def test_signing_in_with_a_second_factor_leads_back_to_it(browser: Browser, mesh: FakeMesh, offer: object) -> None:
    user = mesh.add_account("ben", "battery staple")
    mesh.with_factor.add("ben")
    await opened(browser)
    page = await browser.get("/login?then=/join")
    answer = await browser.submit(page, "/login", name="ben", password="battery staple")
    (token,) = [token for token, each in mesh.sessions.items() if each.id == user.id]
    mesh.steps[token] = Step.ENTER_CODE
    halfway = await browser.get("/join")
    assert "I have an account" in halfway.text, "a sign-in that lacks its code accepts nothing"
    answer = await browser.get("/login?then=/join")
    assert answer.headers["location"] == "/login/code?then=/join"
    answer = await browser.submit(await browser.get(answer.headers["location"]), "/login/code", code=CODE)
    assert answer.headers["location"] == "/join"
    joined = await browser.submit(await browser.get("/join"), "/join/accept")
    assert joined.headers["location"] == "/dashboard"
    assert mesh.colleagues == {}


async def test_single_sign_on_leads_back_to_it(browser: Browser, mesh: FakeMesh, offer: object) -> None:
    mesh.add_account("ben", "battery staple")
    mesh.vouched_for = "ben"
    await opened(browser)
    await browser.submit(await browser.get("/register"), "/login/oidc")
    query = f"code={GOOD_CODE}&state=state-0&iss=https://login.example"
    answer = await browser.get(f"/login/oidc/back?{query}")
    assert answer.headers["location"] == "/join"
    page = await browser.get("/join")
    assert "Join as ben" in page.text
    assert (await browser.submit(page, "/join/accept")).headers["location"] == "/dashboard"


async def test_another_user_is_told_to_sign_out(browser: Browser, mesh: FakeMesh, offer: object) -> None:
    mesh.add_account("eve", "battery staple")
    await browser.sign_in("eve", "battery staple")
    text = await opened(browser)
    assert "You’re signed in as <bdi>eve</bdi>" in text
    assert "/join/accept" not in text
    token = forms_of(await browser.get("/join"))["/join"]["token"]
    refused = await browser.client.post("/join/accept", data={"token": token}, headers=SAME_ORIGIN)
    assert refused.status_code == 403
    assert "for another email address" in refused.text


@pytest.mark.parametrize("code", ["", "short", "a b" * 10, "x" * 201, 'x" Path=/; Domain="' + "x" * 16, "ö" * 20])
async def test_what_is_no_code_sets_no_cookie(browser: Browser, mesh: FakeMesh, code: str) -> None:
    answer = await browser.submit(await browser.get("/join"), "/join", code=code)
    assert answer.status_code == 404
    assert "Copy the whole code from the mail." in answer.text
    assert "aimesh_invitation" not in str(answer.headers)
    assert "auth.readColleagueInvitation" not in mesh.called_methods()


async def test_a_code_that_is_not_open_is_forgotten_and_registration_goes_on(browser: Browser, mesh: FakeMesh) -> None:
    page = await opened(browser, "used-before-by-somebody")
    assert "This invitation was already used." in page
    assert "aimesh_invitation" not in browser.client.cookies
    mesh.add_colleague(INVITED, "ben@example.com")
    await opened(browser)
    mesh.colleagues.clear()
    form = await browser.get("/register")
    assert "invitation" not in forms_of(form)["/register"], "an ended invitation is in nobody's way"
    assert shown_key(await browser.submit(form, "/register", username="ben", email="ben@example.com", password="correct horse"))


async def test_while_auth_is_down_the_code_is_kept(browser: Browser, mesh: FakeMesh, offer: object) -> None:
    await opened(browser)
    mesh.broken["auth.readColleagueInvitation"] = errors.Unavailable("auth does not answer")
    assert (await browser.get("/join")).status_code == 503
    assert (await browser.get("/register")).status_code == 200
    mesh.broken.clear()
    assert "You’re invited" in (await browser.get("/join")).text


async def test_forms_of_other_sites_are_refused(browser: Browser, mesh: FakeMesh, offer: object) -> None:
    page = await browser.get("/join")
    assert (await browser.submit(page, "/join", {"Sec-Fetch-Site": "cross-site"}, code=INVITED)).status_code == 403
    assert (await browser.submit(page, "/join", token="", code=INVITED)).status_code == 403
    assert "aimesh_invitation" not in browser.client.cookies
