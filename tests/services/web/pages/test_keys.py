from uuid import uuid4

import pytest

from shared import errors
from tests.services.web.browser import Browser, forms_of, shown_key
from tests.services.web.fake_mesh import FakeMesh


@pytest.fixture
async def alice(mesh: FakeMesh, browser: Browser) -> Browser:
    mesh.add_account("alice", "correct horse")
    await browser.sign_in("alice", "correct horse")
    return browser


async def test_a_new_key_is_shown_in_the_answer_and_never_again(alice: Browser) -> None:
    limits = {"requests_per_hour": "20", "requests_per_minute": "3", "tokens_per_minute": "4000", "concurrency": "2", "budget": "1234.5"}
    page = await alice.submit(await alice.get("/api-keys"), "/api-keys", name="laptop", **limits)
    assert page.status_code == 201
    assert page.headers["cache-control"] == "no-store"
    key = shown_key(page)
    assert key is not None
    assert "location" not in page.headers
    listed = await alice.get("/api-keys")
    assert key not in listed.text
    assert "laptop" in listed.text
    assert ">20 / h, 3 / min, 4,000 tokens / min, 2 at once, 1,234.5 credits<" in listed.text
    assert "<details open>" not in listed.text


@pytest.mark.parametrize(
    ("name", "limit", "said"),
    [
        pytest.param("laptop", "", "named &#39;laptop&#39;", id="a name that is there"),
        pytest.param("phone", "many", "not a whole number", id="a limit that is no number"),
        pytest.param(" ", "5", "a key needs a name", id="no name"),
    ],
)
async def test_a_refused_key_keeps_what_was_typed(alice: Browser, mesh: FakeMesh, name: str, limit: str, said: str) -> None:
    mesh.add_key(mesh.accounts["alice"].user, "laptop")
    page = await alice.submit(await alice.get("/api-keys"), "/api-keys", name=name, requests_per_hour=limit)
    assert page.status_code in (400, 409)
    assert said.lower() in page.text.lower()
    fields = forms_of(page)["/api-keys"]
    assert (fields["name"], fields["requests_per_hour"]) == (name, limit)
    assert ("<details open>" in page.text) == bool(limit)
    assert len(mesh.keys) == 1


async def test_every_limit_of_a_refused_form_is_kept(alice: Browser, mesh: FakeMesh) -> None:
    typed = {"requests_per_hour": "20", "requests_per_minute": "3", "tokens_per_minute": "4000", "concurrency": "2", "budget": "2,5"}
    page = await alice.submit(await alice.get("/api-keys"), "/api-keys", name="laptop", **typed)
    assert (page.status_code, mesh.keys) == (400, [])
    assert "Budget: &#39;2,5&#39; is no amount" in page.text
    assert typed.items() <= forms_of(page)["/api-keys"].items()


async def test_revoking_asks_first_and_then_does_it(alice: Browser, mesh: FakeMesh) -> None:
    key = mesh.add_key(mesh.accounts["alice"].user, "laptop")
    path = f"/api-keys/{key.id}/revoke"
    assert f'href="{path}"' in (await alice.get("/api-keys")).text
    question = await alice.get(path)
    assert "Revoke “laptop”?" in question.text
    assert mesh.keys[0].is_active
    answer = await alice.submit(question, path)
    assert answer.status_code == 303
    assert not mesh.keys[0].is_active
    page = await alice.get(answer.headers["location"])
    assert "The key is revoked." in page.text
    assert f'href="{path}"' not in page.text
    assert (await alice.get(path)).status_code == 404


async def test_another_persons_key_can_neither_be_seen_nor_revoked(alice: Browser, mesh: FakeMesh) -> None:
    key = mesh.add_key(mesh.add_account("bob", "correct horse"), "bobs key")
    path = f"/api-keys/{key.id}/revoke"
    assert "bobs key" not in (await alice.get("/api-keys")).text
    assert (await alice.get(path)).status_code == 404
    token = forms_of(await alice.get("/api-keys"))["/api-keys"]["token"]
    answer = await alice.client.post(path, data={"token": token}, headers={"Sec-Fetch-Site": "same-origin"})
    assert answer.status_code == 404
    assert mesh.keys[0].is_active


@pytest.mark.parametrize("path", ["/api-keys", f"/api-keys/{uuid4()}/revoke"])
@pytest.mark.parametrize(
    ("token", "headers"),
    [
        pytest.param("", {"Sec-Fetch-Site": "same-origin"}, id="no token"),
        pytest.param("0" * 32 + "." + "0" * 64, {"Sec-Fetch-Site": "same-origin"}, id="a made-up token"),
        pytest.param(None, {"Sec-Fetch-Site": "cross-site"}, id="the right token from another site"),
    ],
)
async def test_forged_forms_change_nothing(alice: Browser, mesh: FakeMesh, path: str, token: str | None, headers: dict[str, str]) -> None:
    good = forms_of(await alice.get("/api-keys"))["/api-keys"]["token"]
    fields = {"token": good if token is None else token} | ({"name": "x"} if path == "/api-keys" else {})
    mesh.asked.clear()
    answer = await alice.client.post(path, data=fields, headers=headers)
    assert answer.status_code == 403
    assert set(mesh.names_asked()) <= {"auth.resumeSession"}


async def test_html_and_sql_in_a_key_name_are_only_text(alice: Browser) -> None:
    name = "'; DROP TABLE api_keys; --<b onclick=x>"
    page = await alice.submit(await alice.get("/api-keys"), "/api-keys", name=name)
    assert page.status_code == 201
    assert "<b onclick" not in page.text
    assert "&lt;b onclick=x&gt;" in page.text
    assert "DROP TABLE api_keys" in page.text


async def test_auth_going_away_keeps_the_person_signed_in(alice: Browser, mesh: FakeMesh) -> None:
    mesh.broken["auth.generateApiKey"] = errors.Unavailable("PostgreSQL does not answer")
    page = await alice.submit(await alice.get("/api-keys"), "/api-keys", name="laptop")
    assert page.status_code == 503
    assert "set-cookie" not in page.headers or "aimesh_session" not in page.headers["set-cookie"]
    mesh.broken.clear()
    assert (await alice.get("/api-keys")).status_code == 200
