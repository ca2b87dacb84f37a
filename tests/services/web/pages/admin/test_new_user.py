import msgspec
import pytest

from shared import errors
from shared.api import auth
from shared.types import UserRole
from tests.services.web.browser import Browser, forms_of
from tests.services.web.pages.admin.admin_mesh import AdminMesh

PAGE = "/admin/users/new"
DANA = {"username": " dana ", "email": "dana@example.com"}


@pytest.fixture(autouse=True)
def _closed(mesh: AdminMesh) -> None:
    """Registration is closed, so this form is the only way to add a user."""
    mesh.options = msgspec.structs.replace(mesh.options, open_registration=False)


async def test_list_links_to_the_form(root: Browser) -> None:
    assert f'href="{PAGE}"' in (await root.get("/admin/users")).text


async def test_new_user_chooses_a_password_by_mail(root: Browser, mesh: AdminMesh) -> None:
    done = await root.submit(await root.get(PAGE), PAGE, **DANA)
    dana = mesh.accounts["dana"]
    assert (done.status_code, done.headers["location"]) == (303, f"/admin/users/{dana.user.id}?done=mailed")
    assert (dana.user.email, dana.user.role) == ("dana@example.com", UserRole.USER)
    assert mesh.mails == ["dana"]
    # The password is never shown, and can't be guessed.
    assert len(dana.password) > 40
    page = await root.get(done.headers["location"])
    assert "We emailed them a link" in page.text
    assert dana.password not in page.text


async def test_new_users_get_different_passwords(root: Browser, mesh: AdminMesh) -> None:
    for name in ("dana", "jordan"):
        await root.submit(await root.get(PAGE), PAGE, username=name, email=f"{name}@example.com")
    assert mesh.accounts["dana"].password != mesh.accounts["jordan"].password


async def test_given_password_is_set_and_no_mail_is_sent(root: Browser, mesh: AdminMesh) -> None:
    done = await root.submit(await root.get(PAGE), PAGE, **DANA, password="correct horse")
    assert done.headers["location"].endswith("?done=added")
    assert (mesh.accounts["dana"].password, mesh.mails) == ("correct horse", [])
    assert "Give them the password in person." in (await root.get(done.headers["location"])).text


async def test_failed_mail_is_reported_and_the_account_exists(root: Browser, mesh: AdminMesh) -> None:
    mesh.broken["auth.requestPasswordReset"] = errors.Overloaded("too many ask", retry_after_seconds=60)
    done = await root.submit(await root.get(PAGE), PAGE, **DANA)
    assert done.headers["location"].endswith("?done=unmailed")
    assert "dana" in mesh.accounts
    page = await root.get(done.headers["location"])
    assert "the email failed" in page.text
    assert "notice warn" in page.text


@pytest.mark.parametrize(
    ("typed", "status", "message"),
    [
        pytest.param({"username": "root"}, 409, "is taken", id="taken"),
        pytest.param({"password": "short"}, 400, "shorter than 8 characters", id="too short"),
    ],
)
async def test_refusal_is_reported_and_the_name_is_kept(
    root: Browser, mesh: AdminMesh, *, typed: dict[str, str], status: int, message: str
) -> None:
    values = DANA | typed
    page = await root.submit(await root.get(PAGE), PAGE, **values)
    assert page.status_code == status
    assert message in page.text
    kept = forms_of(page)[PAGE]
    assert (kept["username"], kept["email"], kept["password"]) == (values["username"], values["email"], "")
    assert "dana" not in mesh.accounts
    assert mesh.mails == []


async def test_cross_site_form_creates_no_user(root: Browser, mesh: AdminMesh) -> None:
    page = await root.get(PAGE)
    assert (await root.submit(page, PAGE, {"Sec-Fetch-Site": "cross-site"}, **DANA)).status_code == 403
    assert (await root.submit(page, PAGE, **DANA, token="forged")).status_code == 403
    assert "dana" not in mesh.accounts


async def test_call_uses_the_administrators_credential(root: Browser, mesh: AdminMesh) -> None:
    await root.submit(await root.get(PAGE), PAGE, **DANA)
    (call,) = [each for each in mesh.calls if isinstance(each.request, auth.RegisterUser)]
    assert call.credential == "access-root"


async def test_only_administrators_may_add_users(browser: Browser, mesh: AdminMesh) -> None:
    mesh.add_person("bob", UserRole.DEVELOPER)
    await browser.sign_in("bob", "correct horse")
    token = forms_of(await browser.get("/dashboard"))["/logout"]["token"]
    assert (await browser.get(PAGE)).status_code == 403
    assert (await browser.client.post(PAGE, data=DANA | {"token": token})).status_code == 403
    assert "dana" not in mesh.accounts
