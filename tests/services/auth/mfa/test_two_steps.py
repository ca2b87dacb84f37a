"""Logins in two steps: what an incomplete login may do, and which codes are accepted."""

import asyncio

import msgspec
import pytest

from services.auth.mfa import totp
from services.auth.sessions.identities import NEEDS_LOGIN, SESSION_OVER, WRONG_CODE, WRONG_PASSWORD
from shared import access_table, errors
from shared.access_rules import Audience
from shared.access_table import IS_SENSITIVE
from shared.api import auth
from shared.api.auth import Step
from shared.api.method import Method, Nothing
from shared.types import Credential, Role
from tests.services.auth.mfa.equipment import WEB, ApiClient
from tests.services.auth.surroundings import ADMIN_PASSWORD, PASSWORD, call


async def test_a_login_with_the_code_takes_one_step(api_client: ApiClient) -> None:
    _, phone, _ = await api_client.with_factor()
    session = await api_client.login(code=phone.next_code())
    assert session.step is Step.DONE
    principal = await api_client.identify(session)
    assert (principal.step, principal.username) == (Step.DONE, "anna")


async def test_a_two_step_login_continues_with_a_new_id_and_token(api_client: ApiClient) -> None:
    _, phone, _ = await api_client.with_factor()
    half = await api_client.browse()
    assert half.step is Step.ENTER_CODE
    whole = await api_client.confirm(half, phone.next_code())
    assert whole.step is Step.DONE
    assert whole.session_token != half.session_token
    assert (await api_client.identify(whole)).step is Step.DONE
    with pytest.raises(errors.NotAuthenticated, match=SESSION_OVER):
        await api_client.identify(half)
    with pytest.raises(errors.NotAuthenticated, match=SESSION_OVER):
        await api_client.world.ask(auth.resume_session, auth.ResumeSession(half.session_token))
    again = await api_client.world.ask(auth.resume_session, auth.ResumeSession(whole.session_token))
    assert again.session_token == whole.session_token


async def test_an_incomplete_login_only_allows_its_missing_step(api_client: ApiClient) -> None:
    """Check every row of the access table, through the gate."""
    await api_client.with_factor()
    half = await api_client.login()
    gate = api_client.world.dispatcher.gate
    assert gate is not None
    visitor = call(half.access_token)
    admitted = set()
    for name, row in access_table.METHODS.items():
        if row.who is not Audience.PERSON:
            continue
        try:
            await gate.admit(Method(name, Nothing, Nothing, callers={Role.CLIENT}), Nothing(), visitor)
        except errors.SecondFactorNeeded:
            assert not row.halfway
        else:
            admitted.add(name)
    assert admitted == {"auth.confirmLogin", "auth.beginMfa", "auth.enableMfa"}


async def test_a_refreshed_incomplete_login_is_still_incomplete(api_client: ApiClient) -> None:
    await api_client.with_factor()
    half = await api_client.login()
    refreshed = await api_client.world.ask(auth.refresh_session, auth.RefreshSession(half.session_token))
    assert refreshed.step is Step.ENTER_CODE
    with pytest.raises(errors.SecondFactorNeeded, match="the login lacks its code"):
        await api_client.world.ask(auth.list_api_keys, auth.ListApiKeys(), refreshed.access_token)


async def test_a_complete_login_needs_no_code(api_client: ApiClient) -> None:
    session, phone, _ = await api_client.with_factor()
    with pytest.raises(errors.BadRequest, match="needs no code"):
        await api_client.confirm(session, phone.next_code())


# --- codes -------------------------------------------------------------------------------------------------------------------


async def test_one_of_many_uses_of_a_code_succeeds_on_any_replica(api_client: ApiClient, replica: ApiClient) -> None:
    _, phone, _ = await api_client.with_factor()
    for _ in range(3):
        code = phone.next_code()
        halves = await asyncio.gather(*((api_client if n % 2 else replica).login() for n in range(5)))
        outcomes = await asyncio.gather(
            *((api_client if n % 2 else replica).confirm(half, code) for n, half in enumerate(halves)), return_exceptions=True
        )
        assert len([found for found in outcomes if isinstance(found, auth.LoginSession)]) == 1
        # Uses after the success are failed attempts, which may reach the limit before the next success.
        for refused in outcomes:
            assert isinstance(refused, auth.LoginSession | errors.NotAllowed | errors.Limited), refused


async def test_the_code_that_enabled_the_factor_logs_nobody_in(api_client: ApiClient) -> None:
    _, phone, _ = await api_client.with_factor()
    with pytest.raises(errors.NotAuthenticated, match="already used"):
        await api_client.login(code=phone.code())
    with pytest.raises(errors.NotAuthenticated, match="already used"):
        await api_client.login(code=phone.code(-1))
    await api_client.login(code=phone.next_code())


@pytest.mark.parametrize(("steps", "is_good"), [(-2, False), (-1, True), (0, True), (1, True), (2, False)])
async def test_a_phone_may_be_thirty_seconds_off(api_client: ApiClient, steps: int, is_good: bool) -> None:
    _, phone, _ = await api_client.with_factor()
    # Move to the middle of a step, far from the step of the code that was used.
    api_client.clock.ahead += 300 + totp.STEP_SECONDS / 2 - api_client.clock() % totp.STEP_SECONDS
    if is_good:
        assert (await api_client.login(code=phone.code(steps))).step is Step.DONE
        return
    with pytest.raises(errors.NotAuthenticated, match=WRONG_CODE):
        await api_client.login(code=phone.code(steps))


async def test_an_address_has_five_attempts_at_codes_over_any_number_of_logins(api_client: ApiClient) -> None:
    _, phone, _ = await api_client.with_factor()
    code = phone.next_code()
    wrong = [f"{number:06}" for number in range(60) if f"{number:06}" != code]
    refusals = []
    for guess in wrong[:30]:
        with pytest.raises((errors.NotAuthenticated, errors.Limited)) as refused:
            await api_client.login(code=guess)
        refusals.append(type(refused.value))
    assert refusals.count(errors.NotAuthenticated) == 5
    half = await api_client.login()
    with pytest.raises(errors.Limited, match="too many failed logins for this account from your address"):
        await api_client.confirm(half, code)
    assert half.step is Step.ENTER_CODE, "the password itself is still taken"


async def test_knowing_the_password_does_not_allow_locking_the_owner_out_of_codes(api_client: ApiClient) -> None:
    _, phone, _ = await api_client.with_factor()
    first = await api_client.confirm(await api_client.browse(), phone.next_code())
    assert first.browser
    code = phone.next_code()
    wrong = [f"{number:06}" for number in range(30) if f"{number:06}" != code]
    for number, guess in enumerate(wrong):
        with pytest.raises(
            (errors.NotAuthenticated, errors.Limited),
            match=r"the code is wrong, or was used before|too many failed logins for this account|the code is wrong, or was already used",
        ):
            await api_client.login(code=guess, client=auth.ClientFacts(f"198.51.100.{number}"), peer=WEB)
    with pytest.raises(errors.Limited, match="too many failed logins for this account"):
        await api_client.confirm(await api_client.browse(), code)
    half = await api_client.browse(browser=first.browser)
    whole = await api_client.confirm(half, code)
    assert whole.browser == first.browser


async def test_guessing_the_password_reveals_nothing_about_a_second_factor(api_client: ApiClient) -> None:
    _, phone, codes = await api_client.with_factor("anna")
    await api_client.world.register("ben")
    asked: list[object] = []
    find, take = api_client.logins._factors.find, api_client.logins._factors.take

    async def counted_find(user_id: object) -> object:
        asked.append(user_id)
        return await find(user_id)  # type: ignore[arg-type]

    async def counted_take(user_id: object, code: str, address: str = "") -> object:
        asked.append(user_id)
        return await take(user_id, code, address)  # type: ignore[arg-type]

    api_client.logins._factors.find = counted_find  # type: ignore[method-assign, assignment]
    api_client.logins._factors.take = counted_take  # type: ignore[method-assign, assignment]
    answers = set()
    for name in ("anna", "ben", "nobody"):
        for code in (None, "123456", phone.next_code(), codes[0]):
            with pytest.raises(errors.NotAuthenticated) as refused:
                await api_client.login(name, "wrong_password", code)
            answers.add((refused.value.message, refused.value.hint))
    assert len(answers) == 1
    assert asked == [], "no work that depends on it either"
    assert (await api_client.login("anna")).step is Step.ENTER_CODE


# --- confirming a login again ----------------------------------------------------------------------------------------------


async def test_without_a_second_factor_the_password_confirms(api_client: ApiClient) -> None:
    await api_client.world.register("anna")
    session = await api_client.login()
    await _make_stale(api_client, session)
    with pytest.raises(errors.ConfirmationNeeded, match=IS_SENSITIVE):
        await api_client.world.new_key(session.access_token)
    with pytest.raises(errors.NotAllowed, match="password is wrong"):
        await api_client.confirm_again(session, "wrong_password")
    with pytest.raises(errors.BadRequest, match="password: required to confirm this"):
        await api_client.confirm_again(session)
    with pytest.raises(errors.ConfirmationNeeded, match=IS_SENSITIVE):
        await api_client.world.new_key(session.access_token)
    await api_client.confirm_again(session, PASSWORD)
    await api_client.world.new_key(session.access_token)


async def test_with_a_second_factor_the_password_is_not_enough(api_client: ApiClient) -> None:
    session, phone, codes = await api_client.with_factor()
    await _make_stale(api_client, session)
    with pytest.raises(errors.SecondFactorNeeded, match="the password is not enough here"):
        await api_client.confirm_again(session, PASSWORD)
    with pytest.raises(errors.NotAllowed, match="code is wrong"):
        await api_client.confirm_again(session, PASSWORD, "000000")
    with pytest.raises(errors.ConfirmationNeeded, match=IS_SENSITIVE):
        await api_client.world.new_key(session.access_token)
    await api_client.confirm_again(session, code=phone.next_code())
    await api_client.world.new_key(session.access_token)
    await _make_stale(api_client, session)
    await api_client.confirm_again(session, code=codes[0])
    await api_client.world.new_key(session.access_token, "another")


async def test_confirming_cannot_be_used_to_guess_passwords(api_client: ApiClient) -> None:
    await api_client.world.register("anna")
    session = await api_client.login()
    outcomes = await asyncio.gather(*(api_client.confirm_again(session, f"wrong_password{n}") for n in range(30)), return_exceptions=True)
    assert sum(type(outcome) is errors.NotAllowed for outcome in outcomes) == 5
    assert sum(type(outcome) is errors.Limited for outcome in outcomes) == 25
    with pytest.raises(errors.Limited, match="too many failed logins for this account from your address"):
        await api_client.login()


async def test_a_key_needs_no_confirmation_and_gets_none(api_client: ApiClient) -> None:
    _, new = await api_client.world.user_with_key("anna")
    with pytest.raises(errors.NotAllowed, match=NEEDS_LOGIN):
        await api_client.world.ask(auth.confirm_again, auth.ConfirmAgain(PASSWORD), new.api_key)


async def _make_stale(api_client: ApiClient, session: auth.LoginSession) -> None:
    sessions = api_client.parts.sessions
    found = await api_client.parts.identities.session_of(session.access_token)
    real = sessions._clock
    sessions._clock = lambda: real() - access_table.FRESH_SECONDS - 1
    await sessions.confirm(found, has_factor=found.has_factor)
    sessions._clock = real


# --- links -----------------------------------------------------------------------------------------------------------------


async def test_a_link_from_a_login_with_a_code_needs_no_code(api_client: ApiClient) -> None:
    _, phone, _ = await api_client.with_factor()
    session = await api_client.login(code=phone.next_code())
    link = await api_client.world.ask(auth.create_login_link, auth.CreateLoginLink(), session.access_token)
    opened = await api_client.world.ask(auth.redeem_login_link, auth.RedeemLoginLink(link.token), peer=WEB)
    assert opened.step is Step.DONE
    assert (await api_client.identify(opened)).confirmed_at == 0


async def test_a_link_from_a_key_lacks_the_code(api_client: ApiClient) -> None:
    session, phone, _ = await api_client.with_factor()
    new = await api_client.world.new_key(session.access_token)
    link = await api_client.world.ask(auth.create_login_link, auth.CreateLoginLink(), new.api_key)
    opened = await api_client.world.ask(auth.redeem_login_link, auth.RedeemLoginLink(link.token), peer=WEB)
    assert opened.step is Step.ENTER_CODE
    assert (await api_client.confirm(opened, phone.next_code())).step is Step.DONE


async def test_login_entries_in_the_log_contain_no_secret(api_client: ApiClient) -> None:
    _, phone, codes = await api_client.with_factor()
    code = phone.next_code()
    half = await api_client.browse()
    with pytest.raises(errors.NotAllowed, match=WRONG_CODE):
        await api_client.confirm(half, codes[0][:-1] + "!")
    whole = await api_client.confirm(half, code)
    with pytest.raises(errors.NotAuthenticated, match=WRONG_PASSWORD):
        await api_client.browse(password="wrong_password")
    written = msgspec.json.encode(api_client.trail.acts).decode()
    assert all(secret not in written for secret in (code, *codes, PASSWORD, whole.session_token, half.session_token, phone.seed.hex()))
    assert "203.0.113.7" in written
    assert api_client.trail.actions("session.open").count("session.open") == 4, (
        "the first login, the refused code, the whole one, the refused password"
    )


async def test_an_invalid_credential_is_refused(api_client: ApiClient) -> None:
    for credential in (None, Credential(""), Credential("aip_live_x"), Credential("a.b.c")):
        with pytest.raises(
            errors.NotAuthenticated,
            match=r"the credential is neither an API key|this call needs a credential|this is not an API key: its checksum or",
        ):
            await api_client.world.ask(auth.confirm_login, auth.ConfirmLogin("123456"), credential)


async def test_a_device_login_needs_no_code_of_its_own_and_works_across_replicas(api_client: ApiClient, replica: ApiClient) -> None:
    """The administrator sets up the second factor in the browser, on the way to the page that approves."""
    asked = auth.BeginDeviceLogin("laptop")
    begun = await api_client.world.ask(auth.begin_device_login, asked)
    halfway = await api_client.browse("admin", ADMIN_PASSWORD)
    decision = auth.DecideDeviceLogin(begun.user_code, approve=True)
    with pytest.raises(errors.SecondFactorNeeded, match="administrators need a second factor"):
        await replica.world.ask(auth.decide_device_login, decision, halfway.access_token, peer=WEB)
    phone = await api_client.begin(halfway)
    enabled = await api_client.enable(halfway, phone.code())
    assert enabled.session is not None
    await replica.world.ask(auth.decide_device_login, decision, enabled.session.access_token, peer=WEB)
    session = await api_client.world.ask(auth.poll_device_login, auth.PollDeviceLogin(begun.device_code))
    assert session.step is Step.DONE
    request = auth.GenerateApiKey("laptop", kind=auth.KeyKind.ADMIN, all_rights=True)
    await api_client.world.ask(auth.generate_api_key, request, session.access_token)
