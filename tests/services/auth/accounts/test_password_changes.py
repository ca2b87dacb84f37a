"""Setting a new password: by a logged-in user, or with a code from a reset mail."""

import asyncio

import pytest

from services.auth.accounts import request_limits
from services.auth.accounts.request_limits import FOR_AN_ACCOUNT, FOR_AN_ADDRESS
from services.auth.sessions import failed_logins
from shared import access_table, errors
from shared.access_table import IS_SENSITIVE
from shared.api import accounts, auth
from shared.types import NodeId
from tests.cases import case
from tests.services.auth.accounts.surroundings import CLIENT, WEB, ApiClient, Person, by_hand, token_of
from tests.services.auth.surroundings import PASSWORD

NEW = "another good password"


async def ask_for_mail(api_client: ApiClient, name: str, address: str = "192.0.2.1") -> None:
    client = auth.ClientFacts(address)
    await api_client.ask(accounts.request_password_reset, accounts.RequestPasswordReset(name, client), peer=WEB)
    await api_client.changes.settled()


async def mailed_token(api_client: ApiClient, person: Person) -> str:
    await ask_for_mail(api_client, person.user.username)
    return token_of(api_client.mailer.sent.pop())


async def reset(api_client: ApiClient, token: str, password: str = NEW) -> None:
    await api_client.ask(accounts.reset_password, accounts.ResetPassword(token, password))


# --- by a logged-in user ---------------------------------------------------------------------------------------------


async def test_a_new_password_ends_all_other_sessions_and_is_announced_by_mail(api_client: ApiClient) -> None:
    anna = await api_client.person()
    login = anna.login()
    await api_client.ask(accounts.change_password, accounts.ChangePassword(NEW), login)
    assert await api_client.has_password(anna.id, NEW)
    assert not await api_client.has_password(anna.id, PASSWORD)
    assert set(api_client.sessions.ended) == {(anna.id, f"session of {login}")}
    assert api_client.mailer.told() == [("anna@example.com", "Your password was changed")]
    assert api_client.trail.actions() == ["password.change"]


@pytest.mark.parametrize(
    ("password", "says"),
    [
        pytest.param("short", "shorter", id="short"),
        pytest.param("password123", "common", id="common"),
        pytest.param("anna12", "shorter", id="the name"),
        pytest.param("annaanna1", "hardly more", id="hardly more than the name"),
        pytest.param(PASSWORD, "your current one", id="the same again"),
        pytest.param("x" * 300, "longer", id="without end"),
    ],
)
async def test_bad_passwords_change_nothing(api_client: ApiClient, password: str, says: str) -> None:
    anna = await api_client.person()
    with pytest.raises(errors.BadRequest, match=says):
        await api_client.ask(accounts.change_password, accounts.ChangePassword(password), anna.login())
    assert await api_client.has_password(anna.id, PASSWORD)
    assert api_client.sessions.ended == []
    assert api_client.mailer.told() == []


async def test_a_password_change_needs_a_fresh_login(api_client: ApiClient) -> None:
    anna = await api_client.person()
    with pytest.raises(errors.ConfirmationNeeded, match=IS_SENSITIVE):
        stale = anna.login(seconds_ago=access_table.FRESH_SECONDS + 1)
        await api_client.ask(accounts.change_password, accounts.ChangePassword(NEW), stale)


async def test_if_sessions_cannot_be_ended_the_password_stays(api_client: ApiClient) -> None:
    anna = await api_client.person()
    api_client.sessions.away = True
    with pytest.raises(errors.Unavailable, match="Valkey does not answer"):
        await api_client.ask(accounts.change_password, accounts.ChangePassword(NEW), anna.login())
    assert await api_client.has_password(anna.id, PASSWORD)
    assert api_client.mailer.told() == []


async def test_a_user_of_a_provider_may_set_a_first_password(api_client: ApiClient) -> None:
    anna = await api_client.person(password=None)
    await api_client.ask(accounts.change_password, accounts.ChangePassword(NEW), anna.login())
    assert await api_client.has_password(anna.id, NEW)


# --- by reset mail ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["anna", "ANNA", "anna@example.com", " Anna@Example.com "])
async def test_a_forgotten_password_is_reset_with_a_mailed_code(api_client: ApiClient, name: str) -> None:
    anna = await api_client.person()
    await ask_for_mail(api_client, name)
    letter = api_client.mailer.sent.pop()
    assert letter.to == "anna@example.com"
    token = token_of(letter)
    assert f"https://ai.example.com/reset#{token}" in letter.text
    await reset(api_client, f" {token}\n")
    assert await api_client.has_password(anna.id, NEW)
    assert set(api_client.sessions.ended) == {(anna.id, None)}
    assert api_client.mailer.told() == [("anna@example.com", "Your password was changed")]
    assert api_client.trail.actions() == ["password.ask_reset", "password.reset"]


async def test_the_second_factor_and_keys_survive_a_reset(api_client: ApiClient) -> None:
    anna = await api_client.person()
    url = api_client.settings.database_url
    await by_hand(url, "INSERT INTO second_factors (user_id, sealed_seed, enabled_at) VALUES ($1, 'x', now())", anna.id)
    await by_hand(url, "INSERT INTO api_keys (id, user_id, key_hash, name, preview) VALUES (gen_random_uuid(), $1, 'h', 'n', 'p')", anna.id)
    await reset(api_client, await mailed_token(api_client, anna))
    assert len(await by_hand(url, "SELECT 1 FROM second_factors WHERE user_id = $1 AND enabled_at IS NOT NULL", anna.id)) == 1
    assert len(await by_hand(url, "SELECT 1 FROM api_keys WHERE user_id = $1 AND is_active", anna.id)) == 1


async def test_the_code_is_not_stored(api_client: ApiClient) -> None:
    anna = await api_client.person()
    token = await mailed_token(api_client, anna)
    assert len(token) == 43
    rows = await by_hand(api_client.settings.database_url, "SELECT * FROM password_resets")
    assert len(rows) == 1
    assert token not in repr(rows)
    assert token not in repr(api_client.trail.acts)


async def test_a_code_works_once(api_client: ApiClient) -> None:
    anna = await api_client.person()
    token = await mailed_token(api_client, anna)
    await reset(api_client, token)
    with pytest.raises(errors.NotAuthenticated, match="was used"):
        await reset(api_client, token, "yet another password")
    assert await api_client.has_password(anna.id, NEW)


async def test_only_one_of_ten_concurrent_uses_of_a_code_succeeds(api_client: ApiClient) -> None:
    anna = await api_client.person()
    token = await mailed_token(api_client, anna)
    outcomes = await asyncio.gather(*(reset(api_client, token, f"{NEW} {n}") for n in range(10)), return_exceptions=True)
    assert sum(outcome is None for outcome in outcomes) == 1
    assert sum(isinstance(outcome, errors.NotAuthenticated) for outcome in outcomes) == 9
    winner = outcomes.index(None)
    assert await api_client.has_password(anna.id, f"{NEW} {winner}")


async def test_only_the_newest_code_works(api_client: ApiClient) -> None:
    anna = await api_client.person()
    first, second = await mailed_token(api_client, anna), await mailed_token(api_client, anna)
    with pytest.raises(errors.NotAuthenticated, match="this code is wrong, was used, or has expired"):
        await reset(api_client, first)
    await reset(api_client, second)


async def test_a_code_expires_after_half_an_hour(api_client: ApiClient) -> None:
    anna = await api_client.person()
    token = await mailed_token(api_client, anna)
    url = api_client.settings.database_url
    left = (await by_hand(url, "SELECT extract(epoch FROM expires_at - now()) AS left FROM password_resets"))[0]["left"]
    assert 1790 < left <= 1800
    await by_hand(url, "UPDATE password_resets SET expires_at = now() - interval '1 millisecond'")
    with pytest.raises(errors.NotAuthenticated, match="has expired"):
        await reset(api_client, token)
    assert await api_client.has_password(anna.id, PASSWORD)


async def test_a_too_short_password_does_not_use_up_the_code(api_client: ApiClient) -> None:
    anna = await api_client.person()
    token = await mailed_token(api_client, anna)
    with pytest.raises(errors.BadRequest, match="password: it is shorter than 8 characters"):
        await reset(api_client, token, "short")
    await reset(api_client, token)


async def test_a_new_password_invalidates_the_code(api_client: ApiClient) -> None:
    anna = await api_client.person()
    token = await mailed_token(api_client, anna)
    await api_client.ask(accounts.change_password, accounts.ChangePassword(NEW), anna.login())
    with pytest.raises(errors.NotAuthenticated, match="this code is wrong, was used, or has expired"):
        await reset(api_client, token, "eves own password")


async def test_a_reset_unlocks_an_account_locked_by_failed_logins(api_client: ApiClient) -> None:
    anna = await api_client.person()
    counted = failed_logins.account_of(anna.id, "anna")
    with pytest.raises(errors.AimeshError, match="too many failed logins for this account"):
        for _ in range(1000):
            await api_client.guesses.charge(counted)
    await reset(api_client, await mailed_token(api_client, anna))
    await api_client.guesses.charge(counted)


async def test_invented_codes_cost_no_hash(api_client: ApiClient, monkeypatch: pytest.MonkeyPatch) -> None:
    anna = await api_client.person()
    await mailed_token(api_client, anna)

    async def never(password: str) -> str:
        raise AssertionError

    monkeypatch.setattr(api_client.passwords, "hash", never)
    invented = ("", "x", "A" * 43, "aip_live_" + "x" * 49, "' OR 1=1 --", "\0")
    for token in invented:
        with case(token), pytest.raises(errors.NotAuthenticated, match="this code is wrong, was used, or has expired"):
            await reset(api_client, token)
    assert api_client.identities.refusals == ["reset_over"] * len(invented)


async def test_a_closed_account_gets_no_mail_and_no_new_password(api_client: ApiClient) -> None:
    anna = await api_client.person()
    token = await mailed_token(api_client, anna)
    await by_hand(api_client.settings.database_url, "UPDATE users SET is_active = false WHERE id = $1", anna.id)
    with pytest.raises(errors.NotAuthenticated, match="this code is wrong, was used, or has expired"):
        await reset(api_client, token)
    await ask_for_mail(api_client, "anna")
    assert api_client.mailer.told() == []


async def test_a_user_of_a_provider_is_sent_to_the_provider(api_client: ApiClient) -> None:
    anna = await api_client.person(password=None)
    await ask_for_mail(api_client, "anna")
    assert api_client.mailer.told() == [(anna.user.email, "Your account has no password")]
    assert await by_hand(api_client.settings.database_url, "SELECT * FROM password_resets") == []


# --- no answer reveals an account ------------------------------------------------------------------------------------


async def test_the_answer_comes_before_the_account_is_looked_up(api_client: ApiClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """All answers are the same, and auth queries PostgreSQL only afterwards, so timing reveals nothing."""
    await api_client.person()
    looked_for: list[str] = []
    gate = asyncio.Event()
    find_account = api_client.store.find_account

    async def looking(name: str) -> object:
        await gate.wait()
        looked_for.append(name)
        return await find_account(name)

    monkeypatch.setattr(api_client.store, "find_account", looking)
    names = ("anna", "anna@example.com", "nobody", "nobody@example.com", "x\0y", "' OR 1=1 --", "")
    answers = [await api_client.ask(accounts.request_password_reset, accounts.RequestPasswordReset(name)) for name in names]
    assert len({repr(answer) for answer in answers}) == 1
    assert looked_for == []
    gate.set()
    await api_client.changes.settled()
    assert len(looked_for) == 7
    assert [to for to, _ in api_client.mailer.told()] == ["anna@example.com"] * 2


async def test_an_account_gets_three_mails_an_hour_with_the_same_answer(api_client: ApiClient) -> None:
    anna = await api_client.person()
    for number in range(9):
        await ask_for_mail(api_client, "anna" if number % 2 else "anna@example.com", f"192.0.2.{number}")
    assert api_client.mailer.told() == [(anna.user.email, "Set a new password")] * FOR_AN_ACCOUNT
    assert [act.details for act in api_client.trail.refused] == [{"why": "too many mails for this account"}] * 6


async def test_an_address_may_request_ten_resets_an_hour_for_any_accounts(api_client: ApiClient) -> None:
    for number in range(FOR_AN_ADDRESS):
        await ask_for_mail(api_client, f"nobody{number}")
    with pytest.raises(errors.Limited) as refused:
        await ask_for_mail(api_client, "anna")
    assert 3590 < (refused.value.retry_after_seconds or 0) <= 3600
    await ask_for_mail(api_client, "anna", "192.0.2.2")


async def test_a_client_cannot_choose_its_address(api_client: ApiClient) -> None:
    for number in range(FOR_AN_ADDRESS):
        request = accounts.RequestPasswordReset("anna", auth.ClientFacts(f"192.0.2.{number}"))
        await api_client.ask(accounts.request_password_reset, request, peer=CLIENT)
    with pytest.raises(errors.Limited, match="too many password resets were requested from your address"):
        await api_client.ask(
            accounts.request_password_reset, accounts.RequestPasswordReset("anna", auth.ClientFacts("192.0.2.99")), peer=CLIENT
        )


@pytest.mark.parametrize(
    ("address", "requester"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("", "UNODE"),
        ("nonsense", "UNODE"),
    ],
)
def test_whose_requests_are_counted(address: str, requester: str) -> None:
    assert request_limits.requester_of(address, NodeId("UNODE")) == requester


async def test_a_short_outage_loses_one_request_and_not_the_task(api_client: ApiClient, monkeypatch: pytest.MonkeyPatch) -> None:
    await api_client.person()
    find_account = api_client.store.find_account

    async def away(name: str) -> object:
        raise errors.Unavailable("PostgreSQL does not answer")

    monkeypatch.setattr(api_client.store, "find_account", away)
    await ask_for_mail(api_client, "anna")
    monkeypatch.setattr(api_client.store, "find_account", find_account)
    await ask_for_mail(api_client, "anna")
    assert len(api_client.mailer.told()) == 1


async def test_excess_requests_are_refused(api_client: ApiClient, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = asyncio.Event()

    async def waiting(name: str) -> None:
        await gate.wait()

    monkeypatch.setattr(api_client.store, "find_account", waiting)

    async def one(number: int) -> None:
        client = auth.ClientFacts(f"10.0.{number // 250}.{number % 250}")
        await api_client.ask(accounts.request_password_reset, accounts.RequestPasswordReset("anna", client), peer=WEB)

    outcomes = await asyncio.gather(*(one(number) for number in range(300)), return_exceptions=True)
    assert sum(isinstance(outcome, errors.Overloaded) for outcome in outcomes) >= 90
    gate.set()
    await api_client.changes.settled()
