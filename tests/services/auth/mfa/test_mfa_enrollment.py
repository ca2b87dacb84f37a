"""Setting up, changing and disabling a second factor."""

import asyncio
from typing import Any, cast

import msgspec
import pytest

from services.auth import api_keys, sealing
from services.auth.mfa import totp
from services.auth.nodes.gateway_releases import ReleaseGate
from services.auth.sealing import DataSealer
from services.auth.sessions.identities import NEEDS_LOGIN, SESSION_OVER, WRONG_CODE
from services.auth.sessions.session_store import StoredLogin
from services.auth.settings import AuthSettings
from shared import access_table, errors
from shared.access_table import IS_SENSITIVE
from shared.api import accounts, audit, auth
from shared.api.auth import Step
from tests.services.auth import by_hand
from tests.services.auth.mfa.equipment import WEB, ApiClient
from tests.services.auth.surroundings import ADMIN_PASSWORD, PASSWORD


async def test_a_factor_is_enabled_only_after_a_right_code(api_client: ApiClient) -> None:
    await api_client.world.register("anna")
    session = await api_client.login()
    phone = await api_client.begin(session)
    assert (await api_client.login()).step is Step.DONE
    wrong = f"{(int(phone.code()) + 1) % 1_000_000:06}"
    with pytest.raises(errors.BadRequest, match="code"):
        await api_client.enable(session, wrong)
    assert (await api_client.login()).step is Step.DONE
    made = await api_client.enable(session, phone.code())
    assert len(set(made.codes)) == 10
    assert made.session is None, "this login lacked nothing"
    assert (await api_client.login()).step is Step.ENTER_CODE
    assert api_client.trail.actions("mfa.enable") == ["mfa.enable"]


async def test_starting_over_replaces_an_unfinished_setup(api_client: ApiClient) -> None:
    await api_client.world.register("anna")
    session = await api_client.login()
    first = await api_client.begin(session)
    second = await api_client.begin(session)
    assert first.seed != second.seed
    with pytest.raises(errors.BadRequest, match="code: it does not match this seed"):
        await api_client.enable(session, first.code())
    await api_client.enable(session, second.code())


async def test_enabling_requires_a_started_setup(api_client: ApiClient, settings: AuthSettings) -> None:
    await api_client.world.register("anna")
    session = await api_client.login()
    with pytest.raises(errors.BadRequest, match="no second factor is being set up"):
        await api_client.enable(session, "123456")
    phone = await api_client.begin(session)
    await by_hand.run(settings.database_url, "UPDATE auth.second_factors SET begun_at = now() - interval '61 minutes'")
    with pytest.raises(errors.BadRequest, match="no second factor is being set up"):
        await api_client.enable(session, phone.code())


async def test_one_of_many_concurrent_setups_gets_recovery_codes(api_client: ApiClient) -> None:
    await api_client.world.register("anna")
    session = await api_client.login()
    phone = await api_client.begin(session)
    code = phone.code()
    outcomes = await asyncio.gather(*(api_client.enable(session, code) for _ in range(10)), return_exceptions=True)
    assert len([found for found in outcomes if isinstance(found, accounts.RecoveryCodes)]) == 1
    assert all(isinstance(found, accounts.RecoveryCodes | errors.CallerError) for found in outcomes)


async def test_enabling_a_factor_ends_logins_made_without_it(api_client: ApiClient) -> None:
    await api_client.world.register("anna")
    other, session = await api_client.login(), await api_client.login()
    phone = await api_client.begin(session)
    await api_client.enable(session, phone.code())
    assert (await api_client.identify(session)).step is Step.DONE
    with pytest.raises(errors.NotAuthenticated, match=SESSION_OVER):
        await api_client.identify(other)


async def test_stored_data_reveals_neither_seed_nor_codes(api_client: ApiClient, settings: AuthSettings) -> None:
    session, phone, codes = await api_client.with_factor()
    begun = await api_client.begin(session)
    row = repr(await by_hand.value(settings.database_url, "SELECT row_to_json(second_factors)::text FROM auth.second_factors"))
    for secret in (phone.seed, begun.seed):
        assert secret.hex() not in row
    for code in codes:
        assert code not in row
        assert code.replace("-", "") not in row
    assert str(session.user.id) in row, "it is the row"


async def test_a_new_phone_replaces_the_old_one_after_entering_a_code(api_client: ApiClient) -> None:
    session, old, _ = await api_client.with_factor()
    new = await api_client.begin(session)
    await api_client.confirm(await api_client.login(), old.next_code())
    session = await api_client.login(code=old.next_code())
    codes = (await api_client.enable(session, new.code())).codes
    with pytest.raises(errors.NotAuthenticated, match=WRONG_CODE):
        await api_client.login(code=old.next_code())
    await api_client.login(code=new.next_code())
    await api_client.login(code=codes[0])


async def test_a_user_without_the_code_cannot_replace_the_owners_phone(api_client: ApiClient) -> None:
    """The gate allows these methods to incomplete logins, because some of those still have to set up a factor."""
    _, phone, _ = await api_client.with_factor()
    thief = await api_client.login()
    assert thief.step is Step.ENTER_CODE
    with pytest.raises(errors.SecondFactorNeeded, match="a second factor is enabled, and this login lacks its code"):
        await api_client.begin(thief)
    with pytest.raises(errors.SecondFactorNeeded, match="a second factor is enabled, and this login lacks its code"):
        await api_client.enable(thief, phone.next_code())
    await api_client.confirm(thief, phone.next_code())


async def test_a_login_older_than_the_factor_cannot_replace_it(api_client: ApiClient) -> None:
    """For example, a session that was opened while the others were being ended."""
    session, _, _ = await api_client.with_factor()
    user = session.user
    stale = await api_client.parts.sessions.open(StoredLogin(user_id=user.id))
    token = api_client.parts.identities.answer(user, stale)
    with pytest.raises(errors.SecondFactorNeeded, match="a second factor is enabled, and this login lacks its code"):
        await api_client.begin(token)
    with pytest.raises(errors.SecondFactorNeeded, match="a second factor is enabled, and this login lacks its code"):
        await api_client.world.ask(accounts.renew_recovery_codes, accounts.RenewRecoveryCodes(), token.access_token)


async def test_a_key_cannot_set_up_a_factor(api_client: ApiClient) -> None:
    """A key cannot remove a factor either: a stolen key must not replace the owner's phone with the thief's."""
    _, new = await api_client.world.user_with_key("anna")
    for attempt in (
        api_client.world.ask(accounts.begin_mfa, accounts.BeginMfa(), new.api_key),
        api_client.world.ask(accounts.enable_mfa, accounts.EnableMfa("123456"), new.api_key),
        api_client.world.ask(accounts.disable_mfa, accounts.DisableMfa("123456"), new.api_key),
        api_client.world.ask(accounts.renew_recovery_codes, accounts.RenewRecoveryCodes(), new.api_key),
    ):
        with pytest.raises(errors.NotAllowed, match=NEEDS_LOGIN):
            await attempt


async def test_changing_the_factor_needs_a_fresh_login(api_client: ApiClient) -> None:
    session, phone, _ = await api_client.with_factor()
    gate = api_client.world.dispatcher.gate
    assert isinstance(gate, ReleaseGate)
    gate._gate._clock = api_client.clock
    api_client.parts.sessions._clock = api_client.clock
    api_client.clock.ahead += access_table.FRESH_SECONDS + 1
    for attempt in (
        api_client.begin(session),
        api_client.enable(session, "123456"),
        api_client.world.ask(accounts.disable_mfa, accounts.DisableMfa(phone.code()), session.access_token),
        api_client.world.ask(accounts.renew_recovery_codes, accounts.RenewRecoveryCodes(), session.access_token),
    ):
        with pytest.raises(errors.ConfirmationNeeded, match=IS_SENSITIVE):
            await attempt
    await api_client.confirm_again(session, code=phone.code())
    await api_client.world.ask(accounts.disable_mfa, accounts.DisableMfa(phone.next_code()), session.access_token)


async def test_after_disabling_the_factor_the_password_is_enough(api_client: ApiClient) -> None:
    session, phone, codes = await api_client.with_factor()
    with pytest.raises(errors.NotAllowed, match="wrong"):
        await api_client.world.ask(accounts.disable_mfa, accounts.DisableMfa("000000"), session.access_token)
    assert (await api_client.login()).step is Step.ENTER_CODE
    await api_client.world.ask(accounts.disable_mfa, accounts.DisableMfa(phone.next_code()), session.access_token)
    assert (await api_client.login()).step is Step.DONE
    assert (await api_client.login(code=codes[0])).step is Step.DONE, "a code that nobody asked for is not looked at"
    with pytest.raises(errors.NotFound, match="this account has no second factor"):
        await api_client.world.ask(accounts.disable_mfa, accounts.DisableMfa(phone.next_code()), session.access_token)
    with pytest.raises(errors.NotFound, match="this account has no second factor"):
        await api_client.world.ask(accounts.renew_recovery_codes, accounts.RenewRecoveryCodes(), session.access_token)
    assert api_client.trail.actions("mfa.enable", "mfa.disable")[-1] == "mfa.disable"


async def test_a_wrong_code_when_disabling_is_logged_with_the_address(api_client: ApiClient) -> None:
    _, phone, _ = await api_client.with_factor()
    session = await api_client.browse(code=phone.next_code())
    with pytest.raises(errors.NotAllowed, match="wrong"):
        await api_client.world.ask(accounts.disable_mfa, accounts.DisableMfa("000000"), session.access_token)
    assert (api_client.trail.acts[-1].action, api_client.trail.acts[-1].address) == ("mfa.disable", "203.0.113.7")


# --- recovery codes --------------------------------------------------------------------------------------------------------


async def test_each_recovery_code_works_once_and_the_rest_are_counted(api_client: ApiClient, replica: ApiClient) -> None:
    session, _, codes = await api_client.with_factor()
    user = session.user.id
    assert (await api_client.logins._factors.find(user)).recovery_codes_left == 10
    # Five attempts are as many as one address has. Any one of them may succeed.
    outcomes = await asyncio.gather(*((api_client if n % 2 else replica).login(code=codes[3]) for n in range(5)), return_exceptions=True)
    assert len([found for found in outcomes if isinstance(found, auth.LoginSession)]) == 1
    assert (await api_client.logins._factors.find(user)).recovery_codes_left == 9
    assert (await api_client.login(code=codes[4].upper().replace("-", ""))).step is Step.DONE
    assert (await api_client.logins._factors.find(user)).recovery_codes_left == 8


async def test_renewed_recovery_codes_replace_the_remaining_ones(api_client: ApiClient) -> None:
    session, _, codes = await api_client.with_factor()
    made = await api_client.world.ask(accounts.renew_recovery_codes, accounts.RenewRecoveryCodes(), session.access_token)
    assert not set(made.codes) & set(codes)
    with pytest.raises(errors.NotAuthenticated, match=WRONG_CODE):
        await api_client.login(code=codes[0])
    assert (await api_client.login(code=made.codes[0])).step is Step.DONE


async def test_another_users_recovery_code_is_refused(api_client: ApiClient) -> None:
    await api_client.with_factor("anna")
    _, _, bens = await api_client.with_factor("ben")
    with pytest.raises(errors.NotAuthenticated, match=WRONG_CODE):
        await api_client.login("anna", code=bens[0])
    assert (await api_client.login("ben", code=bens[0])).step is Step.DONE


# --- administrators ----------------------------------------------------------------------------------------------------------


async def test_an_administrator_without_a_factor_may_only_set_one_up(api_client: ApiClient) -> None:
    half = await api_client.browse("admin", ADMIN_PASSWORD)
    assert half.step is Step.SET_UP_MFA
    with pytest.raises(errors.SecondFactorNeeded, match="administrators need a second factor"):
        await api_client.world.ask(auth.list_users, auth.ListUsers(), half.access_token)
    phone = await api_client.begin(half)
    made = await api_client.enable(half, phone.code())
    assert made.session is not None
    assert made.session.step is Step.DONE
    assert made.session.session_token != half.session_token
    (opened,) = (act for act in api_client.trail.acts if act.action == "session.open")
    assert (opened.result, opened.address, opened.details["kind"]) == (audit.Result.DONE, "203.0.113.7", "browser")
    assert (await api_client.world.ask(auth.list_users, auth.ListUsers(), made.session.access_token)).users
    for former in (half, half):
        with pytest.raises(errors.NotAuthenticated, match=SESSION_OVER):
            await api_client.identify(former)
    assert (await api_client.browse("admin", ADMIN_PASSWORD)).step is Step.ENTER_CODE
    assert (await api_client.browse("admin", ADMIN_PASSWORD, phone.next_code())).step is Step.DONE


async def test_a_key_of_an_administrator_without_a_factor_links_to_its_setup(api_client: ApiClient, settings: AuthSettings) -> None:
    """`aicli dashboard` of a new administrator. The link opens the setup and nothing else."""
    world = api_client.world
    key = api_keys.generate(auth.KeyKind.ADMIN)
    mark = api_keys.mark(key, settings.api_key_pepper)
    await by_hand.run(
        settings.database_url,
        "INSERT INTO auth.api_keys (id, user_id, key_hash, name, preview, kind)"
        " SELECT gen_random_uuid(), id, $1, 'first key', $2, 'adm' FROM auth.users WHERE username = 'admin'",
        *(mark.key_hash, mark.preview),
    )
    link = await world.ask(auth.create_login_link, auth.CreateLoginLink(), key)
    half = await world.ask(auth.redeem_login_link, auth.RedeemLoginLink(link.token), peer=WEB)
    assert half.step is Step.SET_UP_MFA
    for method, request in (
        (auth.list_users, auth.ListUsers()),
        (auth.generate_api_key, auth.GenerateApiKey("a thief's")),
        (accounts.change_password, accounts.ChangePassword("another password")),
        (accounts.end_session, accounts.EndSession()),
        (auth.confirm_again, auth.ConfirmAgain(ADMIN_PASSWORD)),
    ):
        with pytest.raises(errors.SecondFactorNeeded, match="administrators need a second factor"):
            await world.ask(cast("Any", method), cast("Any", request), half.access_token)
    phone = await api_client.begin(half)
    whole = (await api_client.enable(half, phone.code())).session
    assert whole is not None
    assert whole.step is Step.DONE
    assert (await world.ask(auth.list_users, auth.ListUsers(), whole.access_token)).users
    # With a factor, the next link asks for its code, and cannot set up another one.
    link = await world.ask(auth.create_login_link, auth.CreateLoginLink(), key)
    other = await world.ask(auth.redeem_login_link, auth.RedeemLoginLink(link.token), peer=WEB)
    assert other.step is Step.ENTER_CODE
    with pytest.raises(errors.ConfirmationNeeded, match=IS_SENSITIVE):
        await api_client.begin(other)


async def test_an_administrator_cannot_disable_the_factor(api_client: ApiClient) -> None:
    half = await api_client.login("admin", ADMIN_PASSWORD)
    phone = await api_client.begin(half)
    session = (await api_client.enable(half, phone.code())).session
    assert session is not None
    with pytest.raises(errors.NotAllowed, match="an administrator needs") as refused:
        await api_client.world.ask(accounts.disable_mfa, accounts.DisableMfa(phone.next_code()), session.access_token)
    assert "set up a new one" in refused.value.hint


async def test_a_user_who_becomes_an_administrator_mid_session_needs_a_factor(api_client: ApiClient, settings: AuthSettings) -> None:
    await api_client.world.register("anna")
    session = await api_client.login()
    await by_hand.run(settings.database_url, "UPDATE auth.users SET role = 'admin' WHERE username = 'anna'")
    assert (await api_client.identify(session)).step is Step.SET_UP_MFA
    with pytest.raises(errors.SecondFactorNeeded, match="administrators need a second factor"):
        await api_client.world.ask(auth.list_users, auth.ListUsers(), session.access_token)
    phone = await api_client.begin(session)
    whole = (await api_client.enable(session, phone.code())).session
    assert whole is not None
    assert (await api_client.world.ask(auth.list_users, auth.ListUsers(), whole.access_token)).users


async def test_if_the_requirement_is_disabled_administrators_log_in_with_the_password(
    api_client: ApiClient, settings: AuthSettings
) -> None:
    api_client.logins._settings = msgspec.structs.replace(settings, admin_mfa=False)
    api_client.parts.identities._admin_mfa = False
    session = await api_client.login("admin", ADMIN_PASSWORD)
    assert session.step is Step.DONE
    assert (await api_client.world.ask(auth.list_users, auth.ListUsers(), session.access_token)).users


async def test_a_row_copied_to_another_user_is_useless(api_client: ApiClient, settings: AuthSettings) -> None:
    """Write access to the database is not enough to put one's own phone on an administrator's account."""
    session, phone, _ = await api_client.with_factor("mallory")
    await api_client.world.register("anna")
    await by_hand.run(
        settings.database_url,
        "INSERT INTO auth.second_factors (user_id, sealed_seed, enabled_at)"
        " SELECT (SELECT id FROM auth.users WHERE username = 'anna'), sealed_seed, now() FROM auth.second_factors",
    )
    assert session.user.username == "mallory"
    with pytest.raises(errors.Internal, match="the stored value was changed, or encrypted for something else"):
        await api_client.login("anna", PASSWORD, phone.next_code())


async def test_a_seed_is_encrypted_again_with_a_newer_key_when_used(api_client: ApiClient, settings: AuthSettings) -> None:
    _, phone, _ = await api_client.with_factor()
    old, new = sealing.read_key(settings.data_key), bytes(32)
    api_client.logins._factors._sealer = DataSealer(new, old)
    await api_client.login(code=phone.next_code())
    api_client.logins._factors._sealer = DataSealer(new)
    assert (await api_client.login(code=phone.next_code())).step is Step.DONE
    api_client.logins._factors._sealer = DataSealer(old)
    with pytest.raises(errors.Unavailable, match="DATA_KEY"):
        await api_client.login(code=phone.next_code())


async def test_the_uri_and_the_typed_secret_contain_the_same_seed(api_client: ApiClient) -> None:
    await api_client.world.register("anna")
    session = await api_client.login()
    made = await api_client.world.ask(accounts.begin_mfa, accounts.BeginMfa(), session.access_token)
    assert f"secret={made.secret}&" in made.uri
    assert made.uri.startswith("otpauth://totp/aimesh%20")
    assert len(made.secret) * 5 == totp.SEED_BYTES * 8
