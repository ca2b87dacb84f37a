"""An administrator removes the second factor of a user who has lost the phone and the recovery codes."""

from typing import cast

import pytest

from services.auth.accounts.user_rpc import FactorRemoval
from services.auth.sessions.identities import SESSION_OVER
from shared import errors
from shared.api import auth
from shared.api.auth import Step
from tests.services.auth.accounts.surroundings import FakePostman
from tests.services.auth.mfa.equipment import ApiClient
from tests.services.auth.surroundings import ADMIN_PASSWORD, PASSWORD


@pytest.fixture
def mailer(api_client: ApiClient) -> FakePostman:
    """Replace the mailer and the audit log of the removal with recording ones."""
    lost = cast("FactorRemoval", api_client._serving(auth.remove_mfa.name))
    lost._trail = api_client.trail
    lost._mailer = made = FakePostman()
    return made


async def remove(api_client: ApiClient, name: str) -> auth.User:
    """Remove the factor as an administrator who has just set up their own."""
    half = await api_client.login("admin", ADMIN_PASSWORD)
    made = await api_client.enable(half, (await api_client.begin(half)).code())
    assert made.session is not None
    return await api_client.world.ask(auth.remove_mfa, auth.RemoveMfa(name), made.session.access_token)


async def test_the_user_logs_in_with_the_password_again_and_is_notified(api_client: ApiClient, mailer: FakePostman) -> None:
    session, _, _ = await api_client.with_factor("anna")
    assert (await api_client.login()).step is Step.ENTER_CODE
    key = (await api_client.world.new_key(session.access_token)).api_key
    changed = await remove(api_client, "anna")
    assert changed.username == "anna"
    assert (await api_client.login()).step is Step.DONE
    assert mailer.told() == [(changed.email, "Your second factor was removed")]
    assert api_client.trail.actions("mfa.remove") == ["mfa.remove"]
    # Open sessions have ended, but API keys keep working.
    with pytest.raises(errors.NotAuthenticated, match=SESSION_OVER):
        await api_client.identify(session)
    assert (await api_client.world.ask(auth.validate_api_key, auth.ValidateApiKey(key))).username == "anna"


async def test_a_new_factor_can_be_set_up_afterwards(api_client: ApiClient, mailer: FakePostman) -> None:
    await api_client.with_factor("anna")
    await remove(api_client, "anna")
    session = await api_client.login()
    phone = await api_client.begin(session)
    await api_client.enable(session, phone.code())
    assert (await api_client.login()).step is Step.ENTER_CODE


async def test_a_user_without_a_factor_keeps_their_sessions(api_client: ApiClient, mailer: FakePostman) -> None:
    await api_client.world.register("anna")
    session = await api_client.login()
    with pytest.raises(errors.NotFound, match="anna has no second factor"):
        await remove(api_client, "anna")
    assert (await api_client.identify(session)).username == "anna"
    assert (mailer.told(), api_client.trail.actions("mfa.remove")) == ([], [])


async def test_only_administrators_remove_factors(api_client: ApiClient, mailer: FakePostman) -> None:
    session, _, _ = await api_client.with_factor("anna")
    await api_client.world.register("bob")
    bob = await api_client.login("bob", PASSWORD)
    for asking in (session, bob):
        with pytest.raises(errors.NotAllowed, match="is no administrator"):
            await api_client.world.ask(auth.remove_mfa, auth.RemoveMfa("anna"), asking.access_token)


@pytest.mark.parametrize(("name", "error", "said"), [("admin", errors.NotAllowed, "your own"), ("nobody", errors.NotFound, "nobody")])
async def test_administrators_cannot_remove_their_own_factor(
    api_client: ApiClient, mailer: FakePostman, name: str, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        await remove(api_client, name)
