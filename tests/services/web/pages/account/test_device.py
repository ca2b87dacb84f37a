"""The page that approves the login of a program: for people who are signed in, and for others on the way."""

import pytest

from shared import errors
from shared.api.auth import Step, WaitingDeviceLogin
from tests.services.web.browser import Browser
from tests.services.web.fake_accounts import CODE
from tests.services.web.fake_mesh import NOW, FakeMesh

LOGIN = WaitingDeviceLogin("BCDF-GHJK", "anna's <laptop>", "203.0.113.7", NOW)
PAGE = "/device/BCDF-GHJK"


@pytest.fixture(autouse=True)
def _waiting(mesh: FakeMesh) -> None:
    mesh.add_account("anna", "correct horse")
    mesh.devices = [LOGIN]


async def test_a_visitor_signs_in_first_and_comes_back(browser: Browser, mesh: FakeMesh) -> None:
    answer = await browser.get(PAGE)
    assert answer.headers["location"] == f"/login?then={PAGE}"
    answer = await browser.submit(await browser.get(answer.headers["location"]), "/login", name="anna", password="correct horse")
    assert answer.headers["location"] == PAGE
    assert mesh.decided == []


@pytest.mark.parametrize("step", [Step.ENTER_CODE, Step.SET_UP_MFA])
async def test_a_missing_step_leads_back_to_it(browser: Browser, mesh: FakeMesh, step: Step) -> None:
    """A browser with a login that lacks its second factor opens the link."""
    await browser.sign_in("anna", "correct horse")
    mesh.steps = dict.fromkeys(mesh.sessions, step)
    answer = await browser.get(PAGE)
    where = {Step.ENTER_CODE: "/login/code", Step.SET_UP_MFA: "/login/second-factor"}[step]
    assert answer.headers["location"] == f"{where}?then={PAGE}"
    answer = await browser.submit(await browser.get(answer.headers["location"]), where, code=CODE)
    assert answer.headers["location"] == PAGE if step is Step.ENTER_CODE else PAGE in answer.text


async def test_it_shows_who_asks_and_decides_nothing_before_a_button(browser: Browser, mesh: FakeMesh) -> None:
    await browser.sign_in("anna", "correct horse")
    page = await browser.get("/device/bcdfghjk")
    for shown in (
        "BCDF-GHJK",
        "anna&#39;s &lt;laptop&gt;",
        "203.0.113.7",
        "<bdi>anna</bdi>",
        "this browser’s address, <code>127.0.0.1</code>",
    ):
        assert shown in page.text
    assert mesh.decided == []
    answer = await browser.submit(page, PAGE, decision="approve")
    assert answer.headers["location"] == "/device?done=approved"
    assert "Approved. Your terminal signs in" in (await browser.get(answer.headers["location"])).text
    assert mesh.decided == [("BCDF-GHJK", "anna", True)]


async def test_the_same_address_is_no_warning(browser: Browser, mesh: FakeMesh) -> None:
    mesh.devices = [WaitingDeviceLogin("BCDF-GHJK", "laptop", "127.0.0.1", NOW)]
    await browser.sign_in("anna", "correct horse")
    assert "this browser’s address" not in (await browser.get(PAGE)).text


async def test_refusing_is_one_button(browser: Browser, mesh: FakeMesh) -> None:
    await browser.sign_in("anna", "correct horse")
    answer = await browser.submit(await browser.get(PAGE), PAGE, decision="refuse")
    assert answer.headers["location"] == "/device?done=refused"
    assert mesh.decided == [("BCDF-GHJK", "anna", False)]


async def test_an_old_sign_in_is_confirmed_first(browser: Browser, mesh: FakeMesh) -> None:
    await browser.sign_in("anna", "correct horse")
    mesh.is_stale = True
    confirm = await browser.submit(await browser.get(PAGE), PAGE, decision="approve")
    assert (confirm.status_code, mesh.decided) == (403, [])
    answer = await browser.submit(confirm, PAGE, confirm_password="correct horse")
    assert answer.headers["location"] == "/device?done=approved"
    assert mesh.decided == [("BCDF-GHJK", "anna", True)]


async def test_a_code_can_be_typed(browser: Browser) -> None:
    await browser.sign_in("anna", "correct horse")
    form = await browser.get("/device")
    answer = await browser.submit(form, "/device", code=" bcdf-ghjk \t")
    assert answer.headers["location"] == "/device/bcdfghjk"
    assert (await browser.submit(form, "/device", code="//evil.example")).headers["location"] == "/device/evilexample"
    assert (await browser.submit(form, "/device", code="–")).headers["location"] == "/device"


@pytest.mark.parametrize("verb", ["get", "post"])
async def test_an_unknown_code_is_an_error_beside_the_form(browser: Browser, mesh: FakeMesh, verb: str) -> None:
    await browser.sign_in("anna", "correct horse")
    page = await browser.get(PAGE)
    mesh.devices = []
    answer = await browser.get(PAGE) if verb == "get" else await browser.submit(page, PAGE, decision="approve")
    assert answer.status_code == 404
    assert "No login waits with this code" in answer.text
    assert 'action="/device"' in answer.text


async def test_too_many_codes_are_an_error_beside_the_form(browser: Browser, mesh: FakeMesh) -> None:
    await browser.sign_in("anna", "correct horse")
    mesh.broken["auth.findDeviceLogin"] = errors.Limited("too many codes of logins were entered", retry_after_seconds=60)
    answer = await browser.get(PAGE)
    assert (answer.status_code, "Too many codes" in answer.text) == (429, True)
