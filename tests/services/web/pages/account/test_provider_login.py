import re
from http.cookies import SimpleCookie

import httpx
import msgspec
import pytest

from shared import errors
from shared.api import accounts
from tests.services.web.browser import Browser, forms_of
from tests.services.web.fake_accounts import GOOD_CODE
from tests.services.web.fake_mesh import FakeMesh

BACK = {"code": GOOD_CODE, "iss": "https://login.example"}


@pytest.fixture(autouse=True)
def provider(mesh: FakeMesh) -> None:
    """A mesh with a login provider, which knows alice."""
    mesh.options = msgspec.structs.replace(mesh.options, oidc_name="Corp")
    mesh.add_account("alice", "correct horse")
    mesh.vouched_for = "alice"


async def leave(browser: Browser, **fields: str) -> httpx.Response:
    return await browser.submit(await browser.get("/login"), "/login/oidc", **fields)


async def come_back(browser: Browser, **query: str) -> httpx.Response:
    """Open the callback URL as after the provider's redirect, from another site."""
    return await browser.client.get("/login/oidc/back", params=query, headers={"Sec-Fetch-Site": "cross-site"})


def session_cookie(answer: httpx.Response) -> str:
    cookies: SimpleCookie = SimpleCookie()
    for line in answer.headers.get_list("set-cookie"):
        cookies.load(line)
    return cookies["aimesh_session"].value if "aimesh_session" in cookies else ""


async def test_button_exists_only_with_a_provider(browser: Browser, mesh: FakeMesh) -> None:
    for path in ("/login", "/register"):
        assert "Continue with Corp" in (await browser.get(path)).text
    mesh.options = msgspec.structs.replace(mesh.options, oidc_name=None)
    for path in ("/login", "/register"):
        assert "/login/oidc" not in forms_of(await browser.get(path))


async def test_button_leads_to_the_provider_without_a_form_redirect(browser: Browser, mesh: FakeMesh) -> None:
    page = await leave(browser)
    # Chromium blocks a form's redirect to another site if the policy has form-action 'self'.
    assert page.status_code == 200
    assert re.search(r'<meta http-equiv="refresh" content="0;url=https://login\.example/authorize\?state=state-0&amp;x=1">', page.text)
    assert mesh.begun["state-0"].redirect_uri == "http://localhost:3000/login/oidc/back"
    (cookie,) = [line for line in page.headers.get_list("set-cookie") if line.startswith("aimesh_login=")]
    for part in ("HttpOnly", "Max-Age=600", "SameSite=lax", "Path=/"):
        assert part.lower() in cookie.lower()


async def test_binding_cookie_over_tls_is_host_only(tls_browser: Browser) -> None:
    page = await leave(tls_browser)
    (cookie,) = [line for line in page.headers.get_list("set-cookie") if line.startswith("__Host-aimesh_login=")]
    assert "Secure" in cookie


async def test_callback_signs_in_and_redirects(browser: Browser, mesh: FakeMesh) -> None:
    login = await browser.get("/login?then=/api-keys")
    await browser.submit(login, "/login/oidc")
    answer = await come_back(browser, state="state-0", **BACK)
    assert (answer.status_code, answer.headers["location"]) == (303, "/api-keys")
    assert session_cookie(answer) in mesh.sessions
    assert "aimesh_login" not in browser.client.cookies
    assert (await browser.get("/dashboard")).status_code == 200


async def test_second_factor_is_still_required(browser: Browser, mesh: FakeMesh) -> None:
    mesh.with_factor.add("alice")
    await leave(browser)
    answer = await come_back(browser, state="state-0", **BACK)
    assert answer.headers["location"] == "/login/code"


async def test_callback_in_another_browser_does_not_sign_in(browser: Browser, tls_browser: Browser, mesh: FakeMesh) -> None:
    await leave(tls_browser)
    page = await come_back(browser, state="state-0", **BACK)
    assert page.status_code == 401
    assert "This login was begun in another browser." in page.text
    assert not session_cookie(page)
    assert "/login/oidc" in forms_of(page)
    assert mesh.sessions == {}


@pytest.mark.parametrize(
    "query",
    [
        pytest.param({"error": "access_denied", "error_description": "<script>call 555-evil</script>"}, id="the provider refused"),
        pytest.param({}, id="nothing at all"),
    ],
)
async def test_error_text_of_the_provider_is_not_shown(browser: Browser, query: dict[str, str]) -> None:
    await leave(browser)
    state = {"state": "state-0"} if query else {}
    page = await come_back(browser, **state, **query)
    assert page.status_code in (401, 403)
    assert "555-evil" not in page.text
    assert "Start the login again." in page.text


@pytest.mark.parametrize("then", ["https://evil.example", "//evil.example", "/\\evil.example"])
async def test_callback_does_not_redirect_elsewhere(browser: Browser, mesh: FakeMesh, then: str) -> None:
    await leave(browser, then=then)
    assert mesh.begun["state-0"].then == "/dashboard"


async def test_unavailable_provider_gives_503(browser: Browser, mesh: FakeMesh) -> None:
    page = await browser.get("/login")
    mesh.broken["auth.beginOidc"] = errors.Unavailable("the login provider does not answer")
    assert (await browser.submit(page, "/login/oidc")).status_code == 503


async def test_cross_site_form_starts_no_login(browser: Browser, mesh: FakeMesh) -> None:
    page = await browser.get("/login")
    assert (await browser.submit(page, "/login/oidc", {"Sec-Fetch-Site": "cross-site"})).status_code == 403
    assert (await browser.submit(page, "/login/oidc", token="")).status_code == 403
    assert mesh.begun == {}


async def test_user_without_a_password_confirms_at_the_provider(browser: Browser, mesh: FakeMesh) -> None:
    await browser.sign_in("alice", "correct horse")
    old = browser.client.cookies["aimesh_session"]
    page = await browser.get("/login/oidc?fresh=yes&then=/settings/security")
    assert "asks for your password again" in page.text
    await browser.submit(page, "/login/oidc")
    wanted = mesh.begun["state-0"]
    assert (wanted.fresh, wanted.then, wanted.session_token) == (True, "/settings/security", None)
    answer = await come_back(browser, state="state-0", **BACK)
    assert answer.headers["location"] == "/settings/security"
    # The browser's old session is replaced, so it ends.
    assert old not in mesh.sessions
    assert len(mesh.sessions) == 1


async def test_mesh_without_a_provider_says_so(browser: Browser, mesh: FakeMesh) -> None:
    page = await browser.get("/login")
    mesh.options = msgspec.structs.replace(mesh.options, oidc_name=None)
    assert "This mesh has no login provider" in (await browser.get("/login/oidc")).text
    assert (await browser.submit(page, "/login/oidc")).status_code == 404


async def test_linking_returns_to_the_settings_and_keeps_the_session(browser: Browser, mesh: FakeMesh) -> None:
    await browser.sign_in("alice", "correct horse")
    before = browser.client.cookies["aimesh_session"]
    left = await browser.submit(await browser.get("/settings/security"), "/settings/security/providers/link")
    assert "https://login.example/authorize" in left.text
    assert mesh.begun["state-0"].session_token == before
    answer = await come_back(browser, state="state-0", **BACK)
    assert answer.headers["location"] == "/settings/security?done=linked"
    assert browser.client.cookies["aimesh_session"] == before
    page = await browser.get("/settings/security?done=linked")
    assert "alice@corp.example" in page.text
    assert "Account linked." in page.text


async def test_failed_link_is_reported(browser: Browser, mesh: FakeMesh) -> None:
    await browser.sign_in("alice", "correct horse")
    await browser.submit(await browser.get("/settings/security"), "/settings/security/providers/link")
    page = await come_back(browser, state="state-0", error="access_denied")
    assert page.status_code == 403
    assert 'href="/settings/security"' in page.text
    assert mesh.provider_links == []


async def test_remove_a_link(browser: Browser, mesh: FakeMesh) -> None:
    await browser.sign_in("alice", "correct horse")
    mesh.provider_links.append(accounts.OidcLink("https://login.example", "subject-1", "", mesh.accounts["alice"].user.created_at))
    page = await browser.get("/settings/security")
    answer = await browser.submit(page, "/settings/security/providers/unlink")
    assert answer.headers["location"] == "/settings/security?done=unlinked"
    assert mesh.provider_links == []


async def test_last_sign_in_method_cannot_be_removed(browser: Browser, mesh: FakeMesh) -> None:
    await browser.sign_in("alice", "correct horse")
    mesh.without_password.add("alice")
    mesh.provider_links.append(accounts.OidcLink("https://login.example", "subject-1", "", mesh.accounts["alice"].user.created_at))
    page = await browser.submit(await browser.get("/settings/security"), "/settings/security/providers/unlink")
    assert page.status_code == 403
    assert "Nothing else opens your account." in page.text
    assert "Set a password" in page.text
