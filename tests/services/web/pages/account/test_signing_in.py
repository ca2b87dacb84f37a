import asyncio
import json
from http.cookies import SimpleCookie

import httpx
import msgspec
import pytest
from litestar.types import ASGIApp

from services.web import request_context
from shared import errors
from shared.api import auth, organizations
from tests.services.web import servers
from tests.services.web.browser import Browser, forms_of, shown_key
from tests.services.web.fake_accounts import CODE
from tests.services.web.fake_mesh import FakeMesh

PERSON = {"username": "john_doe", "email": "john@example.com", "password": "secure_password"}


async def register(browser: Browser, **values: str) -> httpx.Response:
    return await browser.submit(await browser.get("/register"), "/register", **(PERSON | values))


def cookies_set(answer: httpx.Response) -> SimpleCookie:
    cookies: SimpleCookie = SimpleCookie()
    for line in answer.headers.get_list("set-cookie"):
        cookies.load(line)
    return cookies


async def test_registration_signs_in_and_shows_the_first_key_once(browser: Browser, mesh: FakeMesh) -> None:
    page = await register(browser)
    assert page.status_code == 200
    key = shown_key(page)
    assert key is not None
    assert page.headers["cache-control"] == "no-store"
    assert key not in str(page.url)
    assert key not in str(page.headers)
    again = await browser.get("/dashboard")
    assert again.status_code == 200
    assert key not in again.text
    assert key not in (await browser.get("/api-keys")).text
    assert [key.name for key in mesh.keys] == ["first key"]


async def test_reload_after_registration_neither_repeats_it_nor_shows_the_key(browser: Browser, mesh: FakeMesh) -> None:
    form = forms_of(await browser.get("/register"))["/register"] | PERSON
    first = await browser.client.post("/register", data=form, headers={"Sec-Fetch-Site": "same-origin"})
    assert shown_key(first)
    reloaded = await browser.client.post("/register", data=form, headers={"Sec-Fetch-Site": "same-origin"})
    assert (reloaded.status_code, reloaded.headers["location"]) == (303, "/dashboard")
    assert mesh.called_methods().count("auth.registerUser") == 1
    assert len(mesh.keys) == 1


@pytest.mark.parametrize(
    ("values", "status", "message"),
    [
        pytest.param({"username": "taken"}, 409, "The username &#39;taken&#39; is taken", id="a taken name"),
        pytest.param({"password": "zq7"}, 400, "shorter than 8", id="a short password"),
    ],
)
async def test_refused_registration_keeps_the_input_except_the_password(
    browser: Browser, mesh: FakeMesh, values: dict[str, str], status: int, message: str
) -> None:
    mesh.add_account("taken", "correct horse")
    page = await register(browser, **values)
    assert page.status_code == status
    assert message in page.text
    fields = forms_of(page)["/register"]
    wanted = PERSON | values
    assert (fields["username"], fields["email"], fields["password"]) == (wanted["username"], wanted["email"], "")
    assert wanted["password"] not in page.text


async def test_account_without_a_first_key_is_welcomed(browser: Browser, mesh: FakeMesh) -> None:
    mesh.broken["auth.generateApiKey"] = errors.Unavailable("PostgreSQL does not answer")
    page = await register(browser)
    assert page.status_code == 200
    assert "but we couldn’t create its first key" in page.text


async def test_account_that_could_not_be_signed_in_is_reported_as_created(browser: Browser, mesh: FakeMesh) -> None:
    mesh.broken["auth.loginUser"] = errors.Unavailable("Valkey does not answer")
    page = await register(browser)
    assert page.status_code == 503
    assert "Your account was created," in page.text
    assert forms_of(page)["/login"]["name"] == "john_doe"


@pytest.mark.parametrize("name", ["alice", "alice@example.com"])
async def test_login_by_name_or_address(browser: Browser, mesh: FakeMesh, name: str) -> None:
    mesh.add_account("alice", "correct horse")
    answer = await browser.sign_in(name, "correct horse")
    assert (answer.status_code, answer.headers["location"]) == (303, "/dashboard")
    assert "Sign out" in (await browser.get("/dashboard")).text


async def test_registration_leads_to_the_requested_page(browser: Browser, mesh: FakeMesh) -> None:
    """The link of an invitation takes a user without an account to the login."""
    login = await browser.get("/login?then=/invitation")
    assert 'href="/register?then=/invitation"' in login.text
    form = await browser.get("/register?then=/invitation")
    assert 'href="/login?then=/invitation"' in form.text
    page = await browser.submit(form, "/register", **PERSON)
    assert '<a class="button" href="/invitation">View invitation</a>' in page.text
    # The key is shown only here, so there is no automatic redirect.
    assert shown_key(page)


@pytest.mark.parametrize("then", ["", "https://evil.example", "//evil.example", "/logout", "/dashboard"])
async def test_registration_does_not_redirect_elsewhere(browser: Browser, then: str) -> None:
    form = await browser.client.get("/register", params={"then": then})
    page = await browser.submit(form, "/register", **PERSON, then=then)
    assert page.status_code == 200
    assert "Go on to" not in page.text
    assert "evil.example" not in page.text


async def test_wrong_password_keeps_the_name(browser: Browser, mesh: FakeMesh) -> None:
    mesh.add_account("alice", "correct horse")
    page = await browser.sign_in("alice", "wrong horse")
    assert page.status_code == 401
    assert "The name or the password is wrong." in page.text
    assert forms_of(page)["/login"]["name"] == "alice"
    assert "wrong horse" not in page.text
    assert "aimesh_session" not in cookies_set(page)


@pytest.mark.parametrize("then", ["https://evil.example", "//evil.example", "/logout", "/dashboard@evil.example", ""])
async def test_login_does_not_redirect_elsewhere(browser: Browser, mesh: FakeMesh, then: str) -> None:
    mesh.add_account("alice", "correct horse")
    page = await browser.client.get("/login", params={"then": then})
    assert forms_of(page)["/login"]["then"] == ""
    answer = await browser.submit(page, "/login", name="alice", password="correct horse", then=then)
    assert answer.headers["location"] == "/dashboard"


async def test_session_cookie_on_plain_http(browser: Browser, mesh: FakeMesh) -> None:
    mesh.add_account("alice", "correct horse")
    cookie = cookies_set(await browser.sign_in("alice", "correct horse"))["aimesh_session"]
    assert cookie.value in mesh.sessions
    assert (cookie["httponly"], cookie["samesite"].lower(), cookie["path"], cookie["domain"]) == (True, "lax", "/", "")
    assert not cookie["secure"]


async def test_session_cookie_over_tls(tls_browser: Browser, mesh: FakeMesh) -> None:
    mesh.add_account("alice", "correct horse")
    answer = await tls_browser.sign_in("alice", "correct horse")
    cookie = cookies_set(answer)["__Host-aimesh_session"]
    assert (cookie["secure"], cookie["httponly"], cookie["samesite"].lower(), cookie["path"]) == (True, True, "lax", "/")
    assert not cookie["domain"]
    assert answer.headers["strict-transport-security"]
    assert (await tls_browser.get("/dashboard")).status_code == 200


async def test_logout_ends_the_session_here_and_at_auth(browser: Browser, mesh: FakeMesh) -> None:
    mesh.add_account("alice", "correct horse")
    await browser.sign_in("alice", "correct horse")
    answer = await browser.submit(await browser.get("/dashboard"), "/logout")
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert mesh.sessions == {}
    assert (await browser.get("/dashboard")).status_code == 303


async def test_login_says_which_browser_it_is(browser: Browser, mesh: FakeMesh) -> None:
    mesh.add_account("alice", "correct horse")
    browser.client.headers["user-agent"] = "Firefox/140"
    await browser.sign_in("alice", "correct horse")
    (call,) = [each.request for each in mesh.calls if each.method == "auth.loginUser"]
    assert isinstance(call, auth.LoginUser)
    assert (call.kind, call.client.agent) == (auth.SessionKind.BROWSER, "Firefox/140")
    assert call.client.address


async def test_json_login_opens_a_program_session(browser: Browser, mesh: FakeMesh) -> None:
    mesh.add_account("alice", "correct horse")
    await browser.client.post("/login", json={"username": "alice", "password": "correct horse"})
    sent = mesh.calls[-1].request
    assert isinstance(sent, auth.LoginUser)
    assert sent.kind is auth.SessionKind.PROGRAM


async def test_closed_registration_says_whom_to_ask(browser: Browser, mesh: FakeMesh) -> None:
    mesh.options = msgspec.structs.replace(mesh.options, open_registration=False)
    page = await browser.get("/register")
    assert "An administrator can also create one for you" in page.text
    refused = await browser.submit(page, "/register", **PERSON, invitation="made up")
    assert refused.status_code == 403
    assert forms_of(refused)["/register"]["invitation"] == "made up"
    assert "Ask an administrator of this mesh" in (await browser.get("/login")).text


async def test_invited_user_registers_and_joins(browser: Browser, mesh: FakeMesh) -> None:
    mesh.options = msgspec.structs.replace(mesh.options, open_registration=False)
    page = await browser.submit(await browser.get("/register"), "/register", **PERSON, invitation=mesh.invitation)
    assert shown_key(page)
    accepted = [call.request for call in mesh.calls if isinstance(call.request, organizations.AcceptInvitation)]
    assert accepted == [organizations.AcceptInvitation(mesh.invitation)]


async def test_password_rule_is_that_of_auth(browser: Browser, mesh: FakeMesh) -> None:
    mesh.options = msgspec.structs.replace(mesh.options, password_min_length=15)
    page = await browser.get("/register")
    assert 'minlength="15"' in page.text
    assert "At least 15 characters" in page.text


@pytest.mark.parametrize("path", ["/login", "/register"])
async def test_forms_are_shown_while_auth_is_down(browser: Browser, mesh: FakeMesh, path: str) -> None:
    mesh.broken["auth"] = errors.NotReachable("no node of that role is alive")
    page = await browser.get(path)
    assert page.status_code == 200
    assert path in forms_of(page)


async def test_only_known_notices_are_shown_after_a_redirect(browser: Browser) -> None:
    assert "Password changed" in (await browser.get("/login?done=reset")).text
    assert 'role="status"' not in (await browser.get("/login?done=%3Cscript%3E")).text


async def test_logout_ends_the_session_at_the_provider(browser: Browser, mesh: FakeMesh) -> None:
    mesh.add_account("alice", "correct horse")
    mesh.ends_at = "https://login.example/logout?client_id=a&id_token_hint=b"
    await browser.sign_in("alice", "correct horse")
    answer = await browser.submit(await browser.get("/dashboard"), "/logout")
    assert answer.status_code == 200
    assert 'content="0;url=https://login.example/logout?client_id=a&amp;id_token_hint=b"' in answer.text
    assert mesh.sessions == {}
    assert cookies_set(answer)["aimesh_session"].value == ""
    # Web asks auth for the provider's logout URL while the session still exists.
    assert mesh.called_methods().index("auth.leaveOidc") < mesh.called_methods().index("auth.logoutUser")


async def test_logout_works_without_the_provider(browser: Browser, mesh: FakeMesh) -> None:
    mesh.add_account("alice", "correct horse")
    await browser.sign_in("alice", "correct horse")
    mesh.broken["auth.leaveOidc"] = errors.Unavailable("the provider does not answer")
    answer = await browser.submit(await browser.get("/dashboard"), "/logout")
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert mesh.sessions == {}


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}, id="another site"),
        pytest.param({"Sec-Fetch-Site": "same-site"}, id="a sibling domain"),
        pytest.param({"Origin": "https://evil.example"}, id="another origin, old browser"),
        pytest.param({"Origin": "null"}, id="a sandboxed frame"),
    ],
)
async def test_cross_site_forms_are_refused(browser: Browser, mesh: FakeMesh, headers: dict[str, str]) -> None:
    mesh.add_account("alice", "correct horse")
    page = await browser.get("/login")
    answer = await browser.submit(page, "/login", headers, name="alice", password="correct horse")
    assert answer.status_code == 403
    assert mesh.sessions == {}


async def test_browser_without_fetch_metadata_is_accepted_on_our_own_page(browser: Browser, mesh: FakeMesh) -> None:
    mesh.add_account("alice", "correct horse")
    page = await browser.get("/login")
    headers = {"Origin": "http://localhost:3000"}
    assert (await browser.submit(page, "/login", headers, name="alice", password="correct horse")).status_code == 303


@pytest.mark.parametrize("path", ["/register", "/login", "/login-link"])
async def test_form_without_cookie_or_token_is_refused(browser: Browser, mesh: FakeMesh, path: str) -> None:
    values = {"/register": PERSON, "/login": {"name": "alice", "password": "correct horse"}, "/login-link": {"link": "link"}}[path]
    page = await browser.get(path)
    no_token = await browser.submit(page, path, **values, token="")
    assert no_token.status_code == 403
    browser.client.cookies.clear()
    no_cookie = await browser.submit(page, path, **values)
    assert no_cookie.status_code == 403
    assert set(mesh.called_methods()) <= {"auth.getSignInOptions"}


async def test_token_of_another_session_is_refused(browser: Browser, mesh: FakeMesh, tls_browser: Browser) -> None:
    mesh.add_account("alice", "correct horse")
    mesh.add_account("mallory", "correct horse")
    await browser.sign_in("alice", "correct horse")
    await tls_browser.sign_in("mallory", "correct horse")
    foreign = forms_of(await tls_browser.get("/dashboard"))["/logout"]["token"]
    answer = await browser.submit(await browser.get("/dashboard"), "/logout", token=foreign)
    assert answer.status_code == 403
    assert len(mesh.sessions) == 2


async def test_login_link_works_once_by_its_button(browser: Browser, mesh: FakeMesh) -> None:
    mesh.links["one-time-token"] = mesh.add_account("alice", "correct horse")
    page = await browser.get("/login-link?token=one-time-token")
    assert "one-time-token" in mesh.links
    answer = await browser.submit(page, "/login-link")
    assert (answer.status_code, answer.headers["location"]) == (303, "/dashboard")
    assert (await browser.get("/dashboard")).status_code == 200
    browser.client.cookies.clear()
    page = await browser.get("/login-link?token=one-time-token")
    again = await browser.submit(page, "/login-link")
    assert again.status_code == 401
    assert "Run <code>aicli dashboard</code> again." in again.text


async def test_login_link_leads_to_the_setup_of_a_second_factor(browser: Browser, mesh: FakeMesh) -> None:
    mesh.links["one-time-token"] = mesh.add_account("alice", "correct horse")
    opened = mesh.add_session

    def add_session(user: auth.User) -> str:
        token = opened(user)
        mesh.steps[token] = auth.Step.SET_UP_MFA
        return token

    mesh.add_session = add_session  # type: ignore[method-assign]
    answer = await browser.submit(await browser.get("/login-link?token=one-time-token"), "/login-link")
    mesh.add_session = opened  # type: ignore[method-assign]
    assert answer.headers["location"] == "/login/second-factor"
    codes = await browser.submit(await browser.get("/login/second-factor"), "/login/second-factor", code=CODE)
    assert codes.status_code == 200
    assert 'href="/dashboard"' in codes.text
    assert (await browser.get("/dashboard")).status_code == 200


async def test_html_in_names_is_escaped(browser: Browser, mesh: FakeMesh) -> None:
    evil = "<script>alert(1)</script>"
    mesh.add_account(evil, "correct horse")
    page = await register(browser, username=evil)
    assert page.status_code == 409
    assert evil not in page.text
    assert "&lt;script&gt;" in page.text
    page = await browser.sign_in('"><img src=x onerror=alert(1)>', "x")
    assert "<img src=x" not in page.text


async def test_json_needs_no_csrf_token_and_returns_the_user(browser: Browser, mesh: FakeMesh) -> None:
    answer = await browser.client.post("/register", json=PERSON)
    assert answer.status_code == 201
    user = answer.json()
    assert (user["username"], user["email"], user["tier"], user["is_active"]) == ("john_doe", "john@example.com", "free", True)
    assert list(user) == ["id", "username", "email", "role", "tier", "is_active", "created_at", "logged", "budget", "has_free_tokens"]
    assert "password" not in answer.text
    assert "set-cookie" not in answer.headers
    assert "john_doe" in mesh.accounts


async def test_json_login_returns_the_access_token_and_sets_no_cookie(browser: Browser, mesh: FakeMesh) -> None:
    mesh.add_account("john_doe", "secure_password")
    answer = await browser.client.post("/login", json={"username": "john_doe", "password": "secure_password"})
    assert answer.status_code == 200
    session = answer.json()
    assert (session["access_token"], session["token_type"], session["user"]["is_active"]) == ("access-john_doe", "Bearer", True)
    assert not [name for name in (*session, *session["user"]) if name != name.lower()], "in snake_case"
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/register", PERSON | {"username": "taken"}, (409, "already_exists")),
        ("/register", PERSON | {"role": "admin"}, (400, "bad_request")),
        ("/register", {"username": 1}, (400, "bad_request")),
        ("/login", {"username": "taken", "password": "wrong"}, (401, "not_authenticated")),
        ("/login", [], (400, "bad_request")),
        ("/login", {"username": "x", "password": "y" * 20_000}, (413, "too_large")),
    ],
)
async def test_json_errors_are_openai_error_objects(
    browser: Browser, mesh: FakeMesh, path: str, body: object, expected: tuple[int, str]
) -> None:
    mesh.add_account("taken", "correct horse")
    answer = await browser.client.post(path, content=json.dumps(body), headers={"content-type": "application/json; charset=utf-8"})
    assert (answer.status_code, answer.json()["error"]["code"]) == expected
    assert answer.json()["error"]["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize("media_type", ["text/plain", "multipart/form-data; boundary=x", ""])
async def test_other_content_types_are_refused(browser: Browser, media_type: str) -> None:
    answer = await browser.client.post("/login", content=b"{}", headers={"content-type": media_type})
    assert answer.status_code == 415


async def test_script_signs_in_with_its_code_in_one_step(browser: Browser, mesh: FakeMesh) -> None:
    mesh.add_account("ann", "correct horse")
    body = {"username": "ann", "password": "correct horse", "code": "123456"}
    assert (await browser.client.post("/login", json=body)).status_code == 200
    sent = mesh.calls[-1].request
    assert isinstance(sent, auth.LoginUser)
    assert sent.credentials == auth.Credentials("correct horse", username="ann", code="123456")


async def test_browser_keeps_its_mark_and_sends_it_at_the_next_sign_in(browser: Browser, mesh: FakeMesh) -> None:
    mesh.add_account("alice", "correct horse")
    cookie = cookies_set(await browser.sign_in("alice", "correct horse"))["aimesh_browser"]
    assert (cookie.value, cookie["httponly"], cookie["samesite"]) == ("mark", True, "lax")
    assert int(cookie["max-age"]) >= 365 * 24 * 3600
    assert "aimesh_browser" not in cookies_set(await browser.submit(await browser.get("/dashboard"), "/logout"))
    await browser.sign_in("alice", "wrong horse battery")
    first, second = (call.request for call in mesh.calls if isinstance(call.request, auth.LoginUser))
    assert (first.browser, second.browser) == ("", "mark")
    await browser.submit(await browser.get("/login-link?token=unknown"), "/login-link")
    (redeemed,) = (call.request for call in mesh.calls if isinstance(call.request, auth.RedeemLoginLink))
    assert redeemed.browser == "mark"


async def test_slow_client_is_refused_and_holds_no_slot(app: ASGIApp, mesh: FakeMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_context, "_BODY_SECONDS", 0.2)
    mesh.add_account("ada", "correct horse")
    async with servers.serving(app) as url, httpx.AsyncClient(base_url=url, timeout=30) as client:
        head = b"POST /login HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 60\r\n\r\n{"
        slow = [await asyncio.open_connection(httpx.URL(url).host, httpx.URL(url).port) for _ in range(16)]
        for _, writer in slow:
            writer.write(head)
        answer = await client.post("/login", json={"username": "ada", "password": "correct horse"})
        assert answer.status_code == 200
        for reader, writer in slow:
            async with asyncio.timeout(30):
                assert (await reader.readuntil(b"\r\n")).split()[1] == b"400"
            writer.close()
