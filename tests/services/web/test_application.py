"""What users see when the requested page cannot be shown."""

import re

import pytest

from services.web import application
from tests.services.web.browser import SAME_ORIGIN, Browser, forms_of
from tests.services.web.fake_mesh import FakeMesh

#: The Accept header of browsers.
EYES = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}


@pytest.mark.parametrize(
    ("path", "above"),
    [
        ("/logout", "/"),
        ("/settings/security/second-factor/begin", "/settings/security"),
        ("/api-keys/6d1f0e8a-0000-4000-8000-00000000000f/rotate", "/api-keys/6d1f0e8a-0000-4000-8000-00000000000f"),
        ("/models/orders", "/models"),
    ],
)
async def test_form_url_opened_directly_redirects_to_its_page(alice: Browser, path: str, above: str) -> None:
    answer = await alice.client.get(path, headers=EYES)
    assert (answer.status_code, answer.headers["location"]) == (303, above)
    # A program gets an error message.
    assert (await alice.client.get(path)).status_code == 405


async def test_ended_session_is_reported_at_the_login(alice: Browser, mesh: FakeMesh) -> None:
    mesh.sessions.clear()
    answer = await alice.get("/api-keys")
    assert (answer.status_code, answer.headers["location"]) == (303, "/login?then=/api-keys&done=ended")
    page = await alice.get(answer.headers["location"])
    assert '<div class="notice warn" role="status"><p>Your session has expired. Sign in to continue.</p></div>' in page.text
    assert forms_of(page)["/login"]["then"] == "/api-keys"


async def test_form_sent_after_the_session_ended_is_reported_as_not_saved(alice: Browser, mesh: FakeMesh) -> None:
    page = await alice.get("/api-keys")
    mesh.sessions.clear()
    answer = await alice.submit(page, "/api-keys", name="laptop")
    assert (answer.status_code, answer.headers["location"]) == (303, "/login?done=undone")
    assert "nothing was changed" in (await alice.get(answer.headers["location"])).text


async def test_new_visitor_is_not_told_about_an_ended_session(browser: Browser) -> None:
    assert (await browser.get("/api-keys")).headers["location"] == "/login?then=/api-keys"


# --- a login page that was left open -------------------------------------------------------------------------------------


async def test_second_login_tab_is_accepted_after_the_first(browser: Browser, mesh: FakeMesh) -> None:
    mesh.add_account("alice", "correct horse")
    second = await browser.get("/login?then=/api-keys")
    await browser.sign_in("alice", "correct horse")
    answer = await browser.submit(second, "/login", name="alice", password="correct horse")
    assert (answer.status_code, answer.headers["location"]) == (303, "/api-keys")
    assert len(mesh.sessions) == 1


async def test_login_page_from_before_a_restart_of_the_browser_asks_again(browser: Browser, mesh: FakeMesh) -> None:
    mesh.add_account("alice", "correct horse")
    old = await browser.get("/login?then=/api-keys")
    browser.client.cookies.clear()
    page = await browser.submit(old, "/login", name="alice", password="correct horse")
    assert page.status_code == 403
    assert "This page was open for too long." in page.text
    assert mesh.sessions == {}
    assert re.search(r"<h1>Sign in</h1>", page.text)
    again = await browser.submit(page, "/login", password="correct horse")
    assert (again.status_code, again.headers["location"]) == (303, "/api-keys")


async def test_cross_site_login_is_refused_even_with_a_session(alice: Browser) -> None:
    fields = {"name": "alice", "password": "correct horse", "token": "x"}
    answer = await alice.client.post("/login", data=fields, headers={"Sec-Fetch-Site": "cross-site"})
    assert answer.status_code == 403
    assert "another site" in answer.text
    assert (await alice.client.post("/login", data=fields, headers=SAME_ORIGIN)).status_code == 303


ID = "6d1f0e8a-0000-4000-8000-00000000000f"
READABLE = (
    "/",
    "/organisations",
    "/organisations/{team:uuid}",
    "/settings/security",
    "/admin/nodes",
    "/admin/nodes/{node_id:str}/approve",
    "/a.b",
)


@pytest.mark.parametrize(
    ("path", "above"),
    [
        ("/logout", "/"),
        ("/", "/"),
        ("/organisations/switch", "/organisations"),
        (f"/organisations/{ID}/rename", f"/organisations/{ID}"),
        ("/settings/security/second-factor/begin", "/settings/security"),
        ("/admin/nodes/UABC/approve/x", "/admin/nodes/UABC/approve"),
        ("/admin/nodes/UABC/approve", "/admin/nodes"),
        # A dot matches only a dot.
        ("/a.b/c", "/a.b"),
        ("/aXb/c", "/"),
        ("/somewhere/else", "/"),
    ],
)
def test_nearest_readable_page(path: str, above: str) -> None:
    assert application.find_readable_parent(path, READABLE) == above
