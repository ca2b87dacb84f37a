"""Setting up a second factor, and doing without it again."""

import asyncio

import msgspec
import pytest

from services.auth import sealing
from services.auth.mfa import totp
from services.auth.sealing import DataSealer
from services.auth.sessions.session_store import StoredLogin
from services.auth.settings import AuthSettings
from shared import errors
from shared.access import access_table
from shared.api import accounts, audit, auth
from shared.api.auth import Step
from tests.services.auth import by_hand
from tests.services.auth.mfa.equipment import Desk
from tests.services.auth.surroundings import ADMIN_PASSWORD, PASSWORD


async def test_it_is_in_force_once_a_right_code_was_shown_and_not_before(desk: Desk) -> None:
    await desk.world.register("anna")
    session = await desk.login()
    phone = await desk.begin(session)
    assert (await desk.login()).step is Step.DONE
    wrong = f"{(int(phone.code()) + 1) % 1_000_000:06}"
    with pytest.raises(errors.BadRequest, match="code"):
        await desk.enable(session, wrong)
    assert (await desk.login()).step is Step.DONE
    made = await desk.enable(session, phone.code())
    assert len(set(made.codes)) == 10
    assert made.session is None, "this login lacked nothing"
    assert (await desk.login()).step is Step.ENTER_CODE
    assert desk.trail.actions("mfa.enable") == ["mfa.enable"]


async def test_beginning_anew_replaces_what_was_not_finished(desk: Desk) -> None:
    await desk.world.register("anna")
    session = await desk.login()
    first = await desk.begin(session)
    second = await desk.begin(session)
    assert first.seed != second.seed
    with pytest.raises(errors.BadRequest):
        await desk.enable(session, first.code())
    await desk.enable(session, second.code())


async def test_without_a_beginning_there_is_no_end(desk: Desk, settings: AuthSettings) -> None:
    await desk.world.register("anna")
    session = await desk.login()
    with pytest.raises(errors.BadRequest, match="no second factor is being set up"):
        await desk.enable(session, "123456")
    phone = await desk.begin(session)
    await by_hand.run(settings.database_url, "UPDATE auth.second_factors SET begun_at = now() - interval '61 minutes'")
    with pytest.raises(errors.BadRequest, match="no second factor is being set up"):
        await desk.enable(session, phone.code())


async def test_of_many_that_finish_at_once_one_gets_recovery_codes(desk: Desk) -> None:
    await desk.world.register("anna")
    session = await desk.login()
    phone = await desk.begin(session)
    code = phone.code()
    outcomes = await asyncio.gather(*(desk.enable(session, code) for _ in range(10)), return_exceptions=True)
    assert len([found for found in outcomes if isinstance(found, accounts.RecoveryCodes)]) == 1
    assert all(isinstance(found, accounts.RecoveryCodes | errors.CallerError) for found in outcomes)


async def test_enabling_it_ends_the_logins_that_were_made_without_it(desk: Desk) -> None:
    await desk.world.register("anna")
    other, session = await desk.login(), await desk.login()
    phone = await desk.begin(session)
    await desk.enable(session, phone.code())
    assert (await desk.identify(session)).step is Step.DONE
    with pytest.raises(errors.NotAuthenticated):
        await desk.identify(other)


async def test_what_is_stored_gives_neither_seed_nor_codes_away(desk: Desk, settings: AuthSettings) -> None:
    session, phone, codes = await desk.with_factor()
    begun = await desk.begin(session)
    row = repr(await by_hand.value(settings.database_url, "SELECT row_to_json(second_factors)::text FROM auth.second_factors"))
    for secret in (phone.seed, begun.seed):
        assert secret.hex() not in row
    for code in codes:
        assert code not in row
        assert code.replace("-", "") not in row
    assert str(session.user.id) in row, "it is the row"


async def test_a_new_phone_takes_the_old_ones_place_once_it_has_shown_a_code(desk: Desk) -> None:
    session, old, _ = await desk.with_factor()
    new = await desk.begin(session)
    await desk.confirm(await desk.login(), old.next_code())
    session = await desk.login(code=old.next_code())
    codes = (await desk.enable(session, new.code())).codes
    with pytest.raises(errors.NotAuthenticated):
        await desk.login(code=old.next_code())
    await desk.login(code=new.next_code())
    await desk.login(code=codes[0])


async def test_who_lacks_the_code_cannot_put_another_phone_in_place_of_the_owners(desk: Desk) -> None:
    """The gate lets half-done logins to these methods, because for some of them this is what they lack."""
    _, phone, _ = await desk.with_factor()
    thief = await desk.login()
    assert thief.step is Step.ENTER_CODE
    with pytest.raises(errors.SecondFactorNeeded):
        await desk.begin(thief)
    with pytest.raises(errors.SecondFactorNeeded):
        await desk.enable(thief, phone.next_code())
    await desk.confirm(thief, phone.next_code())


async def test_a_login_from_before_the_factor_cannot_replace_it_either(desk: Desk) -> None:
    """One that slipped through while the others were ended."""
    session, _, _ = await desk.with_factor()
    user = session.user
    stale = await desk.parts.sessions.open(StoredLogin(user_id=user.id))
    token = desk.parts.identities.answer(user, stale)
    with pytest.raises(errors.SecondFactorNeeded):
        await desk.begin(token)
    with pytest.raises(errors.SecondFactorNeeded):
        await desk.world.ask(accounts.renew_recovery_codes, accounts.RenewRecoveryCodes(), token.access_token)


async def test_a_key_sets_nothing_up(desk: Desk) -> None:
    """Nor takes it away: who found a key must not put their own phone in place of its owner's."""
    _, new = await desk.world.user_with_key("anna")
    for attempt in (
        desk.world.ask(accounts.begin_mfa, accounts.BeginMfa(), new.api_key),
        desk.world.ask(accounts.enable_mfa, accounts.EnableMfa("123456"), new.api_key),
        desk.world.ask(accounts.disable_mfa, accounts.DisableMfa("123456"), new.api_key),
        desk.world.ask(accounts.renew_recovery_codes, accounts.RenewRecoveryCodes(), new.api_key),
    ):
        with pytest.raises(errors.NotAllowed, match="needs a login"):
            await attempt


async def test_changing_it_needs_a_fresh_login(desk: Desk) -> None:
    session, phone, _ = await desk.with_factor()
    gate = desk.world.dispatcher.gate
    assert gate is not None
    gate._clock = desk.clock
    desk.parts.sessions._clock = desk.clock
    desk.clock.ahead += access_table.FRESH_SECONDS + 1
    for attempt in (
        desk.begin(session),
        desk.enable(session, "123456"),
        desk.world.ask(accounts.disable_mfa, accounts.DisableMfa(phone.code()), session.access_token),
        desk.world.ask(accounts.renew_recovery_codes, accounts.RenewRecoveryCodes(), session.access_token),
    ):
        with pytest.raises(errors.ConfirmationNeeded):
            await attempt
    await desk.confirm_again(session, code=phone.code())
    await desk.world.ask(accounts.disable_mfa, accounts.DisableMfa(phone.next_code()), session.access_token)


async def test_without_it_the_password_is_enough_again(desk: Desk) -> None:
    session, phone, codes = await desk.with_factor()
    with pytest.raises(errors.NotAllowed, match="wrong"):
        await desk.world.ask(accounts.disable_mfa, accounts.DisableMfa("000000"), session.access_token)
    assert (await desk.login()).step is Step.ENTER_CODE
    await desk.world.ask(accounts.disable_mfa, accounts.DisableMfa(phone.next_code()), session.access_token)
    assert (await desk.login()).step is Step.DONE
    assert (await desk.login(code=codes[0])).step is Step.DONE, "a code that nobody asked for is not looked at"
    with pytest.raises(errors.NotFound):
        await desk.world.ask(accounts.disable_mfa, accounts.DisableMfa(phone.next_code()), session.access_token)
    with pytest.raises(errors.NotFound):
        await desk.world.ask(accounts.renew_recovery_codes, accounts.RenewRecoveryCodes(), session.access_token)
    assert desk.trail.actions("mfa.enable", "mfa.disable")[-1] == "mfa.disable"


async def test_who_guesses_a_code_to_be_rid_of_it_is_written_down_with_where_they_are(desk: Desk) -> None:
    _, phone, _ = await desk.with_factor()
    session = await desk.browse(code=phone.next_code())
    with pytest.raises(errors.NotAllowed, match="wrong"):
        await desk.world.ask(accounts.disable_mfa, accounts.DisableMfa("000000"), session.access_token)
    assert (desk.trail.acts[-1].action, desk.trail.acts[-1].address) == ("mfa.disable", "203.0.113.7")


# --- recovery codes --------------------------------------------------------------------------------------------------------


async def test_each_recovery_code_is_good_once_and_the_rest_are_counted(desk: Desk, replica: Desk) -> None:
    session, _, codes = await desk.with_factor()
    user = session.user.id
    assert (await desk.logins._factors.state(user)).recovery_codes_left == 10
    # No more than one address may guess, whichever of them comes first.
    outcomes = await asyncio.gather(*((desk if n % 2 else replica).login(code=codes[3]) for n in range(5)), return_exceptions=True)
    assert len([found for found in outcomes if isinstance(found, auth.LoginSession)]) == 1
    assert (await desk.logins._factors.state(user)).recovery_codes_left == 9
    assert (await desk.login(code=codes[4].upper().replace("-", ""))).step is Step.DONE
    assert (await desk.logins._factors.state(user)).recovery_codes_left == 8


async def test_renewed_ones_take_the_place_of_those_that_are_left(desk: Desk) -> None:
    session, _, codes = await desk.with_factor()
    made = await desk.world.ask(accounts.renew_recovery_codes, accounts.RenewRecoveryCodes(), session.access_token)
    assert not set(made.codes) & set(codes)
    with pytest.raises(errors.NotAuthenticated):
        await desk.login(code=codes[0])
    assert (await desk.login(code=made.codes[0])).step is Step.DONE


async def test_anothers_recovery_code_is_none(desk: Desk) -> None:
    await desk.with_factor("anna")
    _, _, bens = await desk.with_factor("ben")
    with pytest.raises(errors.NotAuthenticated):
        await desk.login("anna", code=bens[0])
    assert (await desk.login("ben", code=bens[0])).step is Step.DONE


# --- administrators ----------------------------------------------------------------------------------------------------------


async def test_an_administrator_without_one_may_set_it_up_and_nothing_else(desk: Desk) -> None:
    half = await desk.browse("admin", ADMIN_PASSWORD)
    assert half.step is Step.SET_UP_MFA
    with pytest.raises(errors.SecondFactorNeeded):
        await desk.world.ask(auth.list_users, auth.ListUsers(), half.access_token)
    phone = await desk.begin(half)
    made = await desk.enable(half, phone.code())
    assert made.session is not None
    assert made.session.step is Step.DONE
    assert made.session.session_token != half.session_token
    (opened,) = (act for act in desk.trail.acts if act.action == "session.open")
    assert (opened.result, opened.address, opened.details["kind"]) == (audit.Result.DONE, "203.0.113.7", "browser")
    assert (await desk.world.ask(auth.list_users, auth.ListUsers(), made.session.access_token)).users
    for former in (half, half):
        with pytest.raises(errors.NotAuthenticated):
            await desk.identify(former)
    assert (await desk.browse("admin", ADMIN_PASSWORD)).step is Step.ENTER_CODE
    assert (await desk.browse("admin", ADMIN_PASSWORD, phone.next_code())).step is Step.DONE


async def test_an_administrator_cannot_do_without_it(desk: Desk) -> None:
    half = await desk.login("admin", ADMIN_PASSWORD)
    phone = await desk.begin(half)
    session = (await desk.enable(half, phone.code())).session
    assert session is not None
    with pytest.raises(errors.NotAllowed, match="an administrator needs") as refused:
        await desk.world.ask(accounts.disable_mfa, accounts.DisableMfa(phone.next_code()), session.access_token)
    assert "set up a new one" in refused.value.hint


async def test_who_becomes_an_administrator_in_the_middle_of_a_session_needs_one_from_then_on(desk: Desk, settings: AuthSettings) -> None:
    await desk.world.register("anna")
    session = await desk.login()
    await by_hand.run(settings.database_url, "UPDATE auth.users SET role = 'admin' WHERE username = 'anna'")
    assert (await desk.identify(session)).step is Step.SET_UP_MFA
    with pytest.raises(errors.SecondFactorNeeded):
        await desk.world.ask(auth.list_users, auth.ListUsers(), session.access_token)
    phone = await desk.begin(session)
    whole = (await desk.enable(session, phone.code())).session
    assert whole is not None
    assert (await desk.world.ask(auth.list_users, auth.ListUsers(), whole.access_token)).users


async def test_where_it_is_switched_off_administrators_log_in_with_their_password(desk: Desk, settings: AuthSettings) -> None:
    desk.logins._settings = msgspec.structs.replace(settings, admin_mfa=False)
    desk.parts.identities._admin_mfa = False
    session = await desk.login("admin", ADMIN_PASSWORD)
    assert session.step is Step.DONE
    assert (await desk.world.ask(auth.list_users, auth.ListUsers(), session.access_token)).users


async def test_a_row_that_was_copied_to_another_user_opens_nothing(desk: Desk, settings: AuthSettings) -> None:
    """Who can write the database still cannot make their own phone an administrator's."""
    session, phone, _ = await desk.with_factor("mallory")
    await desk.world.register("anna")
    await by_hand.run(
        settings.database_url,
        "INSERT INTO auth.second_factors (user_id, sealed_seed, enabled_at)"
        " SELECT (SELECT id FROM auth.users WHERE username = 'anna'), sealed_seed, now() FROM auth.second_factors",
    )
    assert session.user.username == "mallory"
    with pytest.raises(errors.Internal):
        await desk.login("anna", PASSWORD, phone.next_code())


async def test_a_seed_is_sealed_anew_under_a_newer_key_when_it_is_used(desk: Desk, settings: AuthSettings) -> None:
    _, phone, _ = await desk.with_factor()
    old, new = sealing.read_key(settings.data_key), bytes(32)
    desk.logins._factors._sealer = DataSealer(new, old)
    await desk.login(code=phone.next_code())
    desk.logins._factors._sealer = DataSealer(new)
    assert (await desk.login(code=phone.next_code())).step is Step.DONE
    desk.logins._factors._sealer = DataSealer(old)
    with pytest.raises(errors.Unavailable, match="DATA_KEY"):
        await desk.login(code=phone.next_code())


async def test_the_seed_in_the_address_is_the_one_to_be_typed(desk: Desk) -> None:
    await desk.world.register("anna")
    session = await desk.login()
    made = await desk.world.ask(accounts.begin_mfa, accounts.BeginMfa(), session.access_token)
    assert f"secret={made.secret}&" in made.uri
    assert made.uri.startswith("otpauth://totp/aimesh%20")
    assert len(made.secret) * 5 == totp.SEED_BYTES * 8
