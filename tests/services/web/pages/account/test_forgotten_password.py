import pytest

from shared import errors
from tests.services.web.browser import Browser, forms_of
from tests.services.web.fake_mesh import FakeMesh

NEW = "a longer new password"


async def test_response_does_not_reveal_whether_the_account_exists(browser: Browser, mesh: FakeMesh) -> None:
    mesh.add_account("alice", "correct horse")
    answers = [await browser.submit(await browser.get("/forgot"), "/forgot", name=name) for name in ("alice", "nobody")]
    assert {(each.status_code, each.headers["location"]) for each in answers} == {(303, "/forgot?done=sent")}
    assert mesh.mails == ["alice", "nobody"]
    page = await browser.get("/forgot?done=sent")
    assert "If the account exists" in page.text
    assert "alice" not in page.text


@pytest.mark.parametrize("typed", ["from the mail", "of the address"])
async def test_emailed_code_sets_a_new_password_once(browser: Browser, mesh: FakeMesh, typed: str) -> None:
    mesh.add_account("alice", "correct horse")
    mesh.reset_codes["mailed-code"] = "alice"
    if typed == "of the address":
        page = await browser.get("/reset?token=mailed-code")
        answer = await browser.submit(page, "/reset", new_password=NEW, repeated=NEW)
    else:
        page = await browser.get("/reset")
        answer = await browser.submit(page, "/reset", code=" mailed-code\t", new_password=NEW, repeated=NEW)
    assert (answer.status_code, answer.headers["location"]) == (303, "/login?done=reset")
    assert (await browser.sign_in("alice", NEW)).status_code == 303
    again = await browser.submit(await browser.get("/reset"), "/reset", code="mailed-code", new_password=NEW, repeated=NEW)
    assert again.status_code == 401
    assert "Request another one" in again.text


@pytest.mark.parametrize(
    ("new", "repeated", "message"),
    [
        pytest.param("zq7!x", "zq7!x", "shorter than 8", id="too short"),
        pytest.param(NEW, NEW + "x", "The passwords do not match", id="mistyped"),
    ],
)
async def test_refused_password_sends_no_second_mail(browser: Browser, mesh: FakeMesh, new: str, repeated: str, message: str) -> None:
    mesh.reset_codes["mailed-code"] = "alice"
    page = await browser.submit(await browser.get("/reset?token=mailed-code"), "/reset", new_password=new, repeated=repeated)
    assert page.status_code == 400
    assert message in page.text
    assert forms_of(page)["/reset"]["code"] == "mailed-code"
    assert new not in page.text
    assert "mailed-code" in mesh.reset_codes


async def test_code_is_escaped(browser: Browser) -> None:
    page = await browser.client.get("/reset", params={"token": '"><script>alert(1)</script>'})
    assert "<script>alert" not in page.text


async def test_unavailable_auth_is_reported(browser: Browser, mesh: FakeMesh) -> None:
    forgot, reset = await browser.get("/forgot"), await browser.get("/reset?token=x")
    mesh.broken["auth"] = errors.NotReachable("no node of that role is alive")
    assert (await browser.submit(forgot, "/forgot", name="alice")).status_code == 503
    assert (await browser.submit(reset, "/reset", new_password=NEW, repeated=NEW)).status_code == 503


async def test_rate_limit_is_shown_beside_the_form(browser: Browser, mesh: FakeMesh) -> None:
    page = await browser.get("/forgot")
    mesh.broken["auth.requestPasswordReset"] = errors.Limited("too many wishes from here", hint="try again in an hour")
    refused = await browser.submit(page, "/forgot", name="alice")
    assert refused.status_code == 429
    assert forms_of(refused)["/forgot"]["name"] == "alice"


@pytest.mark.parametrize(
    ("path", "values"), [("/forgot", {"name": "alice"}), ("/reset", {"code": "mailed-code", "new_password": NEW, "repeated": NEW})]
)
async def test_cross_site_forms_are_refused(browser: Browser, mesh: FakeMesh, path: str, values: dict[str, str]) -> None:
    page = await browser.get(path)
    assert (await browser.submit(page, path, {"Sec-Fetch-Site": "cross-site"}, **values)).status_code == 403
    assert (await browser.submit(page, path, **values, token="")).status_code == 403
    assert (mesh.mails, set(mesh.called_methods()) - {"auth.getSignInOptions"}) == ([], set())
