"""New passwords and real logins: which sessions continue, and what still logs in."""

from collections.abc import AsyncIterator
from typing import cast

import pytest

from services.auth.sessions.identities import SESSION_OVER
from shared import errors
from shared.api import accounts
from tests.services.auth.accounts.surroundings import ApiClient, FakeIdentities, FakeSessions, opened_accounts, token_of
from tests.services.auth.surroundings import Surroundings

NEW = "another good password"


@pytest.fixture
async def api_client(world: Surroundings) -> AsyncIterator[ApiClient]:
    """Account handlers beside the running service, with its sessions and identities."""
    service = world.service
    sessions, identities = cast("FakeSessions", service._wiring._parts.sessions), cast("FakeIdentities", service._identities)
    async with opened_accounts(service._settings, sessions=sessions, identities=identities) as opened:
        yield opened


async def test_a_new_password_ends_other_logins_and_keeps_this_one(world: Surroundings, api_client: ApiClient) -> None:
    await world.register()
    this, other = await world.login(), await world.login()
    _, key = await world.user_with_key("bert")
    await api_client.ask(accounts.change_password, accounts.ChangePassword(NEW), this.access_token)
    assert (await api_client.ask(accounts.get_account, accounts.GetAccount(), this.access_token)).user == this.user
    with pytest.raises(errors.NotAuthenticated, match=SESSION_OVER):
        await api_client.ask(accounts.get_account, accounts.GetAccount(), other.access_token)
    with pytest.raises(errors.NotAuthenticated, match="password is wrong"):
        await world.login()
    assert (await world.login(password=NEW)).user == this.user
    assert (await api_client.ask(accounts.get_account, accounts.GetAccount(), key.api_key)).user.username == "bert", "others go on"


async def test_a_reset_ends_every_login_and_no_key(world: Surroundings, api_client: ApiClient) -> None:
    user, key = await world.user_with_key()
    login = await world.login()
    await api_client.ask(accounts.request_password_reset, accounts.RequestPasswordReset(user.email))
    await api_client.changes.settled()
    await api_client.ask(accounts.reset_password, accounts.ResetPassword(token_of(api_client.mailer.sent.pop()), NEW))
    with pytest.raises(errors.NotAuthenticated, match=SESSION_OVER):
        await api_client.ask(accounts.get_account, accounts.GetAccount(), login.access_token)
    assert (await api_client.ask(accounts.get_account, accounts.GetAccount(), key.api_key)).user == user
    assert (await world.login(password=NEW)).user == user


async def test_a_key_cannot_set_a_password(world: Surroundings, api_client: ApiClient) -> None:
    _, key = await world.user_with_key()
    with pytest.raises(errors.NotAllowed, match="API key is not enough"):
        await api_client.ask(accounts.change_password, accounts.ChangePassword(NEW), key.api_key)
