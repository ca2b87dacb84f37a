import pytest

from shared import errors
from shared.api.auth import Step
from shared.types import UserRole
from tests.services.web.browser import Browser, forms_of
from tests.services.web.fake_accounts import CODE, RECOVERY_CODES, SEED
from tests.services.web.fake_mesh import FakeMesh


@pytest.fixture
async def halfway(mesh: FakeMesh, browser: Browser) -> Browser:
    """A browser in which alice has shown her password, and not yet her code."""
    return await _sign_in(mesh, browser, Step.ENTER_CODE)


@pytest.fixture
async def new_admin(mesh: FakeMesh, browser: Browser) -> Browser:
    """One in which an administrator has to set up a second factor."""
    return await _sign_in(mesh, browser, Step.SET_UP_MFA)


async def _sign_in(mesh: FakeMesh, browser: Browser, step: Step, then: str = "") -> Browser:
    mesh.add_account("alice", "correct horse")
    opened = mesh.add_session

    def add_session(user: object) -> str:
        token = opened(user)  # type: ignore[arg-type]
        mesh.steps[token] = step
        return token

    mesh.add_session = add_session  # type: ignore[method-assign]
    login = await browser.get(f"/login?then={then}")
    answer = await browser.submit(login, "/login", name="alice", password="correct horse")
    mesh.add_session = opened  # type: ignore[method-assign]
    page = {Step.ENTER_CODE: "/login/code", Step.SET_UP_MFA: "/login/second-factor"}[step]
    assert answer.headers["location"] == (f"{page}?then={then}" if then else page)
    return browser


@pytest.mark.parametrize("code", [CODE, f" {CODE} ", RECOVERY_CODES[0]], ids=["of the app", "with spaces around", "for recovery"])
async def test_code_completes_the_login_under_a_new_token(halfway: Browser, mesh: FakeMesh, code: str) -> None:
    before = halfway.client.cookies["aimesh_session"]
    answer = await halfway.submit(await halfway.get("/login/code"), "/login/code", code=code)
    assert (answer.status_code, answer.headers["location"]) == (303, "/dashboard")
    assert halfway.client.cookies["aimesh_session"] != before
    assert list(mesh.sessions) == [halfway.client.cookies["aimesh_session"]]
    assert (await halfway.get("/dashboard")).status_code == 200


async def test_requested_page_is_kept_during_the_login(browser: Browser, mesh: FakeMesh) -> None:
    await _sign_in(mesh, browser, Step.ENTER_CODE, then="/api-keys")
    page = await browser.get("/login/code?then=/api-keys")
    answer = await browser.submit(page, "/login/code", code=CODE)
    assert answer.headers["location"] == "/api-keys"


@pytest.mark.parametrize("then", ["https://evil.example", "//evil.example", "/logout"])
async def test_code_does_not_redirect_elsewhere(halfway: Browser, then: str) -> None:
    page = await halfway.client.get("/login/code", params={"then": then})
    answer = await halfway.submit(page, "/login/code", code=CODE, then=then)
    assert answer.headers["location"] == "/dashboard"


async def test_wrong_code_is_reported_and_does_not_sign_in(halfway: Browser) -> None:
    page = await halfway.submit(await halfway.get("/login/code"), "/login/code", code="000000")
    assert page.status_code == 403
    assert "The code is wrong, or was used before." in page.text
    assert "000000" not in page.text
    assert (await halfway.get("/dashboard")).headers["location"] == "/login/code"


async def test_no_personal_page_opens_before_the_code(halfway: Browser) -> None:
    page = await halfway.get("/login/code")
    assert 'href="/api-keys"' not in page.text
    for path in ("/dashboard", "/settings", "/settings/security", "/organisations", "/invitation"):
        answer = await halfway.get(path)
        assert (answer.status_code, answer.headers["location"]) == (303, "/login/code")


async def test_another_user_can_sign_in_instead(halfway: Browser, mesh: FakeMesh) -> None:
    answer = await halfway.submit(await halfway.get("/login/code"), "/logout")
    assert answer.status_code == 303
    assert mesh.sessions == {}
    assert (await halfway.get("/login")).status_code == 200


async def test_completed_login_is_redirected(browser: Browser, mesh: FakeMesh) -> None:
    mesh.add_account("alice", "correct horse")
    await browser.sign_in("alice", "correct horse")
    for path in ("/login/code", "/login/second-factor", "/login"):
        answer = await browser.get(path)
        assert (answer.status_code, answer.headers["location"]) == (303, "/dashboard")
    assert mesh.seeds_begun == 0


async def test_visitor_signs_in_first(browser: Browser) -> None:
    for path in ("/login/code", "/login/second-factor"):
        assert (await browser.get(path)).headers["location"].startswith("/login")


async def test_cross_site_code_is_refused(halfway: Browser, mesh: FakeMesh) -> None:
    page = await halfway.get("/login/code")
    assert (await halfway.submit(page, "/login/code", {"Sec-Fetch-Site": "cross-site"}, code=CODE)).status_code == 403
    assert (await halfway.submit(page, "/login/code", code=CODE, token="")).status_code == 403
    assert "auth.confirmLogin" not in mesh.called_methods()


async def test_unavailable_auth_is_reported_and_the_code_can_be_sent_again(halfway: Browser, mesh: FakeMesh) -> None:
    page = await halfway.get("/login/code")
    mesh.broken["auth.confirmLogin"] = errors.Unavailable("Valkey does not answer")
    assert (await halfway.submit(page, "/login/code", code=CODE)).status_code == 503
    mesh.broken.clear()
    assert (await halfway.submit(page, "/login/code", code=CODE)).status_code == 303


# --- setting it up ---------------------------------------------------------------------------------------------------


async def test_administrator_sets_up_the_second_factor_and_sees_recovery_codes_once(new_admin: Browser, mesh: FakeMesh) -> None:
    page = await new_admin.get("/login/second-factor?then=/api-keys")
    assert 'class="qr"' in page.text
    assert "JBSW Y3DP EHPK" in page.text
    assert page.headers["cache-control"] == "no-store"
    codes = await new_admin.submit(page, "/login/second-factor", code=CODE)
    assert codes.status_code == 200
    assert all(code in codes.text for code in RECOVERY_CODES)
    assert 'href="/api-keys">I’ve saved my codes' in codes.text
    assert mesh.with_factor == {"alice"}
    again = await new_admin.get("/login/second-factor")
    assert again.headers["location"] == "/dashboard"
    assert (await new_admin.get("/dashboard")).status_code == 200


async def test_mistyped_code_keeps_the_seed(new_admin: Browser, mesh: FakeMesh) -> None:
    page = await new_admin.get("/login/second-factor")
    wrong = await new_admin.submit(page, "/login/second-factor", code="000000")
    assert wrong.status_code == 400
    assert "It is does not match this seed" in wrong.text or "does not match this seed" in wrong.text
    assert forms_of(wrong)["/login/second-factor"]["uri"] == forms_of(page)["/login/second-factor"]["uri"]
    assert mesh.seeds_begun == 1
    assert (await new_admin.submit(wrong, "/login/second-factor", code=CODE)).status_code == 200


@pytest.mark.parametrize(
    "uri", ["", "javascript:alert(1)", "otpauth://totp/x?secret=short", f"https://evil.example/?secret={SEED}", "otpauth://totp/[?secret=A"]
)
async def test_invalid_seed_is_not_drawn(new_admin: Browser, uri: str) -> None:
    page = await new_admin.get("/login/second-factor")
    wrong = await new_admin.submit(page, "/login/second-factor", code="000000", uri=uri)
    assert wrong.status_code == 400
    assert "The form has no valid seed" in wrong.text
    assert "evil" not in wrong.text


async def test_expired_login_starts_over(new_admin: Browser, mesh: FakeMesh) -> None:
    mesh.is_stale = True
    answer = await new_admin.get("/login/second-factor")
    assert answer.headers["location"] == "/login?done=late"
    assert mesh.sessions == {}
    assert "The sign-in timed out" in (await new_admin.get("/login?done=late")).text


async def test_user_with_a_second_factor_is_not_asked_to_set_it_up(halfway: Browser, mesh: FakeMesh) -> None:
    answer = await halfway.get("/login/second-factor")
    assert answer.headers["location"] == "/login/code"
    assert mesh.seeds_begun == 0
    assert mesh.accounts["alice"].user.role is UserRole.USER
