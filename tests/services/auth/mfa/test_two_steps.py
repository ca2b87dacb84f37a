"""Logins in two steps: what a half-done one is good for, and what a code is."""

import asyncio

import msgspec
import pytest

from services.auth.mfa import totp
from shared import errors
from shared.access import access_table
from shared.access.access_table import Audience
from shared.api import auth
from shared.api.auth import Step
from shared.api.method import Method, Nothing
from shared.types import Credential, Role
from tests.services.auth.mfa.equipment import WEB, Desk
from tests.services.auth.surroundings import PASSWORD, call


async def test_a_login_with_the_code_at_once_takes_one_step(desk: Desk) -> None:
    _, phone, _ = await desk.with_factor()
    session = await desk.login(code=phone.next_code())
    assert session.step is Step.DONE
    principal = await desk.identify(session)
    assert (principal.step, principal.username) == (Step.DONE, "anna")


async def test_a_login_in_two_steps_goes_on_under_another_id_and_another_token(desk: Desk) -> None:
    _, phone, _ = await desk.with_factor()
    half = await desk.browse()
    assert half.step is Step.ENTER_CODE
    whole = await desk.confirm(half, phone.next_code())
    assert whole.step is Step.DONE
    assert whole.session_token != half.session_token
    assert (await desk.identify(whole)).step is Step.DONE
    with pytest.raises(errors.NotAuthenticated):
        await desk.identify(half)
    with pytest.raises(errors.NotAuthenticated):
        await desk.world.ask(auth.resume_session, auth.ResumeSession(half.session_token))
    again = await desk.world.ask(auth.resume_session, auth.ResumeSession(whole.session_token))
    assert again.session_token == whole.session_token


async def test_half_a_login_is_good_for_its_step_and_nothing_else(desk: Desk) -> None:
    """Every row of the table, through the gate."""
    await desk.with_factor()
    half = await desk.login()
    gate = desk.world.dispatcher.gate
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


async def test_a_refreshed_half_is_still_half(desk: Desk) -> None:
    await desk.with_factor()
    half = await desk.login()
    refreshed = await desk.world.ask(auth.refresh_session, auth.RefreshSession(half.session_token))
    assert refreshed.step is Step.ENTER_CODE
    with pytest.raises(errors.SecondFactorNeeded):
        await desk.world.ask(auth.list_api_keys, auth.ListApiKeys(), refreshed.access_token)


async def test_a_login_that_lacks_nothing_confirms_nothing(desk: Desk) -> None:
    session, phone, _ = await desk.with_factor()
    with pytest.raises(errors.BadRequest, match="lacks no code"):
        await desk.confirm(session, phone.next_code())


# --- codes -------------------------------------------------------------------------------------------------------------------


async def test_of_many_uses_of_one_code_one_succeeds_on_whichever_replica(desk: Desk, replica: Desk) -> None:
    _, phone, _ = await desk.with_factor()
    for _ in range(3):
        code = phone.next_code()
        halves = await asyncio.gather(*((desk if n % 2 else replica).login() for n in range(5)))
        outcomes = await asyncio.gather(
            *((desk if n % 2 else replica).confirm(half, code) for n, half in enumerate(halves)), return_exceptions=True
        )
        assert len([found for found in outcomes if isinstance(found, auth.LoginSession)]) == 1
        for refused in outcomes:
            assert isinstance(refused, auth.LoginSession | errors.NotAllowed)


async def test_the_code_that_enabled_it_logs_nobody_in(desk: Desk) -> None:
    _, phone, _ = await desk.with_factor()
    with pytest.raises(errors.NotAuthenticated, match="used before"):
        await desk.login(code=phone.code())
    with pytest.raises(errors.NotAuthenticated, match="used before"):
        await desk.login(code=phone.code(-1))
    await desk.login(code=phone.next_code())


@pytest.mark.parametrize(("steps", "is_good"), [(-2, False), (-1, True), (0, True), (1, True), (2, False)])
async def test_a_phone_may_be_thirty_seconds_off(desk: Desk, steps: int, is_good: bool) -> None:
    _, phone, _ = await desk.with_factor()
    # Into the middle of a step, far from the one that is used.
    desk.clock.ahead += 300 + totp.STEP_SECONDS / 2 - desk.clock() % totp.STEP_SECONDS
    if is_good:
        assert (await desk.login(code=phone.code(steps))).step is Step.DONE
        return
    with pytest.raises(errors.NotAuthenticated):
        await desk.login(code=phone.code(steps))


async def test_codes_have_five_guesses_from_one_address_however_many_logins_are_begun(desk: Desk) -> None:
    _, phone, _ = await desk.with_factor()
    code = phone.next_code()
    wrong = [f"{number:06}" for number in range(60) if f"{number:06}" != code]
    refusals = []
    for guess in wrong[:30]:
        with pytest.raises((errors.NotAuthenticated, errors.Limited)) as refused:
            await desk.login(code=guess)
        refusals.append(type(refused.value))
    assert refusals.count(errors.NotAuthenticated) == 5
    half = await desk.login()
    with pytest.raises(errors.Limited):
        await desk.confirm(half, code)
    assert half.step is Step.ENTER_CODE, "the password itself is still taken"


async def test_who_knows_the_password_cannot_lock_the_owner_out_of_entering_codes(desk: Desk) -> None:
    _, phone, _ = await desk.with_factor()
    first = await desk.confirm(await desk.browse(), phone.next_code())
    assert first.browser
    code = phone.next_code()
    wrong = [f"{number:06}" for number in range(30) if f"{number:06}" != code]
    for number, guess in enumerate(wrong):
        with pytest.raises((errors.NotAuthenticated, errors.Limited)):
            await desk.login(code=guess, client=auth.ClientFacts(f"198.51.100.{number}"), peer=WEB)
    with pytest.raises(errors.Limited):
        await desk.confirm(await desk.browse(), code)
    half = await desk.browse(browser=first.browser)
    whole = await desk.confirm(half, code)
    assert whole.browser == first.browser


async def test_who_guesses_the_password_learns_nothing_of_a_second_factor(desk: Desk) -> None:
    _, phone, codes = await desk.with_factor("anna")
    await desk.world.register("ben")
    asked: list[object] = []
    state, take = desk.logins._factors.state, desk.logins._factors.take

    async def counted_state(user_id: object) -> object:
        asked.append(user_id)
        return await state(user_id)  # type: ignore[arg-type]

    async def counted_take(user_id: object, code: str, address: str = "") -> object:
        asked.append(user_id)
        return await take(user_id, code, address)  # type: ignore[arg-type]

    desk.logins._factors.state = counted_state  # type: ignore[method-assign, assignment]
    desk.logins._factors.take = counted_take  # type: ignore[method-assign, assignment]
    answers = set()
    for name in ("anna", "ben", "nobody"):
        for code in (None, "123456", phone.next_code(), codes[0]):
            with pytest.raises(errors.NotAuthenticated) as refused:
                await desk.login(name, "wrong_password", code)
            answers.add((refused.value.message, refused.value.hint))
    assert len(answers) == 1
    assert asked == [], "no work that depends on it either"
    assert (await desk.login("anna")).step is Step.ENTER_CODE


# --- being fresh again -----------------------------------------------------------------------------------------------------


async def test_the_password_confirms_where_there_is_no_second_factor(desk: Desk) -> None:
    await desk.world.register("anna")
    session = await desk.login()
    await _make_stale(desk, session)
    with pytest.raises(errors.ConfirmationNeeded):
        await desk.world.new_key(session.access_token)
    with pytest.raises(errors.NotAllowed, match="password is wrong"):
        await desk.confirm_again(session, "wrong_password")
    with pytest.raises(errors.BadRequest):
        await desk.confirm_again(session)
    with pytest.raises(errors.ConfirmationNeeded):
        await desk.world.new_key(session.access_token)
    await desk.confirm_again(session, PASSWORD)
    await desk.world.new_key(session.access_token)


async def test_where_there_is_one_the_password_is_not_enough(desk: Desk) -> None:
    session, phone, codes = await desk.with_factor()
    await _make_stale(desk, session)
    with pytest.raises(errors.SecondFactorNeeded):
        await desk.confirm_again(session, PASSWORD)
    with pytest.raises(errors.NotAllowed, match="code is wrong"):
        await desk.confirm_again(session, PASSWORD, "000000")
    with pytest.raises(errors.ConfirmationNeeded):
        await desk.world.new_key(session.access_token)
    await desk.confirm_again(session, code=phone.next_code())
    await desk.world.new_key(session.access_token)
    await _make_stale(desk, session)
    await desk.confirm_again(session, code=codes[0])
    await desk.world.new_key(session.access_token, "another")


async def test_confirming_is_no_way_to_guess_passwords(desk: Desk) -> None:
    await desk.world.register("anna")
    session = await desk.login()
    outcomes = await asyncio.gather(*(desk.confirm_again(session, f"wrong_password{n}") for n in range(30)), return_exceptions=True)
    assert sum(type(outcome) is errors.NotAllowed for outcome in outcomes) == 5
    assert sum(type(outcome) is errors.Limited for outcome in outcomes) == 25
    with pytest.raises(errors.Limited):
        await desk.login()


async def test_a_key_needs_no_confirmation_and_gets_none(desk: Desk) -> None:
    _, new = await desk.world.user_with_key("anna")
    with pytest.raises(errors.NotAllowed, match="needs a login"):
        await desk.world.ask(auth.confirm_again, auth.ConfirmAgain(PASSWORD), new.api_key)


async def _make_stale(desk: Desk, session: auth.LoginSession) -> None:
    sessions = desk.parts.sessions
    found = await desk.parts.identities.session_of(session.access_token)
    real = sessions._clock
    sessions._clock = lambda: real() - access_table.FRESH_SECONDS - 1
    await sessions.confirm(found, has_factor=found.has_factor)
    sessions._clock = real


# --- links -----------------------------------------------------------------------------------------------------------------


async def test_a_link_of_a_login_with_a_code_needs_none_again(desk: Desk) -> None:
    _, phone, _ = await desk.with_factor()
    session = await desk.login(code=phone.next_code())
    link = await desk.world.ask(auth.create_login_link, auth.CreateLoginLink(), session.access_token)
    opened = await desk.world.ask(auth.redeem_login_link, auth.RedeemLoginLink(link.token), peer=WEB)
    assert opened.step is Step.DONE
    assert (await desk.identify(opened)).confirmed_at == (await desk.identify(session)).confirmed_at


async def test_a_link_of_a_key_lacks_the_code(desk: Desk) -> None:
    session, phone, _ = await desk.with_factor()
    new = await desk.world.new_key(session.access_token)
    link = await desk.world.ask(auth.create_login_link, auth.CreateLoginLink(), new.api_key)
    opened = await desk.world.ask(auth.redeem_login_link, auth.RedeemLoginLink(link.token), peer=WEB)
    assert opened.step is Step.ENTER_CODE
    assert (await desk.confirm(opened, phone.next_code())).step is Step.DONE


async def test_what_is_said_of_a_login_in_the_log_has_no_secret_in_it(desk: Desk) -> None:
    _, phone, codes = await desk.with_factor()
    code = phone.next_code()
    half = await desk.browse()
    with pytest.raises(errors.NotAllowed):
        await desk.confirm(half, codes[0][:-1] + "!")
    whole = await desk.confirm(half, code)
    with pytest.raises(errors.NotAuthenticated):
        await desk.browse(password="wrong_password")
    written = msgspec.json.encode(desk.trail.acts).decode()
    assert all(secret not in written for secret in (code, *codes, PASSWORD, whole.session_token, half.session_token, phone.seed.hex()))
    assert "203.0.113.7" in written
    assert desk.trail.actions("session.open").count("session.open") == 4, (
        "the first login, the refused code, the whole one, the refused password"
    )


async def test_a_credential_that_is_none_is_refused(desk: Desk) -> None:
    for credential in (None, Credential(""), Credential("aip_live_x"), Credential("a.b.c")):
        with pytest.raises(errors.NotAuthenticated):
            await desk.world.ask(auth.confirm_login, auth.ConfirmLogin("123456"), credential)
