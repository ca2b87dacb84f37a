"""`aicli login` without a name: the code, the link, the wait for the browser, and the key."""

from collections.abc import Callable

import msgspec
import pytest

from cli import profile
from shared import errors
from shared.api import auth
from shared.api.auth import CreatedApiKey, DeviceLogin, LoginSession, Step
from shared.api.method import Nothing
from shared.types import UserRole
from tests.cli.fake_mesh import Shell
from tests.cli.test_accounts import NEW_KEY, TOKEN, key, user

URL = "https://ai.example.org"
BEGUN = DeviceLogin("aip_device_secret", "BCDF-GHJK", f"{URL}/device", f"{URL}/device/BCDF-GHJK", 900, 0)
PENDING = errors.AuthorizationPending("not approved yet", retry_after_seconds=0)
SESSION = LoginSession(access_token=TOKEN, expires_in=600, session_token="session", user=user("anna"))

Answers = Callable[[object], LoginSession]


def answers_with(*outcomes: errors.AimeshError | LoginSession) -> Answers:
    left = iter(outcomes)

    def answer(_: object) -> LoginSession:
        outcome = next(left)
        if isinstance(outcome, errors.AimeshError):
            raise outcome
        return outcome

    return answer


@pytest.fixture
def laptop(shell: Shell) -> Shell:
    mesh = shell.mesh
    mesh.answer(auth.begin_device_login, BEGUN)
    mesh.answer(auth.poll_device_login, answers_with(PENDING, SESSION))
    mesh.answer(auth.logout_user, Nothing())
    mesh.answer(auth.generate_api_key, lambda request: CreatedApiKey(NEW_KEY, key(9, request.name, NEW_KEY)))
    mesh.answer(auth.list_api_keys, auth.ApiKeys(()))
    return shell


def polls_of(shell: Shell) -> int:
    return len([each for each in shell.mesh.calls if each.method == "auth.pollDeviceLogin"])


def test_it_prints_code_and_link_and_saves_a_key_as_a_password_login_does(laptop: Shell) -> None:
    result = laptop("login", URL, "--key-name", "laptop")
    assert result.exit_code == 0, result.stderr
    assert f"{URL}/device/BCDF-GHJK" in result.stderr
    assert "approve the code BCDF-GHJK within 15 minutes" in result.stderr
    assert "Logged in as anna; the key 'laptop' is in" in result.stdout
    methods = [each.method.partition(".")[2] for each in laptop.mesh.calls]
    assert methods == ["beginDeviceLogin", "pollDeviceLogin", "pollDeviceLogin", "generateApiKey", "logoutUser"]
    assert laptop.mesh.calls[0].request == auth.BeginDeviceLogin("laptop")
    kept = profile.read(laptop.folder / "home/.config/aimesh/profiles/ai.example.org.toml")
    assert (kept.api_key, kept.username, kept.url) == (NEW_KEY, "anna", URL)
    assert "aip_device_secret" not in result.output


def test_json_is_alone_on_stdout(laptop: Shell) -> None:
    result = laptop("login", URL, "--json")
    assert msgspec.json.decode(result.stdout)["username"] == "anna"
    assert "BCDF-GHJK" in result.stderr


def test_an_administrator_gets_an_administrators_key(laptop: Shell) -> None:
    admin = msgspec.structs.replace(SESSION, user=msgspec.structs.replace(SESSION.user, role=UserRole.ADMIN))
    laptop.mesh.answer(auth.poll_device_login, answers_with(admin))
    assert laptop("login").exit_code == 0
    [made] = [each.request for each in laptop.mesh.calls if isinstance(each.request, auth.GenerateApiKey)]
    assert made.kind is auth.KeyKind.ADMIN


def test_without_a_public_url_the_link_is_the_profiles_page(laptop: Shell) -> None:
    laptop.mesh.answer(auth.begin_device_login, msgspec.structs.replace(BEGUN, verification_uri="", verification_uri_complete=""))
    assert "https://other.example.org/device/BCDF-GHJK" in laptop("login", "https://other.example.org/").stderr


def test_it_waits_as_long_as_it_is_told_and_survives_an_outage(laptop: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr("cli.account.device_login.asyncio.sleep", sleep)
    laptop.mesh.answer(auth.begin_device_login, msgspec.structs.replace(BEGUN, interval=5))
    slow = errors.SlowDown("too soon", retry_after_seconds=10)
    away = errors.Unavailable("Valkey does not answer")
    pending = errors.AuthorizationPending("not yet", retry_after_seconds=10)
    laptop.mesh.answer(auth.poll_device_login, answers_with(slow, away, away, away, pending, SESSION))
    assert laptop("login", URL).exit_code == 0
    assert waits == [5, 10, 20, 30, 30, 10]


@pytest.mark.parametrize("error", [errors.DeviceLoginDenied("the login was refused"), errors.DeviceLoginExpired("the login has expired")])
def test_a_refusal_ends_it(laptop: Shell, error: errors.AimeshError) -> None:
    laptop.mesh.answer(auth.poll_device_login, answers_with(PENDING, error))
    result = laptop("login", URL)
    assert (result.exit_code, polls_of(laptop)) == (3, 2)
    assert error.message in result.stderr
    assert not (laptop.folder / "home/.config").exists()


def test_it_gives_up_when_the_code_has_expired(laptop: Shell) -> None:
    laptop.mesh.answer(auth.begin_device_login, msgspec.structs.replace(BEGUN, expires_in=0))
    result = laptop("login", URL)
    assert (result.exit_code, polls_of(laptop)) == (3, 0)
    assert "nobody approved the login in time" in result.stderr


def test_a_name_still_asks_for_the_password(laptop: Shell) -> None:
    laptop.mesh.answer(auth.login_user, SESSION)
    assert laptop("login", URL, "anna", "--password-stdin", stdin="secret\n").exit_code == 0
    assert laptop.mesh.calls[0].method == "auth.loginUser"
    assert "USERNAME" in laptop("login", URL, "--password-stdin", stdin="secret\n").stderr


def test_a_second_factor_that_the_browser_lacked_is_asked_for(laptop: Shell) -> None:
    laptop.mesh.answer(auth.poll_device_login, answers_with(msgspec.structs.replace(SESSION, step=Step.ENTER_CODE)))
    assert "code of your authenticator app" in laptop("login", URL).stderr


def test_the_browser_opens_only_on_a_screen_and_sees_the_code_in_a_private_file(
    laptop: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    assert laptop("login", URL).exit_code == 0
    assert opened == []
    laptop.environment |= {"DISPLAY": ":0", "XDG_RUNTIME_DIR": str(laptop.folder)}
    laptop.mesh.answer(auth.poll_device_login, answers_with(SESSION))
    assert laptop("login", URL).exit_code == 0
    [file] = opened
    assert file.startswith("file://")
    assert "BCDF" not in file
