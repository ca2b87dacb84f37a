import html
import re

import msgspec
import pytest

from services.web import paged_search
from shared import errors
from shared.api.auth import Budget, Every
from shared.api.service_settings import TierTerms
from shared.types import MicroCredits, Tier, UserRole
from tests.services.web.browser import CONFIRM, SAME_ORIGIN, Browser, forms_of
from tests.services.web.pages.admin.admin_mesh import AdminMesh

HOSTILE = "<script>alert(1)</script>"


def names(text: str) -> list[str]:
    return re.findall(r'<a href="/admin/users/[0-9a-f-]{36}"><bdi>([^<]+)</bdi></a>', text)


async def test_users_are_listed_with_role_tier_and_state(root: Browser, mesh: AdminMesh) -> None:
    mesh.add_person("dana", UserRole.DEVELOPER)
    text = (await root.get("/admin/users")).text
    assert names(text) == ["root", "dana"]
    for word in ("developer", "free", "Active", "dana@example.com", "2 users"):
        assert word in text


async def test_tiers_are_shown_without_their_version(root: Browser, mesh: AdminMesh) -> None:
    dana = mesh.add_person("dana", UserRole.DEVELOPER)
    mesh.accounts["dana"].user = msgspec.structs.replace(dana, tier="pro@3")
    for path in ("/admin/users", f"/admin/users/{dana.id}"):
        text = (await root.get(path)).text
        assert "pro@3" not in text.replace('value="pro@3" selected>pro (as now)<', "")
        assert "pro" in text


@pytest.mark.parametrize(
    ("search", "found"),
    [
        pytest.param("DAN", ["dana", "jordan"], id="a part of the name, in any case"),
        pytest.param("jordan@example", ["jordan"], id="an address"),
        pytest.param("%", [], id="no pattern"),
    ],
)
async def test_search_a_user(root: Browser, mesh: AdminMesh, search: str, found: list[str]) -> None:
    for name in ("dana", "jordan", "lee"):
        mesh.add_account(name, "x")
    page = await root.client.get("/admin/users", params={"search": search})
    assert names(page.text) == found
    assert ("No matching users." in page.text) == (not found)
    assert f'value="{search}"' in page.text


async def test_long_list_is_paged(root: Browser, mesh: AdminMesh) -> None:
    for number in range(paged_search.ROWS_OF_A_PAGE * 2):
        mesh.add_account(f"dana-{number}", "x")
    read, path = [], "/admin/users?search=dana"
    while path:
        text = (await root.get(path)).text
        read.append(names(text))
        assert "on this page" in text
        assert (">Newest</a>" in text) == (len(read) > 1)
        older = re.search(r'<a href="([^"]+)" rel="next">Older</a>', text)
        path = html.unescape(older[1]) if older else ""
    assert [len(page) for page in read] == [100, 100]
    assert len({name for page in read for name in page}) == 200


async def test_invalid_page_position_is_reported(root: Browser) -> None:
    page = await root.get("/admin/users?after=x")
    assert page.status_code == 400
    assert "go back to the first page" in page.text.lower()


async def test_user_page_has_credits_quota_and_usage(root: Browser, mesh: AdminMesh) -> None:
    dana = mesh.add_person("dana", UserRole.USER)
    text = (await root.get(f"/admin/users/{dana.id}")).text
    for word in (
        "dana@example.com",
        str(dana.id),
        "97,500; 2,500 of 100,000 used",
        "1,234",
        "5 failed",
        "2.5",
        "smollm2",
        "of 100 requests",
    ):
        assert word in text
    report = mesh.requests_of("gateway.getUsageReport")[0]
    assert (report.tenant_id, (report.until - report.since).days) == (dana.id, 30)  # type: ignore[attr-defined]


async def test_account_can_be_changed_without_the_gateway(root: Browser, mesh: AdminMesh) -> None:
    dana = mesh.add_person("dana", UserRole.USER)
    mesh.broken["gateway"] = errors.NotReachable("nobody there")
    page = await root.get(f"/admin/users/{dana.id}")
    assert page.status_code == 200
    assert "The gateway isn’t responding." in page.text
    done = await root.submit(page, f"/admin/users/{dana.id}/role", role="developer")
    assert done.status_code == 303
    assert mesh.accounts["dana"].user.role is UserRole.DEVELOPER


@pytest.mark.parametrize(
    ("what", "typed", "word", "message"),
    [
        pytest.param("role", {"role": "node-owner"}, "role", "Role changed.", id="role"),
        pytest.param("tier", {"tier": "pro"}, "tier", "Tier changed.", id="tier"),
        pytest.param("active", {}, "closed", "Account disabled.", id="close"),
        pytest.param("credits", {"amount": "25.5", "note": " gift "}, "credits", "Credits updated.", id="credits"),
    ],
)
async def test_change_is_applied_and_reported(
    root: Browser, mesh: AdminMesh, *, what: str, typed: dict[str, str], word: str, message: str
) -> None:
    dana = mesh.add_person("dana", UserRole.USER)
    path = f"/admin/users/{dana.id}"
    done = await root.submit(await root.get(path), f"{path}/{what}", **typed)
    assert (done.status_code, done.headers["location"]) == (303, f"{path}?done={word}")
    now = mesh.accounts["dana"].user
    assert (now.role, now.tier, now.is_active) == (
        UserRole.NODE_OWNER if what == "role" else UserRole.USER, Tier.PRO if what == "tier" else Tier.FREE, what != "active",
    )  # fmt: skip
    assert [(each.user, each.amount_micro, each.note) for each in mesh.moved.values()] == (
        [(str(dana.id), 25_500_000, "gift")] if what == "credits" else []
    )
    assert message in (await root.get(done.headers["location"])).text


async def test_disabled_account_can_be_enabled(root: Browser, mesh: AdminMesh) -> None:
    dana = mesh.add_person("dana", UserRole.USER)
    path = f"/admin/users/{dana.id}"
    await root.submit(await root.get(path), f"{path}/active")
    closed = await root.get(path)
    assert "Enable account" in closed.text
    done = await root.submit(closed, f"{path}/active")
    assert done.headers["location"] == f"{path}?done=opened"
    assert mesh.accounts["dana"].user.is_active


async def test_repeated_form_books_once(root: Browser, mesh: AdminMesh) -> None:
    dana = mesh.add_person("dana", UserRole.USER)
    path = f"/admin/users/{dana.id}"
    page = await root.get(path)
    for _ in range(2):
        await root.submit(page, f"{path}/credits", amount="5")
    assert len(mesh.requests_of("gateway.topUp")) == 2
    assert len(mesh.moved) == 1
    await root.submit(await root.get(path), f"{path}/credits", amount="5")
    assert len(mesh.moved) == 2


async def test_budget_is_set_shown_and_removed(root: Browser, mesh: AdminMesh) -> None:
    dana, acme = mesh.add_person("dana", UserRole.USER), mesh.add_organisation("Acme")
    paths = (f"/admin/users/{dana.id}", f"/admin/organisations/{acme.id}")
    for path, budget_of in zip(paths, (lambda: mesh.accounts["dana"].user.budget, lambda: mesh.organisations[0].budget), strict=True):
        done = await root.submit(await root.get(path), f"{path}/budget", budget=" 2.5 ", every="month")
        assert done.headers["location"] == f"{path}?done=budget"
        assert budget_of() == Budget(MicroCredits(2_500_000), Every.MONTH)
        page = await root.get(done.headers["location"])
        assert "Budget changed." in page.text
        assert forms_of(page)[f"{path}/budget"]["budget"] == "2.5"
        assert '<option value="month" selected>' in page.text
        wrong = await root.submit(page, f"{path}/budget", budget="much", every="")
        assert wrong.status_code == 400
        assert "&#39;much&#39; is not an amount" in wrong.text
        await root.submit(page, f"{path}/budget", budget="20", every="")
        assert budget_of() == Budget(MicroCredits(20_000_000))
        await root.submit(page, f"{path}/budget", budget="", every="month")
        assert budget_of() is None


@pytest.mark.parametrize(
    ("what", "typed", "message"),
    [
        pytest.param("role", {"role": "emperor"}, "Unknown role.", id="no role"),
        pytest.param("credits", {"amount": "many"}, "Credits: &#39;many&#39; is not an amount", id="no amount"),
        pytest.param("credits", {"amount": "0"}, "The amount is 0.", id="nothing"),
        pytest.param("credits", {"amount": "99999999"}, "That is too much.", id="the gateway refuses"),
        pytest.param("credits", {"amount": "1", "transfer": "x"}, "The form has no transfer ID.", id="no transfer"),
    ],
)
async def test_invalid_input_is_reported(root: Browser, mesh: AdminMesh, what: str, typed: dict[str, str], message: str) -> None:
    dana = mesh.add_person("dana", UserRole.USER)
    path = f"/admin/users/{dana.id}"
    form = await root.get(path)
    page = await root.submit(form, f"{path}/{what}", **typed)
    assert page.status_code == 400
    assert message in page.text
    assert (mesh.accounts["dana"].user, mesh.moved) == (dana, {})
    if what == "credits":
        # The form keeps its transfer ID, so that a retry is booked only once.
        kept = {name: value for name, value in (forms_of(form)[f"{path}/credits"] | typed).items() if name != "token"}
        assert forms_of(page)[f"{path}/credits"].items() >= kept.items()


async def test_tiers_are_the_plans_of_the_gateway_and_the_present_one(root: Browser, mesh: AdminMesh) -> None:
    dana = mesh.add_person("dana", UserRole.USER)
    path = f"/admin/users/{dana.id}"

    async def offered() -> list[str]:
        return re.findall(r'<option value="([a-z]+)"', (await root.get(path)).text.partition('id="tier"')[2].partition("</select>")[0])

    mesh.tiers = tuple(TierTerms(name) for name in ("free", "pro", "enterprise", "gold"))
    done = await root.submit(await root.get(path), f"{path}/tier", tier="gold")
    assert (done.status_code, mesh.accounts["dana"].user.tier) == (303, "gold")
    assert await offered() == ["free", "pro", "enterprise", "gold"]
    mesh.broken["gateway.listTiers"] = errors.NotReachable("nobody there")
    assert await offered() == ["free", "pro", "enterprise", "gold"], "the built-in ones, and the user's own"
    unknown = await root.submit(await root.get(path), f"{path}/tier", tier="silver")
    assert unknown.status_code == 404
    assert "There is no plan &#39;silver&#39;." in unknown.text


async def test_own_account_offers_no_forbidden_actions(root: Browser, mesh: AdminMesh) -> None:
    path = f"/admin/users/{mesh.accounts['root'].user.id}"
    page = await root.get(path)
    assert "You can’t change your own role" in page.text
    assert set(forms_of(page)) == {"/logout", f"{path}/tier", f"{path}/credits", f"{path}/budget"}
    # Sending the missing form anyway is refused.
    token = forms_of(page)["/logout"]["token"]
    closed = await root.client.post(f"{path}/active", data={"active": "no", "token": token}, headers=SAME_ORIGIN)
    assert closed.status_code == 400
    assert "You cannot close your own account." in closed.text


async def test_confirmation_needs_the_password_and_resumes_the_form(root: Browser, mesh: AdminMesh) -> None:
    dana = mesh.add_person("dana", UserRole.USER)
    path = f"/admin/users/{dana.id}"
    mesh.is_stale = True
    confirm_page = await root.submit(await root.get(path), f"{path}/credits", amount="5", note="x")
    assert confirm_page.status_code == 403
    assert CONFIRM in confirm_page.text
    assert mesh.moved == {}
    done = await root.submit(confirm_page, f"{path}/credits", confirm_password="correct horse")
    assert done.status_code == 303
    assert [each.amount_micro for each in mesh.moved.values()] == [5_000_000]


@pytest.mark.parametrize("what", ["role", "tier", "active", "credits", "budget"])
async def test_cross_site_form_changes_nothing(root: Browser, mesh: AdminMesh, what: str) -> None:
    dana = mesh.add_person("dana", UserRole.USER)
    path = f"/admin/users/{dana.id}"
    page = await root.get(path)
    typed = {"role": "admin", "tier": "pro", "active": "no", "credits": "5", "budget": "5"}
    fields = {"amount" if what == "credits" else what: typed[what]}
    assert (await root.submit(page, f"{path}/{what}", {"Sec-Fetch-Site": "cross-site"}, **fields)).status_code == 403
    assert (await root.submit(page, f"{path}/{what}", token="forged", **fields)).status_code == 403
    assert (mesh.accounts["dana"].user, mesh.moved) == (dana, {})


async def test_only_administrators_may_open_it(browser: Browser, mesh: AdminMesh) -> None:
    bob = mesh.add_person("bob", UserRole.DEVELOPER)
    await browser.sign_in("bob", "correct horse")
    token = forms_of(await browser.get("/dashboard"))["/logout"]["token"]
    for what, typed in (("role", "admin"), ("tier", "pro"), ("active", "yes")):
        answer = await browser.client.post(f"/admin/users/{bob.id}/{what}", data={what: typed, "token": token})
        assert answer.status_code == 403
    assert mesh.accounts["bob"].user == bob


async def test_unknown_user_has_a_not_found_page(root: Browser) -> None:
    page = await root.get("/admin/users/00000000-0000-0000-0000-000000000001")
    assert page.status_code == 404
    assert (await root.get("/admin/users/somebody")).status_code == 404


async def test_hostile_names_are_escaped(root: Browser, mesh: AdminMesh) -> None:
    odd = mesh.add_person(HOSTILE, UserRole.USER)
    mesh.add_person("x" * 200, UserRole.USER)
    for path in ("/admin/users", f"/admin/users/{odd.id}", "/admin/users?search=%3Cscript%3Ealert(1)"):
        text = (await root.get(path)).text
        assert "<script>alert" not in text
        assert "&lt;script&gt;alert(1)" in text


async def test_unavailable_auth_has_an_error_page(root: Browser, mesh: AdminMesh) -> None:
    mesh.broken["auth.listUsers"] = errors.NotReachable("no auth is reachable", hint="start it")
    assert (await root.get("/admin/users")).status_code == 503


async def test_lost_second_factor_can_be_removed(root: Browser, mesh: AdminMesh) -> None:
    dana = mesh.add_person("dana", UserRole.USER)
    mesh.with_factor.add("dana")
    path = f"/admin/users/{dana.id}"
    answer = await root.submit(await root.get(path), f"{path}/remove-factor")
    assert answer.status_code == 303
    assert mesh.with_factor == set()
    assert "Second factor removed" in (await root.get(answer.headers["location"])).text
    # A second attempt reports that there is no factor.
    again = await root.submit(await root.get(path), f"{path}/remove-factor")
    assert again.status_code == 404
    assert "Dana has no second factor." in again.text


async def test_removing_a_factor_needs_confirmation(root: Browser, mesh: AdminMesh) -> None:
    dana = mesh.add_person("dana", UserRole.USER)
    mesh.with_factor.add("dana")
    path = f"/admin/users/{dana.id}"
    mesh.is_stale = True
    confirm_page = await root.submit(await root.get(path), f"{path}/remove-factor")
    assert CONFIRM in confirm_page.text
    assert mesh.with_factor == {"dana"}
    await root.submit(confirm_page, f"{path}/remove-factor", confirm_password="correct horse")
    assert mesh.with_factor == set()
