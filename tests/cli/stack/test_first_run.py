from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest

from cli import profile
from cli.stack import first_run, initialise, secret_files
from cli.stack import home as homes
from cli.stack.home import Home
from cli.stack.settings import StackSettings
from shared import errors
from shared.api import auth
from shared.types import Credential, KeyId, Tier, UserId, UserRole
from tests.cli.fake_mesh import FakeMesh

SETTINGS = StackSettings(web_port=4000, nats_port=4999)
NOW = datetime(2026, 1, 1, tzinfo=UTC)
ADMIN = auth.User(UserId(UUID(int=1)), "admin", "admin@localhost", UserRole.ADMIN, Tier.PRO, True, NOW)
NEW_KEY = Credential("aip_live_new")
REFUSED = errors.NotAuthenticated("unknown key")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    found = homes.locate({"AIMESH_HOME": str(tmp_path / "h")})
    initialise.ensure(found, {}, tmp_path)
    return found


@pytest.fixture
def mesh() -> FakeMesh:
    """Auth of a fresh stack: it has the admin and no key."""
    fake = FakeMesh()
    key = auth.ApiKey(KeyId(UUID(int=2)), ADMIN.id, "k", "aip_live_new", True, NOW)
    fake.answer(auth.list_api_keys, REFUSED)
    fake.answer(auth.login_user, auth.Session(Credential("jwt"), 600, "session", ADMIN))
    fake.answer(auth.generate_api_key, auth.NewApiKey(NEW_KEY, key))
    return fake


async def test_the_first_run_makes_a_key_a_profile_and_a_page(home: Home, mesh: FakeMesh) -> None:
    made = await first_run.ensure_profile(home, SETTINGS, mesh.open)
    assert [asked.method for asked in mesh.asked] == ["auth.loginUser", "auth.generateApiKey"]
    login = mesh.asked[0].request
    assert isinstance(login, auth.LoginUser)
    assert login.credentials.password == secret_files.read(home, "admin_password")
    assert mesh.asked[1].credential == "jwt"
    assert profile.read(home.profile) == made
    assert made.api_key == NEW_KEY
    assert (made.nats_url, made.web_url) == ("nats://127.0.0.1:4999", "http://127.0.0.1:4000")
    page = first_run.page(home)
    assert NEW_KEY in page.read_text()
    assert page.stat().st_mode & 0o777 == home.profile.stat().st_mode & 0o777 == 0o600


async def test_a_key_that_works_is_kept(home: Home, mesh: FakeMesh) -> None:
    await first_run.ensure_profile(home, SETTINGS, mesh.open)
    mesh.asked.clear()
    mesh.answer(auth.list_api_keys, auth.ApiKeys(()))
    before = home.profile.stat()
    await first_run.ensure_profile(home, SETTINGS, mesh.open)
    assert [asked.method for asked in mesh.asked] == ["auth.listApiKeys"]
    assert home.profile.stat() == before


async def test_a_key_that_was_revoked_is_replaced(home: Home, mesh: FakeMesh) -> None:
    made = await first_run.ensure_profile(home, SETTINGS, mesh.open)
    profile.write(home.profile, profile.Profile(node_key_file=made.node_key_file, api_key=Credential("aip_live_old")))
    assert (await first_run.ensure_profile(home, SETTINGS, mesh.open)).api_key == NEW_KEY
    assert profile.read(home.profile).api_key == NEW_KEY


async def test_a_moved_port_reaches_the_profile_and_keeps_the_key(home: Home, mesh: FakeMesh) -> None:
    await first_run.ensure_profile(home, SETTINGS, mesh.open)
    mesh.answer(auth.list_api_keys, auth.ApiKeys(()))
    await first_run.ensure_profile(home, StackSettings(web_port=5000), mesh.open)
    assert profile.read(home.profile).web_url == "http://127.0.0.1:5000"
    assert profile.read(home.profile).api_key == NEW_KEY


async def test_an_admin_with_another_password_is_asked_to_log_in(home: Home, mesh: FakeMesh) -> None:
    mesh.answer(auth.login_user, errors.NotAuthenticated("wrong name or password"))
    with pytest.raises(errors.NotAuthenticated) as caught:
        await first_run.ensure_profile(home, SETTINGS, mesh.open)
    assert caught.value.hint.endswith("aicli login")
    assert secret_files.read(home, "admin_password") not in caught.value.message
    assert profile.read(home.profile).api_key is None  # there is a profile for it to write to
