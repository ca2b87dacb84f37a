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
    """Where registration is closed, this is the only way in."""
    mesh.options = msgspec.structs.replace(mesh.options, open_registration=False)


async def test_the_list_leads_to_it(root: Browser) -> None:
    assert f'href="{PAGE}"' in (await root.get("/admin/users")).text


async def test_a_newcomer_chooses_a_password_by_mail(root: Browser, mesh: AdminMesh) -> None:
    done = await root.submit(await root.get(PAGE), PAGE, **DANA)
    dana = mesh.accounts["dana"]
    assert (done.status_code, done.headers["location"]) == (303, f"/admin/users/{dana.user.id}?done=mailed")
    assert (dana.user.email, dana.user.role) == ("dana@example.com", UserRole.USER)
    assert mesh.mails == ["dana"]
    # Nobody has seen it, and nobody guesses it.
    assert len(dana.password) > 40
    page = await root.get(done.headers["location"])
    assert "We emailed them a link" in page.text
    assert dana.password not in page.text


async def test_no_two_newcomers_have_the_same_password(root: Browser, mesh: AdminMesh) -> None:
    for name in ("dana", "jordan"):
        await root.submit(await root.get(PAGE), PAGE, username=name, email=f"{name}@example.com")
    assert mesh.accounts["dana"].password != mesh.accounts["jordan"].password


async def test_a_password_that_is_handed_over_is_theirs_and_no_mail_goes(root: Browser, mesh: AdminMesh) -> None:
    done = await root.submit(await root.get(PAGE), PAGE, **DANA, password="correct horse")
    assert done.headers["location"].endswith("?done=added")
    assert (mesh.accounts["dana"].password, mesh.mails) == ("correct horse", [])
    assert "Give them the password in person." in (await root.get(done.headers["location"])).text


async def test_a_mail_that_cannot_be_sent_is_said_and_the_account_is_there(root: Browser, mesh: AdminMesh) -> None:
    mesh.broken["auth.requestPasswordReset"] = errors.Overloaded("too many ask", retry_after_seconds=60)
    done = await root.submit(await root.get(PAGE), PAGE, **DANA)
    assert done.headers["location"].endswith("?done=unmailed")
    assert "dana" in mesh.accounts
    page = await root.get(done.headers["location"])
    assert "the email failed" in page.text
    assert "notice warn" in page.text


@pytest.mark.parametrize(
    ("typed", "status", "said"),
    [
        pytest.param({"username": "root"}, 409, "is taken", id="taken"),
        pytest.param({"password": "short"}, 400, "shorter than 8 characters", id="too short"),
    ],
)
async def test_what_is_refused_is_said_and_the_name_is_kept(
    root: Browser, mesh: AdminMesh, *, typed: dict[str, str], status: int, said: str
) -> None:
    values = DANA | typed
    page = await root.submit(await root.get(PAGE), PAGE, **values)
    assert page.status_code == status
    assert said in page.text
    kept = forms_of(page)[PAGE]
    assert (kept["username"], kept["email"], kept["password"]) == (values["username"], values["email"], "")
    assert "dana" not in mesh.accounts
    assert mesh.mails == []


async def test_a_form_from_elsewhere_makes_nobody(root: Browser, mesh: AdminMesh) -> None:
    page = await root.get(PAGE)
    assert (await root.submit(page, PAGE, {"Sec-Fetch-Site": "cross-site"}, **DANA)).status_code == 403
    assert (await root.submit(page, PAGE, **DANA, token="forged")).status_code == 403
    assert "dana" not in mesh.accounts


async def test_it_is_asked_for_in_the_administrators_name(root: Browser, mesh: AdminMesh) -> None:
    await root.submit(await root.get(PAGE), PAGE, **DANA)
    (asked,) = [each for each in mesh.asked if isinstance(each.request, auth.RegisterUser)]
    assert asked.credential == "access-root"


async def test_nobody_else_may(browser: Browser, mesh: AdminMesh) -> None:
    mesh.add_person("bob", UserRole.DEVELOPER)
    await browser.sign_in("bob", "correct horse")
    token = forms_of(await browser.get("/dashboard"))["/logout"]["token"]
    assert (await browser.get(PAGE)).status_code == 403
    assert (await browser.client.post(PAGE, data=DANA | {"token": token})).status_code == 403
    assert "dana" not in mesh.accounts
