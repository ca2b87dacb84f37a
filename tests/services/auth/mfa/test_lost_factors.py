"""Somebody has lost telephone and recovery codes: an administrator takes the second factor away."""

from typing import cast

import pytest

from services.auth.accounts.factor_removal import FactorRemoval
from shared import errors
from shared.api import auth
from shared.api.auth import Step
from tests.services.auth.accounts.surroundings import FakePostman
from tests.services.auth.mfa.equipment import Desk
from tests.services.auth.surroundings import ADMIN_PASSWORD, PASSWORD


@pytest.fixture
def postman(desk: Desk) -> FakePostman:
    """Stands where the log does, and keeps what it was given."""
    lost = cast("FactorRemoval", desk._serving(auth.remove_mfa.name))
    lost._trail = desk.trail
    lost._postman = made = FakePostman()
    return made


async def remove(desk: Desk, name: str) -> auth.User:
    """By an administrator, who has just set up a second factor of their own."""
    half = await desk.login("admin", ADMIN_PASSWORD)
    made = await desk.enable(half, (await desk.begin(half)).code())
    assert made.session is not None
    return await desk.world.ask(auth.remove_mfa, auth.RemoveMfa(name), made.session.access_token)


async def test_they_log_in_with_the_password_again_and_are_told(desk: Desk, postman: FakePostman) -> None:
    session, _, _ = await desk.with_factor("anna")
    assert (await desk.login()).step is Step.ENTER_CODE
    key = (await desk.world.new_key(session.access_token)).api_key
    changed = await remove(desk, "anna")
    assert changed.username == "anna"
    assert (await desk.login()).step is Step.DONE
    assert postman.told() == [(changed.email, "Your second factor was removed")]
    assert desk.trail.actions("mfa.remove") == ["mfa.remove"]
    # Whoever had the telephone is out; programs go on.
    with pytest.raises(errors.NotAuthenticated):
        await desk.identify(session)
    assert (await desk.world.ask(auth.validate_api_key, auth.ValidateApiKey(key))).username == "anna"


async def test_a_new_one_can_be_set_up_afterwards(desk: Desk, postman: FakePostman) -> None:
    await desk.with_factor("anna")
    await remove(desk, "anna")
    session = await desk.login()
    phone = await desk.begin(session)
    await desk.enable(session, phone.code())
    assert (await desk.login()).step is Step.ENTER_CODE


async def test_who_has_none_keeps_their_sessions(desk: Desk, postman: FakePostman) -> None:
    await desk.world.register("anna")
    session = await desk.login()
    with pytest.raises(errors.NotFound, match="anna has no second factor"):
        await remove(desk, "anna")
    assert (await desk.identify(session)).username == "anna"
    assert (postman.told(), desk.trail.actions("mfa.remove")) == ([], [])


async def test_only_administrators_do_it(desk: Desk, postman: FakePostman) -> None:
    session, _, _ = await desk.with_factor("anna")
    await desk.world.register("bob")
    bob = await desk.login("bob", PASSWORD)
    for asking in (session, bob):
        with pytest.raises(errors.NotAllowed):
            await desk.world.ask(auth.remove_mfa, auth.RemoveMfa("anna"), asking.access_token)


@pytest.mark.parametrize(("name", "error", "said"), [("admin", errors.NotAllowed, "their own"), ("nobody", errors.NotFound, "nobody")])
async def test_it_has_to_be_somebody_else(desk: Desk, postman: FakePostman, name: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        await remove(desk, name)
