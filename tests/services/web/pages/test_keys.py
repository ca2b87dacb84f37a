import re
from datetime import timedelta
from uuid import UUID, uuid4

import msgspec
import pytest

from shared import errors
from shared.api import auth
from shared.types import ModelName, UserRole
from tests.services.web.browser import CONFIRM, Browser, forms_of, shown_key
from tests.services.web.fake_mesh import NOW, FakeMesh


async def test_new_key_is_shown_once(alice: Browser) -> None:
    limits = {"requests_per_hour": "20", "requests_per_minute": "3", "tokens_per_minute": "4000", "concurrency": "2", "budget": "1234.5"}
    limits["budget_every"] = "month"
    page = await alice.submit(await alice.get("/api-keys"), "/api-keys", name="laptop", **limits)
    assert page.status_code == 201
    assert page.headers["cache-control"] == "no-store"
    key = shown_key(page)
    assert key is not None
    assert "location" not in page.headers
    listed = await alice.get("/api-keys")
    assert key not in listed.text
    assert "laptop" in listed.text
    assert ">20/h, 3/min, 4,000 tokens/min, 2 concurrent, 1,234.5 credits every month<" in listed.text
    assert "<details open>" not in listed.text


@pytest.mark.parametrize(
    ("name", "limit", "message"),
    [
        pytest.param("phone", "many", "must be a whole number", id="a limit that is no number"),
        pytest.param(" ", "5", "a key needs a name", id="no name"),
    ],
)
async def test_refused_key_keeps_the_input(alice: Browser, mesh: FakeMesh, name: str, limit: str, message: str) -> None:
    page = await alice.submit(await alice.get("/api-keys"), "/api-keys", name=name, requests_per_hour=limit)
    assert page.status_code == 400
    assert message.lower() in page.text.lower()
    fields = forms_of(page)["/api-keys"]
    assert (fields["name"], fields["requests_per_hour"]) == (name, limit)
    assert ("<details open>" in page.text) == bool(limit)
    assert mesh.keys == []


async def test_every_limit_of_a_refused_form_is_kept(alice: Browser, mesh: FakeMesh) -> None:
    typed = {"requests_per_hour": "20", "requests_per_minute": "3", "tokens_per_minute": "4000", "concurrency": "2", "budget": "2,5"}
    page = await alice.submit(await alice.get("/api-keys"), "/api-keys", name="laptop", budget_every="week", **typed)
    assert (page.status_code, mesh.keys) == (400, [])
    assert "Budget: &#39;2,5&#39; is not an amount" in page.text
    assert typed.items() <= forms_of(page)["/api-keys"].items()
    assert '<option value="week" selected>' in page.text


async def test_revoking_needs_confirmation(alice: Browser, mesh: FakeMesh) -> None:
    key = mesh.add_key(mesh.accounts["alice"].user, "laptop")
    path = f"/api-keys/{key.id}/revoke"
    assert f'href="{path}"' in (await alice.get("/api-keys")).text
    question = await alice.get(path)
    assert "Revoke “<bdi>laptop</bdi>”?" in question.text
    assert mesh.keys[0].is_active
    answer = await alice.submit(question, path)
    assert answer.status_code == 303
    assert not mesh.keys[0].is_active
    page = await alice.get(answer.headers["location"])
    assert "Key revoked." in page.text
    assert f'href="{path}"' not in page.text
    assert (await alice.get(path)).status_code == 404


async def test_key_of_another_user_can_be_neither_seen_nor_revoked(alice: Browser, mesh: FakeMesh) -> None:
    key = mesh.add_key(mesh.add_account("bob", "correct horse"), "bobs key")
    path = f"/api-keys/{key.id}/revoke"
    assert "bobs key" not in (await alice.get("/api-keys")).text
    assert (await alice.get(path)).status_code == 404
    token = forms_of(await alice.get("/api-keys"))["/api-keys"]["token"]
    answer = await alice.client.post(path, data={"token": token}, headers={"Sec-Fetch-Site": "same-origin"})
    assert answer.status_code == 404
    assert mesh.keys[0].is_active


@pytest.mark.parametrize("path", ["/api-keys", f"/api-keys/{UUID(int=1)}/revoke"])
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
    mesh.calls.clear()
    answer = await alice.client.post(path, data=fields, headers=headers)
    assert answer.status_code == 403
    assert set(mesh.called_methods()) <= {"auth.resumeSession"}


async def test_html_and_sql_in_a_key_name_are_escaped(alice: Browser) -> None:
    name = "'; DROP TABLE api_keys; --<b onclick=x>"
    page = await alice.submit(await alice.get("/api-keys"), "/api-keys", name=name)
    assert page.status_code == 201
    assert "<b onclick" not in page.text
    assert "&lt;b onclick=x&gt;" in page.text
    assert "DROP TABLE api_keys" in page.text


async def test_outage_of_auth_keeps_the_user_signed_in(alice: Browser, mesh: FakeMesh) -> None:
    mesh.broken["auth.generateApiKey"] = errors.Unavailable("PostgreSQL does not answer")
    page = await alice.submit(await alice.get("/api-keys"), "/api-keys", name="laptop")
    assert page.status_code == 503
    assert "set-cookie" not in page.headers or "aimesh_session" not in page.headers["set-cookie"]
    mesh.broken.clear()
    assert (await alice.get("/api-keys")).status_code == 200


async def test_new_key_comes_with_usage_examples(alice: Browser, mesh: FakeMesh) -> None:
    page = await alice.submit(await alice.get("/api-keys"), "/api-keys", name="laptop")
    for sample in (
        "curl http://localhost:3000/v1/chat/completions",
        "from openai import OpenAI",
        "AIInferenceClient",
        "aicli infer -m smollm2",
        "codex -c model_provider=aimesh -c model=smollm2",
    ):
        assert sample in page.text
    assert 'data-copy="#secret"' in page.text
    # The examples read the key from a variable: it is on the page only once.
    key = shown_key(page)
    assert key is not None
    assert page.text.count(key) == 1


async def test_permissions_and_lifetime_reach_auth_and_the_list(alice: Browser, mesh: FakeMesh) -> None:
    form = {"use": "run", "models": "smollm2", "networks": "192.0.2.0/24", "days": "7"}
    await alice.submit(await alice.get("/api-keys"), "/api-keys", name="ci", **form)
    call = next(call.request for call in mesh.calls if isinstance(call.request, auth.GenerateApiKey))
    bounds = auth.KeyBounds(("inference:execute",), (ModelName("smollm2"),), ("192.0.2.0/24",))
    assert call == auth.GenerateApiKey("ci", bounds=bounds, days=7)
    page = await alice.get("/api-keys")
    for words in ("Run models", "only smollm2", "from 192.0.2.0/24", "27 Nov 2026", 'data-tone="warn"'):
        assert words in page.text


async def test_key_for_tests_is_marked(alice: Browser, mesh: FakeMesh) -> None:
    page = await alice.submit(await alice.get("/api-keys"), "/api-keys", name="ci", use="test")
    assert (shown_key(page) or "").startswith("aip_test_")
    assert "<bdi>Test key</bdi>, <bdi>run models</bdi>" in page.text


async def test_only_administrators_are_offered_admin_keys(alice: Browser, mesh: FakeMesh) -> None:
    assert 'value="adm"' not in (await alice.get("/api-keys")).text
    account = mesh.accounts["alice"]
    mesh.sessions = {token: msgspec.structs.replace(account.user, role=UserRole.ADMIN) for token in mesh.sessions}
    assert 'value="adm"' in (await alice.get("/api-keys")).text


async def test_chosen_options_stay_open_after_a_refusal(alice: Browser) -> None:
    page = await alice.submit(await alice.get("/api-keys"), "/api-keys", name=" ", use="run")
    assert page.status_code == 400
    assert '<option value="run" selected>' in page.text
    assert "<details open>" in page.text


async def test_keys_of_an_organization_are_labeled(alice: Browser, mesh: FakeMesh) -> None:
    team = mesh.add_team("Acme", mesh.accounts["alice"].user)
    mesh.acting = dict.fromkeys(mesh.sessions, team)
    page = await alice.get("/api-keys")
    assert ">Acme</bdi>" in page.text
    assert "which pays for their usage" in page.text


async def test_rename_a_key(alice: Browser, mesh: FakeMesh) -> None:
    key = mesh.add_key(mesh.accounts["alice"].user, "laptop")
    answer = await alice.submit(await alice.get(f"/api-keys/{key.id}"), f"/api-keys/{key.id}/rename", name="desk")
    assert answer.status_code == 303
    page = await alice.get(answer.headers["location"])
    assert "Key renamed." in page.text
    assert mesh.keys[0].name == "desk"


async def test_refused_name_stays_in_its_field(alice: Browser, mesh: FakeMesh) -> None:
    key = mesh.add_key(mesh.accounts["alice"].user, "laptop")
    page = await alice.submit(await alice.get(f"/api-keys/{key.id}"), f"/api-keys/{key.id}/rename", name="  ")
    assert page.status_code == 400
    assert "A key needs a name." in page.text
    assert forms_of(page)[f"/api-keys/{key.id}/rename"]["name"] == "  "
    assert mesh.keys[0].name == "laptop"


async def test_rotated_secret_is_shown_once_and_the_old_one_expires_as_chosen(alice: Browser, mesh: FakeMesh) -> None:
    key = mesh.add_key(mesh.accounts["alice"].user, "laptop")
    path = f"/api-keys/{key.id}"
    page = await alice.submit(await alice.get(path), f"{path}/rotate", overlap="3600")
    assert page.status_code == 201
    secret = shown_key(page)
    assert secret is not None
    assert "The old one keeps working for 1 hour." in page.text
    call = next(call.request for call in mesh.calls if isinstance(call.request, auth.RotateApiKey))
    assert call == auth.RotateApiKey(str(key.id), 3600)
    assert secret not in (await alice.get(path)).text


@pytest.mark.parametrize("overlap", ["1", "-3600", "x", "9999999"])
async def test_unknown_overlap_is_refused(alice: Browser, mesh: FakeMesh, overlap: str) -> None:
    key = mesh.add_key(mesh.accounts["alice"].user, "laptop")
    path = f"/api-keys/{key.id}"
    page = await alice.submit(await alice.get(path), f"{path}/rotate", overlap=overlap)
    assert page.status_code == 400
    assert shown_key(page) is None
    assert "auth.rotateApiKey" not in mesh.called_methods()


async def test_rotation_needs_a_recent_login(alice: Browser, mesh: FakeMesh) -> None:
    key = mesh.add_key(mesh.accounts["alice"].user, "laptop")
    path = f"/api-keys/{key.id}"
    page = await alice.get(path)
    mesh.is_stale = True
    confirm_page = await alice.submit(page, f"{path}/rotate", overlap="0")
    assert CONFIRM in confirm_page.text
    done = await alice.submit(confirm_page, f"{path}/rotate", confirm_password="correct horse")
    assert shown_key(done)
    assert "The old one is revoked." in done.text


@pytest.mark.parametrize("path", ["", "/revoke"])
async def test_foreign_or_deleted_key_has_no_page(alice: Browser, mesh: FakeMesh, path: str) -> None:
    key = mesh.add_key(mesh.add_account("bob", "correct horse"), "bobs key")
    assert (await alice.get(f"/api-keys/{key.id}{path}")).status_code == 404
    assert (await alice.get(f"/api-keys/{uuid4()}{path}")).status_code == 404


async def test_expired_key_says_so_and_can_be_revoked(alice: Browser, mesh: FakeMesh) -> None:
    key = mesh.add_key(mesh.accounts["alice"].user, "laptop")
    mesh.keys[0] = msgspec.structs.replace(key, expires_at=NOW - timedelta(days=1))
    page = await alice.get("/api-keys")
    assert '<span class="state" data-state="bad">Expired</span>' in page.text
    assert f'href="/api-keys/{key.id}/revoke"' in page.text


async def test_examples_name_no_model_without_the_gateway(alice: Browser, mesh: FakeMesh) -> None:
    mesh.broken["gateway"] = errors.NotReachable("no node of that role is alive")
    page = await alice.submit(await alice.get("/api-keys"), "/api-keys", name="laptop")
    assert page.status_code == 201
    assert "Replace MODEL with a model’s name." in page.text


async def test_revoking_a_key_offers_the_keys_it_created(alice: Browser, mesh: FakeMesh) -> None:
    await alice.submit(await alice.get("/api-keys"), "/api-keys", name="leaked")
    leaked = mesh.keys[-1]
    assert "Also revoke the keys it created" not in (await alice.get(f"/api-keys/{leaked.id}/revoke")).text
    for name, maker in (("child", leaked.id), ("grandchild", None)):
        await alice.submit(await alice.get("/api-keys"), "/api-keys", name=name)
        mesh.keys[-1] = msgspec.structs.replace(mesh.keys[-1], made_by=maker or mesh.keys[-2].id)
    page = await alice.get(f"/api-keys/{leaked.id}/revoke")
    assert "Also revoke the keys it created: <bdi>grandchild</bdi>, <bdi>child</bdi>" in page.text
    await alice.submit(page, f"/api-keys/{leaked.id}/revoke", with_made="yes")
    call = next(call.request for call in mesh.calls if isinstance(call.request, auth.RevokeApiKey))
    assert call == auth.RevokeApiKey(str(leaked.id), with_made=True)


async def test_active_keys_come_first_newest_first(alice: Browser, mesh: FakeMesh) -> None:
    for name, days, is_active in (("old", 9, True), ("gone", 1, False), ("new", 2, True)):
        key = mesh.add_key(mesh.accounts["alice"].user, name)
        mesh.keys[-1] = msgspec.structs.replace(key, created_at=NOW - timedelta(days=days), is_active=is_active)
    assert re.findall('scope="row"><bdi>([a-z]+)<', (await alice.get("/api-keys")).text) == ["new", "old", "gone"]
