import pytest

from services.web.pages.account import security
from shared import errors
from shared.api.auth import SessionKind
from tests.services.web.browser import CONFIRM, Browser, forms_of
from tests.services.web.fake_accounts import CODE, RECOVERY_CODES
from tests.services.web.fake_mesh import FakeMesh

AWAY = errors.NotReachable("no node of that role is alive")
EVIL = "<script>alert(1)</script>"
NEW = "a longer new password"
HERE = "/settings/security"
FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"


async def test_change_the_password(alice: Browser, mesh: FakeMesh) -> None:
    answer = await alice.submit(await alice.get(HERE), f"{HERE}/password", new_password=NEW, repeated=NEW)
    assert answer.headers["location"] == f"{HERE}?done=password"
    assert mesh.accounts["alice"].password == NEW
    assert "All other sessions ended" in (await alice.get(f"{HERE}?done=password")).text


@pytest.mark.parametrize(("new", "repeated", "message"), [("zq7!x", "zq7!x", "shorter than 8"), (NEW, NEW + "x", "do not match")])
async def test_refused_password(alice: Browser, mesh: FakeMesh, new: str, repeated: str, message: str) -> None:
    page = await alice.submit(await alice.get(HERE), f"{HERE}/password", new_password=new, repeated=repeated)
    assert page.status_code == 400
    assert message in page.text
    assert new not in page.text
    assert mesh.accounts["alice"].password == "correct horse"


async def test_new_password_needs_the_old_one(alice: Browser, mesh: FakeMesh) -> None:
    mesh.is_stale = True
    confirm_page = await alice.submit(await alice.get(HERE), f"{HERE}/password", new_password=NEW, repeated=NEW)
    assert confirm_page.status_code == 403
    assert mesh.accounts["alice"].password == "correct horse"
    done = await alice.submit(confirm_page, f"{HERE}/password", confirm_password="correct horse")
    assert done.status_code == 303
    assert mesh.accounts["alice"].password == NEW


async def test_user_without_a_password_can_set_one(alice: Browser, mesh: FakeMesh) -> None:
    mesh.without_password.add("alice")
    page = await alice.get(HERE)
    assert "Set a password" in page.text
    assert "have no password here" in page.text


async def test_password_minimum_is_fifteen_without_a_second_factor(alice: Browser, mesh: FakeMesh) -> None:
    assert "15 or more without a second factor" in (await alice.get(HERE)).text
    mesh.with_factor.add("alice")
    assert "15 or more" not in (await alice.get(HERE)).text


# --- the second factor -----------------------------------------------------------------------------------------------


async def test_enabling_the_second_factor_shows_the_codes_once(alice: Browser, mesh: FakeMesh) -> None:
    seed = await alice.submit(await alice.get(HERE), f"{HERE}/second-factor/begin")
    assert seed.status_code == 200
    assert 'class="qr"' in seed.text
    wrong = await alice.submit(seed, f"{HERE}/second-factor", code="000000")
    assert wrong.status_code == 400
    assert mesh.seeds_begun == 1
    codes = await alice.submit(wrong, f"{HERE}/second-factor", code=CODE)
    assert all(code in codes.text for code in RECOVERY_CODES)
    assert codes.headers["cache-control"] == "no-store"
    page = await alice.get(HERE)
    assert not any(code in page.text for code in RECOVERY_CODES)
    assert "10 recovery codes left" in page.text


async def test_viewing_the_page_creates_no_seed(alice: Browser, mesh: FakeMesh) -> None:
    await alice.get(HERE)
    assert mesh.seeds_begun == 0


async def test_seed_is_shown_after_confirmation(alice: Browser, mesh: FakeMesh) -> None:
    mesh.is_stale = True
    confirm_page = await alice.submit(await alice.get(HERE), f"{HERE}/second-factor/begin")
    assert CONFIRM in confirm_page.text
    seed = await alice.submit(confirm_page, f"{HERE}/second-factor/begin", confirm_password="correct horse")
    assert 'class="qr"' in seed.text


async def test_disabling_needs_a_code(alice: Browser, mesh: FakeMesh) -> None:
    mesh.with_factor.add("alice")
    page = await alice.get(HERE)
    wrong = await alice.submit(page, f"{HERE}/second-factor/off", code="000000")
    assert wrong.status_code == 403
    assert "The code is wrong, or was used before." in wrong.text
    assert mesh.with_factor == {"alice"}
    answer = await alice.submit(page, f"{HERE}/second-factor/off", code=CODE)
    assert answer.headers["location"] == f"{HERE}?done=off"
    assert mesh.with_factor == set()


async def test_new_recovery_codes_are_shown_in_the_response(alice: Browser, mesh: FakeMesh) -> None:
    mesh.with_factor.add("alice")
    codes = await alice.submit(await alice.get(HERE), f"{HERE}/second-factor/codes")
    assert all(code in codes.text for code in RECOVERY_CODES)
    assert "Your old codes no longer work" in codes.text


async def test_renewing_codes_of_a_disabled_factor_is_refused(alice: Browser, mesh: FakeMesh) -> None:
    mesh.with_factor.add("alice")
    page = await alice.get(HERE)
    mesh.with_factor.clear()
    answer = await alice.submit(page, f"{HERE}/second-factor/codes")
    assert answer.status_code == 404
    assert "This account has no second factor." in answer.text


# --- sessions --------------------------------------------------------------------------------------------------------


async def test_sessions_are_listed_with_the_current_one_first(alice: Browser, mesh: FakeMesh) -> None:
    mesh.add_other_session("aicli/2.0", kind=SessionKind.PROGRAM)
    mesh.add_other_session(f"{EVIL}\u202e" + "x" * 200, address="198.51.100.1")
    page = await alice.get(HERE)
    assert page.text.index("Firefox on Linux") < page.text.index("aicli")
    assert "this browser" in page.text
    assert "198.51.100.1" in page.text
    assert EVIL not in page.text


async def test_one_or_all_other_sessions_can_be_ended(alice: Browser, mesh: FakeMesh) -> None:
    kept, ended = mesh.add_other_session("curl/8"), mesh.add_other_session(FIREFOX)
    page = await alice.get(HERE)
    answer = await alice.submit(page, f"{HERE}/sessions/end", id=ended)
    assert answer.headers["location"] == f"{HERE}?done=ended"
    assert [each.id for each in mesh.others] == [kept]
    # Ending a session that has already ended succeeds.
    assert (await alice.submit(page, f"{HERE}/sessions/end", id=ended)).status_code == 303
    all_ended = await alice.submit(page, f"{HERE}/sessions/end", id="")
    assert all_ended.headers["location"] == f"{HERE}?done=others"
    assert mesh.others == []
    assert "End others" not in (await alice.get(HERE)).text


@pytest.mark.parametrize(("broken", "message"), [("auth.listSessions", "unavailable right now"), ("auth.listOidcLinks", "Second factor")])
async def test_unavailable_part_is_missing_alone(alice: Browser, mesh: FakeMesh, broken: str, message: str) -> None:
    mesh.broken[broken] = AWAY
    page = await alice.get(HERE)
    assert page.status_code == 200
    assert message in page.text


@pytest.mark.parametrize(
    ("agent", "message"),
    [
        (FIREFOX, "Firefox on Linux"),
        (
            "Mozilla/5.0 (Macintosh; Intel Mac OS X 14_5) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.5 Safari/605.1.15",
            "Safari on Mac",
        ),
        ("Mozilla/5.0 (Windows NT 10.0) AppleWebKit/537.36 Chrome/130.0 Safari/537.36 Edg/130.0", "Edge on Windows"),
        ("Mozilla/5.0 (Linux; Android 15) AppleWebKit/537.36 Chrome/130.0 Mobile Safari/537.36", "Chrome on Android"),
        ("aicli/2.0 (linux)", "aicli"),
        ("python-httpx/0.28", "python-httpx"),
        ("x" * 300, "x" * 40),
        ("", "Unknown program"),
    ],
)
def test_programs_are_named(agent: str, message: str) -> None:
    assert security.program_of(agent) == message


FORMS = {
    f"{HERE}/password": {"new_password": NEW, "repeated": NEW},
    f"{HERE}/second-factor/begin": {},
    f"{HERE}/second-factor/off": {"code": CODE},
    f"{HERE}/second-factor/codes": {},
    f"{HERE}/sessions/end": {"id": ""},
}


@pytest.mark.parametrize("path", FORMS)
async def test_cross_site_forms_are_refused(alice: Browser, mesh: FakeMesh, path: str) -> None:
    mesh.with_factor.add("alice")
    mesh.add_other_session("curl/8")
    page = await alice.get(HERE)
    assert path in forms_of(page)
    mesh.calls.clear()
    assert (await alice.submit(page, path, {"Sec-Fetch-Site": "cross-site"}, **FORMS[path])).status_code == 403
    assert (await alice.submit(page, path, **FORMS[path], token="")).status_code == 403
    assert (await alice.submit(page, path, **FORMS[path], role="admin")).status_code == 400
    assert set(mesh.called_methods()) == {"auth.resumeSession"}
