from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from cli import profile
from shared import errors
from shared.api import auth
from shared.api.ledger import ModelPrice, ModelPrices, list_prices
from shared.identity import credentials
from shared.types import Credential, MicroCredits, ModelName
from stack import first_run, initialization, secret_files
from stack import stack_home as homes
from stack.settings import StackSettings
from stack.stack_home import StackHome
from tests.cli.fake_mesh import FakeMesh

SETTINGS = StackSettings(web_port=4000, nats_port=4999)


@pytest.fixture
def home(tmp_path: Path) -> StackHome:
    found = homes.locate({"AIMESH_HOME": str(tmp_path / "h")})
    initialization.ensure(found, {}, tmp_path)
    return found


@pytest.fixture
def mesh() -> FakeMesh:
    """A fresh stack's auth, which accepts the first key."""
    fake = FakeMesh()
    fake.answer(auth.list_api_keys, auth.ApiKeys(()))
    return fake


def first_key(home: StackHome) -> str:
    return secret_files.read(home, "admin_key")


async def test_first_run_creates_a_profile_and_a_page_with_the_first_key(home: StackHome, mesh: FakeMesh) -> None:
    made = await first_run.ensure_profile(home, SETTINGS, mesh.open)
    assert [(call.method, call.credential) for call in mesh.calls] == [("auth.listApiKeys", first_key(home))]
    assert credentials.kind_of(first_key(home)) == "adm"
    assert profile.read(home.profile) == made
    assert (made.api_key, made.username) == (first_key(home), "admin")
    assert (made.nats_url, made.web_url) == ("nats://127.0.0.1:4999", "http://127.0.0.1:4000")
    page = first_run.page(home)
    assert first_key(home) in page.read_text()
    assert secret_files.read(home, "admin_password") in page.read_text()
    assert page.stat().st_mode & 0o777 == home.profile.stat().st_mode & 0o777 == 0o600


async def test_prices_are_examples_until_an_administrator_has_set_one(home: StackHome, mesh: FakeMesh) -> None:
    assert not await first_run.has_example_prices(home, mesh.open), "there is no profile yet"
    await first_run.ensure_profile(home, SETTINGS, mesh.open)
    default = ModelPrice(None, MicroCredits(100_000_000), MicroCredits(200_000_000))
    mistral = ModelPrice(ModelName("mistral-7b"), MicroCredits(150_000_000), MicroCredits(300_000_000))
    own = msgspec.structs.replace(mistral, compute_second_micro=MicroCredits(1))
    mesh.answer(list_prices, ModelPrices((default, mistral)))
    assert await first_run.has_example_prices(home, mesh.open)
    for prices in ((), (default, own), (msgspec.structs.replace(default, input_micro_per_million=MicroCredits(1)),)):
        mesh.answer(list_prices, ModelPrices(prices))
        assert not await first_run.has_example_prices(home, mesh.open)
    mesh.answer(list_prices, errors.NotReachable("the gateway did not answer"))
    assert not await first_run.has_example_prices(home, mesh.open)


async def test_auth_that_is_not_found_yet_is_asked_again(home: StackHome, mesh: FakeMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_run, "_PAUSE_SECONDS", 0.001)
    found = iter([False, False, True])

    def answer(_: object) -> auth.ApiKeys:
        if not next(found):
            raise errors.NotReachable("auth did not answer within 1.5 s")
        return auth.ApiKeys(())

    mesh.answer(auth.list_api_keys, answer)
    assert (await first_run.ensure_profile(home, SETTINGS, mesh.open)).api_key == first_key(home)
    assert len(mesh.calls) == 3


async def test_auth_that_is_never_found_is_reported(home: StackHome, mesh: FakeMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_run, "_CALL_SECONDS", 0.0)
    mesh.answer(auth.list_api_keys, errors.NotReachable("auth did not answer within 1.5 s"))
    with pytest.raises(errors.NotReachable, match="did not answer"):
        await first_run.ensure_profile(home, SETTINGS, mesh.open)


async def test_working_key_is_kept(home: StackHome, mesh: FakeMesh) -> None:
    made = await first_run.ensure_profile(home, SETTINGS, mesh.open)
    profile.write(home.profile, replace(made, api_key=Credential("aip_live_other"), username="anna"))
    before = home.profile.stat()
    assert (await first_run.ensure_profile(home, SETTINGS, mesh.open)).api_key == "aip_live_other"
    assert home.profile.stat() == before


async def test_moved_port_updates_the_profile_and_keeps_the_key(home: StackHome, mesh: FakeMesh) -> None:
    await first_run.ensure_profile(home, SETTINGS, mesh.open)
    await first_run.ensure_profile(home, StackSettings(web_port=5000), mesh.open)
    assert profile.read(home.profile).web_url == "http://127.0.0.1:5000"
    assert profile.read(home.profile).api_key == first_key(home)


async def test_without_a_working_key_the_user_must_log_in(home: StackHome, mesh: FakeMesh) -> None:
    mesh.answer(auth.list_api_keys, errors.NotAuthenticated("unknown key"))
    with pytest.raises(errors.NotAuthenticated) as caught:
        await first_run.ensure_profile(home, SETTINGS, mesh.open)
    assert caught.value.hint.endswith("aicli login")
    assert first_key(home) not in caught.value.message
    assert profile.read(home.profile).api_key is None  # `aicli login` has a profile to write to
