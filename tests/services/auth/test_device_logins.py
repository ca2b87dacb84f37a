"""Logins that a person approves in a browser (RFC 8628). On real PostgreSQL and Valkey."""

import asyncio
import re

import msgspec
import pytest

from services.auth.accounts import request_limits
from services.auth.sessions.identities import NEEDS_LOGIN
from shared import errors
from shared.access_table import IS_SENSITIVE
from shared.api import accounts, auth
from shared.api.auth import ClientFacts, SessionKind, Step
from shared.types import NodeId, Peer, Role
from tests.services.auth.mfa.equipment import WEB, KeptTrail
from tests.services.auth.surroundings import PASSWORD, Surroundings

GATEWAY = Peer(Role.GATEWAY, NodeId("U" + "G" * 55))
SEEN = ClientFacts("203.0.113.7", "aicli/1.0")


@pytest.fixture
async def anna(world: Surroundings) -> auth.LoginSession:
    """A user who is signed in on the web."""
    await world.register("anna")
    return await sign_in(world, "anna", PASSWORD)


async def sign_in(world: Surroundings, name: str, password: str) -> auth.LoginSession:
    request = auth.LoginUser(auth.Credentials(password, username=name), SessionKind.BROWSER, ClientFacts("198.51.100.1", "Firefox"))
    return await world.ask(auth.login_user, request, peer=WEB)


async def begin(world: Surroundings, client: ClientFacts = SEEN) -> auth.DeviceLogin:
    return await world.ask(auth.begin_device_login, auth.BeginDeviceLogin("anna-laptop", client), peer=GATEWAY)


async def poll(world: Surroundings, begun: auth.DeviceLogin) -> auth.LoginSession:
    return await world.ask(auth.poll_device_login, auth.PollDeviceLogin(begun.device_code, SEEN), peer=GATEWAY)


async def decide(world: Surroundings, code: str, by: auth.LoginSession, *, approve: bool = True) -> None:
    await world.ask(auth.decide_device_login, auth.DecideDeviceLogin(code, approve=approve), by.access_token, peer=WEB)


async def find(world: Surroundings, code: str, by: auth.LoginSession) -> auth.WaitingDeviceLogin:
    return await world.ask(auth.find_device_login, auth.FindDeviceLogin(code), by.access_token, peer=WEB)


async def test_an_approved_login_opens_a_programs_session_that_may_create_keys(world: Surroundings, anna: auth.LoginSession) -> None:
    begun = await begin(world)
    with pytest.raises(errors.AuthorizationPending, match="approved"):
        await poll(world, begun)
    await decide(world, begun.user_code, anna)
    session = await poll(world, begun)
    assert (session.user.username, session.step) == ("anna", Step.DONE)
    await world.new_key(session.access_token, "laptop")
    listed = await world.ask(accounts.list_sessions, accounts.ListSessions(), session.access_token)
    [own] = [each for each in listed.sessions if each.is_this]
    assert (own.kind, own.client) == (SessionKind.PROGRAM, SEEN)
    await world.ask(auth.refresh_session, auth.RefreshSession(session.session_token))


async def test_codes_are_short_for_people_and_long_for_the_program(world: Surroundings) -> None:
    begun = await begin(world)
    assert re.fullmatch("[BCDFGHJKLMNPQRSTVWXZ]{4}-[BCDFGHJKLMNPQRSTVWXZ]{4}", begun.user_code)
    assert len(begun.device_code) > 43
    assert begun.expires_in <= 900
    assert begun.interval == 5


async def test_links_lead_to_the_page_with_the_code(world: Surroundings) -> None:
    begun = await begin(world)
    assert (begun.verification_uri, begun.verification_uri_complete) == ("", "")
    settings = msgspec.structs.replace(world.parts.settings, public_url="https://ai.example.org/")
    world.dispatcher.find("auth.beginDeviceLogin", GATEWAY).function.__self__._settings = settings  # type: ignore[attr-defined]
    begun = await begin(world)
    assert begun.verification_uri == "https://ai.example.org/device"
    assert begun.verification_uri_complete == f"https://ai.example.org/device/{begun.user_code}"


async def test_the_page_is_told_who_asks(world: Surroundings, anna: auth.LoginSession) -> None:
    begun = await begin(world)
    found = await find(world, begun.user_code.lower().replace("-", " "), anna)
    assert (found.user_code, found.machine, found.address) == (begun.user_code, "anna-laptop", "203.0.113.7")
    through_mesh = await world.ask(auth.begin_device_login, auth.BeginDeviceLogin("box", SEEN))
    assert (await find(world, through_mesh.user_code, anna)).address.startswith("UUU"), (
        "what a client says about its address proves nothing"
    )


async def test_a_refused_login_is_told_so(world: Surroundings, anna: auth.LoginSession) -> None:
    begun = await begin(world)
    await decide(world, begun.user_code, anna, approve=False)
    for _ in range(2):
        with pytest.raises(errors.DeviceLoginDenied, match="refused in the browser"):
            await poll(world, begun)
    with pytest.raises(errors.NotFound, match="no login waits"):
        await decide(world, begun.user_code, anna)


async def test_a_program_that_polls_too_soon_must_wait_longer_each_time(world: Surroundings) -> None:
    begun = await begin(world)
    waits = []
    for _ in range(3):
        with pytest.raises(errors.SlowDown) as caught:
            await poll(world, begun)
        waits.append(caught.value.retry_after_seconds)
    assert waits == [10, 15, 20]


async def test_a_program_that_waits_is_not_slowed_down(world: Surroundings, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, clock = await begin(world), world.parts.sessions._clock
    for number in range(1, 4):
        monkeypatch.setattr(world.parts.sessions, "_clock", lambda ahead=5.0 * number: clock() + ahead)
        with pytest.raises(errors.AuthorizationPending) as caught:
            await poll(world, begun)
        assert (type(caught.value), caught.value.retry_after_seconds) == (errors.AuthorizationPending, 5)


async def test_one_of_many_polls_gets_the_session(world: Surroundings, anna: auth.LoginSession) -> None:
    begun = await begin(world)
    await decide(world, begun.user_code, anna)
    done = await asyncio.gather(*(poll(world, begun) for _ in range(8)), return_exceptions=True)
    refused = [each for each in done if isinstance(each, BaseException)]
    assert len(refused) == 7
    assert {type(each) for each in refused} == {errors.DeviceLoginExpired}
    with pytest.raises(errors.DeviceLoginExpired, match="was used or has expired"):
        await poll(world, begun)


async def test_one_of_many_people_decides(world: Surroundings, anna: auth.LoginSession) -> None:
    await world.register("mallory")
    mallory, begun = await sign_in(world, "mallory", PASSWORD), await begin(world)
    people = (anna, mallory, anna, mallory)
    done = await asyncio.gather(*(decide(world, begun.user_code, each) for each in people), return_exceptions=True)
    assert sorted(type(each).__name__ for each in done) == ["NoneType", "NotFound", "NotFound", "NotFound"]
    assert (await poll(world, begun)).user.username == people[done.index(None)].user.username


async def keys_of(world: Surroundings) -> dict[str, tuple[int, str]]:
    """Return the keys of device logins, each with its remaining milliseconds and its value."""
    cache = world.parts.sessions._cache
    lua = """
    local found = {}
    for _, key in ipairs(redis.call('KEYS', 'auth:device*')) do
        local is_hash = redis.call('TYPE', key).ok == 'hash'
        local value = is_hash and cjson.encode(redis.call('HGETALL', key)) or redis.call('GET', key)
        found[#found + 1] = {key, redis.call('PTTL', key), value}
    end
    return found
    """
    cache.script("dump", lua)
    rows = await cache.run("dump", ("auth:",), ())
    return {
        key.decode(): (milliseconds, value.decode())
        for key, milliseconds, value in rows
        if b":device_log" not in key and b":device_codes" not in key
    }


async def test_valkey_forgets_a_login_after_fifteen_minutes_and_holds_no_code_of_a_device(
    world: Surroundings, anna: auth.LoginSession
) -> None:
    begun = await begin(world)
    kept = await keys_of(world)
    assert len(kept) == 2
    assert all(0 < milliseconds <= 900_000 for milliseconds, _ in kept.values())
    assert begun.device_code not in repr(kept)
    await decide(world, begun.user_code, anna)
    assert await keys_of(world) == {}, "only the link to its session is left, for a minute"


async def test_an_approved_login_ends_with_the_session_that_approved_it(world: Surroundings, anna: auth.LoginSession) -> None:
    begun = await begin(world)
    await decide(world, begun.user_code, anna)
    await world.ask(auth.logout_user, auth.LogoutUser(anna.session_token))
    with pytest.raises(errors.DeviceLoginExpired, match="was used or has expired"):
        await poll(world, begun)


async def test_codes_of_one_kind_do_not_work_as_the_other(world: Surroundings, anna: auth.LoginSession) -> None:
    begun = await begin(world)
    await decide(world, begun.user_code, anna)
    with pytest.raises(errors.NotAuthenticated, match="login link"):
        await world.ask(auth.redeem_login_link, auth.RedeemLoginLink(begun.device_code), peer=WEB)
    link = await world.ask(auth.create_login_link, auth.CreateLoginLink(), anna.access_token)
    with pytest.raises(errors.DeviceLoginExpired, match="was used or has expired"):
        await world.ask(auth.poll_device_login, auth.PollDeviceLogin(link.token), peer=GATEWAY)


async def test_an_old_sign_in_must_be_confirmed_to_approve(world: Surroundings, anna: auth.LoginSession) -> None:
    link = await world.ask(auth.create_login_link, auth.CreateLoginLink(), anna.access_token)
    unconfirmed = await world.ask(auth.redeem_login_link, auth.RedeemLoginLink(link.token), peer=WEB)
    begun = await begin(world)
    with pytest.raises(errors.ConfirmationNeeded, match=IS_SENSITIVE):
        await decide(world, begun.user_code, unconfirmed)
    await world.ask(auth.confirm_again, auth.ConfirmAgain(PASSWORD), unconfirmed.access_token)
    await decide(world, begun.user_code, unconfirmed)
    assert (await poll(world, begun)).step is Step.DONE


async def test_guessing_codes_is_limited_by_user(world: Surroundings, anna: auth.LoginSession) -> None:
    for number in range(request_limits.MAX_DEVICE_CODES):
        with pytest.raises(errors.NotFound, match="no login waits"):
            await (find(world, "BCDF-GHJK", anna) if number % 2 else decide(world, "BCDFGHJK", anna))
    begun = await begin(world)
    with pytest.raises(errors.Limited, match="too many codes"):
        await find(world, begun.user_code, anna)
    with pytest.raises(errors.Limited, match="too many codes"):
        await decide(world, begun.user_code, anna)


async def test_logins_are_limited_by_address(world: Surroundings) -> None:
    for _ in range(request_limits.MAX_DEVICE_LOGINS):
        await begin(world)
    with pytest.raises(errors.Limited, match="from your address"):
        await begin(world)
    await begin(world, ClientFacts("203.0.113.8"))
    await begin(world, ClientFacts("127.0.0.1"))


async def test_logins_of_many_networks_are_limited_by_their_site_and_by_nothing_that_others_use(
    world: Surroundings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_limits, "MAX_DEVICE_LOGINS_OF_SITE", 3)
    for number in range(3):
        await begin(world, ClientFacts(f"2001:db8:7:{number:x}::1"))
    with pytest.raises(errors.Limited, match="from your address"):
        await begin(world, ClientFacts("2001:db8:7:ffff::1"))
    await begin(world, ClientFacts("2001:db8:8::1"))
    for number in range(10):
        await begin(world, ClientFacts(f"203.0.113.{number}"))


async def test_logins_from_loopback_are_limited_together(world: Surroundings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_limits, "MAX_DEVICE_LOGINS_OF_LOOPBACK", 2)
    for address in ("127.0.0.1", "::1"):
        await begin(world, ClientFacts(address))
    with pytest.raises(errors.Limited, match="from your address"):
        await begin(world, ClientFacts("127.0.0.1"))
    await begin(world, ClientFacts("203.0.113.1"))


async def test_an_approval_is_in_the_audit_log(world: Surroundings, anna: auth.LoginSession) -> None:
    trail = KeptTrail()
    handler = world.dispatcher.find("auth.decideDeviceLogin", WEB).function.__self__  # type: ignore[attr-defined]
    handler._trail = trail
    for approve in (True, False):
        await decide(world, (await begin(world)).user_code, anna, approve=approve)
    assert trail.actions("session.approve") + trail.actions("session.deny") == ["session.approve", "session.deny"]


async def test_only_the_page_approves_and_only_for_a_login(world: Surroundings, anna: auth.LoginSession) -> None:
    begun, key = await begin(world), await world.new_key(anna.access_token)
    with pytest.raises(errors.WrongRole, match="decideDeviceLogin"):
        await world.ask(auth.decide_device_login, auth.DecideDeviceLogin(begun.user_code, approve=True), anna.access_token, peer=GATEWAY)
    with pytest.raises(errors.NotAllowed, match=NEEDS_LOGIN):
        await world.ask(auth.decide_device_login, auth.DecideDeviceLogin(begun.user_code, approve=True), key.api_key, peer=WEB)
