import httpx
import msgspec
import pytest

from services.web import request_context
from shared import errors
from shared.types import ModelName
from tests.services.web.browser import CONFIRM, Browser, forms_of
from tests.services.web.fake_mesh import FakeMesh

AWAY = errors.NotReachable("no node of that role is alive")
EVIL = "<script>alert(1)</script>"
UNVERIFIED = "Your email address isn’t verified"
TABS = ("/settings", "/settings/preferences", "/settings/security", "/settings/data")


async def save_preferences(browser: Browser, **values: str) -> httpx.Response:
    """Submit the form like a browser: without unchecked boxes, and with only the chosen theme."""
    fields = forms_of(await browser.get("/settings/preferences"))["/settings/preferences"]
    chosen = {"token": fields["token"], "theme": "system"} | values
    return await browser.client.post("/settings/preferences", data=chosen, headers={"Sec-Fetch-Site": "same-origin"})


@pytest.mark.parametrize("path", TABS)
async def test_each_tab_is_marked_and_links_to_the_others(alice: Browser, path: str) -> None:
    page = await alice.get(path)
    assert page.status_code == 200
    assert f'href="{path}" aria-current="page"' in page.text
    assert page.text.count("aria-current") == 1
    for other in TABS:
        assert f'href="{other}"' in page.text
    assert page.text.count("<h1") == 1


async def test_change_name_and_address(alice: Browser, mesh: FakeMesh) -> None:
    answer = await alice.submit(await alice.get("/settings"), "/settings", username=" alice2 ", email="alice2@example.com ")
    assert (answer.status_code, answer.headers["location"]) == (303, "/settings?done=saved")
    assert mesh.accounts["alice2"].user.email == "alice2@example.com"
    page = await alice.get("/settings?done=saved")
    assert "Changes saved." in page.text
    assert 'class="who"><bdi>alice2' in page.text


async def test_taken_name_keeps_the_input(alice: Browser, mesh: FakeMesh) -> None:
    mesh.add_account("taken", "x")
    page = await alice.submit(await alice.get("/settings"), "/settings", username="taken", email="new@example.com")
    assert page.status_code == 409
    assert '<p class="mistake" id="username-mistake">The username &#39;taken&#39; is taken.</p>' in page.text
    assert page.text.count('aria-invalid="true"') == 1
    fields = forms_of(page)["/settings"]
    assert (fields["username"], fields["email"]) == ("taken", "new@example.com")


async def test_new_address_needs_the_password(alice: Browser, mesh: FakeMesh) -> None:
    mesh.is_stale = True
    confirm_page = await alice.submit(await alice.get("/settings"), "/settings", username="alice", email="new@example.com")
    assert confirm_page.status_code == 403
    assert CONFIRM in confirm_page.text
    assert mesh.accounts["alice"].user.email == "alice@example.com"
    wrong = await alice.submit(confirm_page, "/settings", confirm_password="wrong horse")
    assert wrong.status_code == 403
    done = await alice.submit(wrong, "/settings", confirm_password="correct horse")
    assert done.status_code == 303
    assert mesh.accounts["alice"].user.email == "new@example.com"


@pytest.mark.parametrize(
    ("has", "asked_for"),
    [
        ({"password"}, {"confirm_password"}),
        ({"password", "provider"}, {"confirm_password", "link"}),
        ({"password", "factor", "provider"}, {"confirm_code"}),
        ({"factor"}, {"confirm_code"}),
        ({"provider"}, {"link"}),
    ],
)
async def test_confirmation_offers_what_the_user_has(alice: Browser, mesh: FakeMesh, has: set[str], asked_for: set[str]) -> None:
    mesh.is_stale = True
    mesh.options = msgspec.structs.replace(mesh.options, oidc_name="Corp" if "provider" in has else None)
    mesh.with_factor |= {"alice"} if "factor" in has else set()
    mesh.without_password |= set() if "password" in has else {"alice"}
    confirm_page = await alice.submit(await alice.get("/settings"), "/settings", username="alice", email="new@example.com")
    links = {"link"} if 'then=/settings/security">Corp</a>' in confirm_page.text else set()
    assert {name for name in forms_of(confirm_page)["/settings"] if name.startswith("confirm")} | links == asked_for


async def test_unknown_sign_in_options_offer_both_confirmations(alice: Browser, mesh: FakeMesh) -> None:
    page = await alice.get("/settings")
    mesh.is_stale = True
    mesh.broken["auth.getAccount"] = AWAY
    confirm_page = await alice.submit(page, "/settings", username="alice", email="new@example.com")
    assert {name for name in forms_of(confirm_page)["/settings"] if name.startswith("confirm")} == {"confirm_password", "confirm_code"}


async def test_hostile_names_are_escaped(alice: Browser, mesh: FakeMesh) -> None:
    mesh.add_account("taken", "x")
    page = await alice.submit(await alice.get("/settings"), "/settings", username="taken", email=f'"{EVIL}\u202e')
    assert EVIL not in page.text
    assert "&lt;script&gt;" in page.text


async def test_preferences_are_stored_and_the_theme_applies_immediately(alice: Browser, mesh: FakeMesh) -> None:
    answer = await save_preferences(alice, default_model="smollm2", theme="dark")
    assert answer.headers["location"] == "/settings/preferences?done=saved"
    assert (mesh.preferences.default_model, mesh.preferences.theme, mesh.preferences.notify_by_mail) == ("smollm2", "dark", False)
    page = await alice.get("/settings/preferences")
    assert '<html lang="en" data-theme="dark">' in page.text
    assert "<option selected>smollm2</option>" in page.text
    assert 'value="dark" checked' in page.text
    assert 'value="yes" checked' not in page.text


async def test_theme_does_not_wait_for_the_session_cache(
    alice: Browser, site: request_context.App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site.sessions, "_clock", lambda: 0.0)
    await alice.get("/settings")
    await save_preferences(alice, theme="dark")
    assert '<html lang="en" data-theme="dark">' in (await alice.get("/settings")).text


async def test_preferences_can_be_reset(alice: Browser, mesh: FakeMesh) -> None:
    await save_preferences(alice, default_model="smollm2", theme="dark")
    await save_preferences(alice, notify_by_mail="yes")
    assert (mesh.preferences.default_model, mesh.preferences.theme, mesh.preferences.notify_by_mail) == (None, "system", True)
    assert "data-theme" not in (await alice.get("/settings")).text.partition("<head>")[0]


async def test_chosen_model_stays_chosen_when_no_longer_served(alice: Browser, mesh: FakeMesh) -> None:
    await save_preferences(alice, default_model="of-yesterday")
    page = await alice.get("/settings/preferences")
    assert "<option selected>of-yesterday</option>" in page.text
    assert "<option>smollm2</option>" in page.text


async def test_unavailable_gateway_hides_the_model_choice_only(alice: Browser, mesh: FakeMesh) -> None:
    await save_preferences(alice, default_model="smollm2")
    mesh.broken["gateway"] = AWAY
    page = await alice.get("/settings/preferences")
    assert "isn’t responding" in page.text
    fields = forms_of(page)["/settings/preferences"]
    assert fields["default_model"] == "smollm2"
    await save_preferences(alice, default_model=fields["default_model"], theme="light")
    assert (mesh.preferences.default_model, mesh.preferences.theme) == (ModelName("smollm2"), "light")


async def test_invalid_theme_is_refused(alice: Browser, mesh: FakeMesh) -> None:
    page = await save_preferences(alice, theme=EVIL)
    assert page.status_code == 400
    assert EVIL not in page.text
    assert mesh.preferences.theme == "system"


async def test_an_unavailable_service_gives_503(alice: Browser, mesh: FakeMesh) -> None:
    mesh.broken |= {"auth.getAccount": AWAY}
    for path in TABS:
        assert (await alice.get(path)).status_code == 503


@pytest.mark.parametrize(
    ("path", "values"),
    [("/settings", {"username": "mallory", "email": "m@example.com"}), ("/settings/preferences", {"theme": "dark"})],
)
async def test_cross_site_forms_are_refused(alice: Browser, mesh: FakeMesh, path: str, values: dict[str, str]) -> None:
    page = await alice.get(path)
    assert (await alice.submit(page, path, {"Sec-Fetch-Site": "cross-site"}, **values)).status_code == 403
    assert (await alice.submit(page, path, **values, token="")).status_code == 403
    assert (await alice.submit(page, path, **values, admin="yes")).status_code == 400
    assert "mallory" not in mesh.accounts
    assert mesh.preferences.theme == "system"


@pytest.mark.parametrize(("has_free_tokens", "says"), [(True, "You can now use the tokens"), (False, "Another account with this address")])
async def test_an_emailed_code_verifies_the_address_without_a_session(
    browser: Browser, mesh: FakeMesh, has_free_tokens: bool, says: str
) -> None:
    mesh.verification_codes["mailed-code"] = has_free_tokens
    answer = await browser.submit(await browser.get("/verify"), "/verify", code=" mailed-code\t")
    assert answer.status_code == 303
    assert says in (await browser.get(answer.headers["location"])).text
    again = await browser.submit(await browser.get("/verify"), "/verify", code="mailed-code")
    assert again.status_code == 401
    assert "Request another one" in again.text
    assert forms_of(again)["/verify"]["code"] == "mailed-code"


async def test_a_user_who_is_signed_in_verifies_the_address(alice: Browser, mesh: FakeMesh) -> None:
    mesh.verification_codes["mailed-code"] = True
    answer = await alice.submit(await alice.get("/verify"), "/verify", code="mailed-code")
    assert answer.headers["location"] == "/verify?done=verified"
    assert (await alice.get("/dashboard")).status_code == 200


async def test_the_settings_send_the_mail_again(alice: Browser, mesh: FakeMesh) -> None:
    assert UNVERIFIED not in (await alice.get("/settings")).text
    mesh.unverified.add("alice")
    page = await alice.get("/settings")
    assert UNVERIFIED in page.text
    answer = await alice.submit(page, "/settings/verification")
    assert (answer.headers["location"], mesh.mails) == ("/settings?done=sent", ["alice@example.com"])
    assert "Email sent." in (await alice.get("/settings?done=sent")).text
    mesh.broken["auth.sendVerification"] = errors.Limited("too many emails were requested", hint="wait")
    refused = await alice.submit(page, "/settings/verification")
    assert refused.status_code == 429
    assert "Too many emails were requested" in refused.text
