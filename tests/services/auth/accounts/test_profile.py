"""Reading and changing one's own account."""

import asyncio

import pytest

from services.auth.sessions.identities import NEEDS_LOGIN
from shared import access_table, errors
from shared.access_table import IS_SENSITIVE
from shared.api import accounts, auth
from shared.api.accounts import Preferences
from shared.types import ModelName, TenantId, UserId, UserRole
from tests.cases import case
from tests.services.auth.accounts.surroundings import ApiClient, by_hand


async def test_the_settings_page_shows_the_profile(api_client: ApiClient) -> None:
    anna = await api_client.person()
    shown = await api_client.ask(accounts.get_account, accounts.GetAccount(), anna.login())
    assert shown == accounts.OwnAccount(anna.user, Preferences(), has_password=True, mfa_enabled=False, recovery_codes_left=0)
    api_client.factors.enabled[anna.id] = 7
    chosen = Preferences(ModelName("llama"), "dark", notify_by_mail=False)
    assert await api_client.ask(accounts.set_preferences, accounts.SetPreferences(chosen), anna.login()) == chosen
    shown = await api_client.ask(accounts.get_account, accounts.GetAccount(), anna.login())
    assert (shown.preferences, shown.mfa_enabled, shown.recovery_codes_left) == (chosen, True, 7)


async def test_a_user_of_a_provider_has_no_password(api_client: ApiClient) -> None:
    anna = await api_client.person(password=None)
    shown = await api_client.ask(accounts.get_account, accounts.GetAccount(), anna.login())
    assert not shown.has_password


async def test_preferences_are_personal_even_when_acting_for_an_organisation(api_client: ApiClient) -> None:
    anna, bert = await api_client.person("anna"), await api_client.person("bert")
    team = TenantId(UserId(bert.id))
    chosen = Preferences(None, "light")
    await api_client.ask(accounts.set_preferences, accounts.SetPreferences(chosen), anna.login(team_id=team))
    shown = await api_client.ask(accounts.get_account, accounts.GetAccount(), anna.login(team_id=team))
    assert (shown.user.id, shown.preferences) == (anna.id, chosen)
    assert (await api_client.ask(accounts.get_account, accounts.GetAccount(), bert.login())).preferences == Preferences()


@pytest.mark.parametrize(
    "chosen",
    [
        pytest.param(Preferences(theme="pink"), id="a theme that is none"),
        pytest.param(Preferences(theme="<script>"), id="HTML"),
        pytest.param(Preferences(ModelName("x" * 201)), id="a name without end"),
        pytest.param(Preferences(ModelName("a\nb")), id="a newline"),
        pytest.param(Preferences(ModelName("")), id="nothing"),
    ],
)
async def test_invalid_preferences_are_refused(api_client: ApiClient, chosen: Preferences) -> None:
    anna = await api_client.person()
    with pytest.raises(
        errors.BadRequest, match=r"defaultModel: the name of a model|theme: light, dark, system|defaultModel: must be the name of a model"
    ):
        await api_client.ask(accounts.set_preferences, accounts.SetPreferences(chosen), anna.login())
    assert (await api_client.ask(accounts.get_account, accounts.GetAccount(), anna.login())).preferences == Preferences()


async def test_a_user_changes_name_and_address(api_client: ApiClient) -> None:
    anna = await api_client.person()
    asked = accounts.ChangeProfile("anna_b", "anna@other.example")
    user = await api_client.ask(accounts.change_profile, asked, anna.login())
    assert (user.username, user.email) == ("anna_b", "anna@other.example")
    assert await anna.again() == user
    assert api_client.mailer.told() == [
        ("anna@example.com", "Your email address was changed"),
        ("anna@other.example", "Your email address was changed"),
    ]
    assert [(act.action, act.target, act.details) for act in api_client.trail.acts] == [
        ("account.change", str(anna.id), {"changed": "username,email"})
    ]
    assert (await api_client.ask(accounts.change_profile, asked, anna.login())) == user
    assert api_client.mailer.told() == []
    assert len(api_client.trail.acts) == 1, "the same again changes nothing"


async def test_a_new_address_needs_a_fresh_login_but_a_new_name_does_not(api_client: ApiClient) -> None:
    anna = await api_client.person()
    stale = anna.login(seconds_ago=access_table.FRESH_SECONDS + 1)
    assert (await api_client.ask(accounts.change_profile, accounts.ChangeProfile("anna_b"), stale)).username == "anna_b"
    with pytest.raises(errors.ConfirmationNeeded, match=IS_SENSITIVE):
        await api_client.ask(accounts.change_profile, accounts.ChangeProfile(email="eve@example.com"), stale)
    assert (await anna.again()).email == "anna@example.com"
    assert api_client.mailer.told() == []


async def test_a_leaked_key_cannot_take_over_the_account(api_client: ApiClient) -> None:
    anna = await api_client.person()
    with pytest.raises(errors.NotAllowed, match=NEEDS_LOGIN):
        await api_client.ask(accounts.change_profile, accounts.ChangeProfile(email="eve@example.com"), anna.key())
    with pytest.raises(errors.NotAllowed, match=NEEDS_LOGIN):
        await api_client.ask(accounts.change_password, accounts.ChangePassword("eves own password"), anna.key())
    with pytest.raises(errors.NotAllowed, match="account:write"):
        await api_client.ask(accounts.change_profile, accounts.ChangeProfile("eve"), anna.key("inference:execute"))


async def test_taken_and_invalid_names_are_refused(api_client: ApiClient) -> None:
    anna, _ = await api_client.person("anna"), await api_client.person("bert")
    for change, error in (
        (accounts.ChangeProfile("BERT"), errors.AlreadyExists),
        (accounts.ChangeProfile(email="Bert@Example.com"), errors.AlreadyExists),
        (accounts.ChangeProfile("Admin"), errors.AlreadyExists),
        (accounts.ChangeProfile("a b"), errors.BadRequest),
        (accounts.ChangeProfile(email="a@b.c\nBcc: x@y.z"), errors.BadRequest),
        # The name is free, but the email address is taken.
        (accounts.ChangeProfile("carla", "bert@example.com"), errors.AlreadyExists),
    ):
        with case(change), pytest.raises(error):
            await api_client.ask(accounts.change_profile, change, anna.login())
        assert await anna.again() == anna.user
    assert api_client.mailer.told() == []


async def test_one_of_ten_concurrent_users_gets_a_name(api_client: ApiClient) -> None:
    people = [await api_client.person(f"anna{number}") for number in range(10)]
    asked = (api_client.ask(accounts.change_profile, accounts.ChangeProfile("same_name"), one.login()) for one in people)
    outcomes = await asyncio.gather(*asked, return_exceptions=True)
    assert sum(isinstance(outcome, auth.User) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, errors.AlreadyExists) for outcome in outcomes) == 9


async def test_a_code_mailed_to_the_old_address_stops_working(api_client: ApiClient) -> None:
    anna = await api_client.person()
    await api_client.ask(accounts.request_password_reset, accounts.RequestPasswordReset("anna"))
    await api_client.changes.settled()
    await api_client.ask(accounts.change_profile, accounts.ChangeProfile(email="new@example.com"), anna.login())
    assert await by_hand(api_client.settings.database_url, "SELECT * FROM password_resets") == []


async def test_the_administrator_may_keep_or_change_the_reserved_name(api_client: ApiClient) -> None:
    admin = await api_client.person("someone", role=UserRole.ADMIN)
    await by_hand(api_client.settings.database_url, "UPDATE users SET username = 'admin' WHERE id = $1", admin.id)
    asked = accounts.ChangeProfile("admin", "a@b.c")
    assert (await api_client.ask(accounts.change_profile, asked, admin.login())).username == "admin"
