"""The header of Google's Identity-Aware Proxy: web passes it to auth only if auth accepts users from IAP."""

import msgspec
import pytest

from shared.api import accounts
from tests.services.web.browser import Browser
from tests.services.web.fake_accounts import GOOD_CODE
from tests.services.web.fake_mesh import FakeMesh

HEADER = "X-Goog-IAP-JWT-Assertion"


@pytest.fixture(autouse=True)
def iap(mesh: FakeMesh) -> None:
    mesh.options = msgspec.structs.replace(mesh.options, iap=True)
    mesh.add_account("alice", "correct horse")
    mesh.vouched_for = "alice"


async def test_login_page_signs_in_and_opens_the_page_that_was_asked_for(browser: Browser) -> None:
    answer = await browser.client.get("/login", params={"then": "/api-keys"}, headers={HEADER: GOOD_CODE})
    assert (answer.status_code, answer.headers["location"]) == (303, "/api-keys")
    assert "alice" in (await browser.get("/settings")).text


async def test_invalid_header_shows_the_reason_and_the_password_form(browser: Browser) -> None:
    answer = await browser.client.get("/login", headers={HEADER: "forged"})
    assert "header of IAP is invalid: it has expired" in answer.text
    assert 'name="password"' in answer.text
    assert "aimesh_session" not in answer.headers.get("set-cookie", "")


async def test_header_is_ignored_where_auth_does_not_take_users_from_iap(browser: Browser, mesh: FakeMesh) -> None:
    mesh.options = msgspec.structs.replace(mesh.options, iap=False)
    answer = await browser.client.get("/login", headers={HEADER: GOOD_CODE})
    assert answer.status_code == 200
    assert accounts.login_by_iap.name not in mesh.called_methods()


async def test_account_with_a_password_links_it_in_the_settings(browser: Browser, mesh: FakeMesh) -> None:
    await browser.sign_in("alice", "correct horse")
    browser.client.headers[HEADER] = GOOD_CODE
    page = await browser.get("/settings/security")
    assert "Link Google" in page.text
    done = await browser.submit(page, "/settings/security/providers/link")
    assert done.headers["location"] == "/settings/security?done=linked"
    assert [link.issuer for link in mesh.provider_links] == ["https://cloud.google.com/iap"]
