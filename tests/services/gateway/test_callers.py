import asyncio
import math
from collections.abc import Awaitable, Callable, Coroutine

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.callers import Callers
from shared import errors
from shared.api import auth
from shared.identity import credentials
from shared.types import Credential
from tests.services.gateway.fakes import KEY, OWNER, PERSON, TOKEN, USER, FakeRpc
from tests.shared.timing.virtual_time import VirtualLoop, pass_time


class Time:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def make_callers(clock: Time | None = None, wall: Time | None = None) -> tuple[Callers, FakeRpc]:
    rpc = FakeRpc()

    async def validate(request: auth.ValidateApiKey) -> auth.Principal:
        await asyncio.sleep(0)
        return OWNER

    async def identify(request: auth.Identify) -> auth.Principal:
        return PERSON

    rpc.answers |= {"auth.validateApiKey": validate, "auth.identify": identify}
    return Callers(rpc, clock or Time(), wall or Time()), rpc


def raising(error: errors.AimeshError) -> Callable[[object], Awaitable[object]]:
    async def answer(_request: object) -> object:
        raise error

    return answer


MALFORMED = [
    None, "", "x", "aip_live_", KEY[:-1], KEY + "x", KEY + "\n", KEY[:-1] + ("0" if KEY[-1] != "0" else "1"), KEY.lower(),
    "aip_join_" + KEY[9:],
    "' OR 1=1 --", "a.b", "a.b.c.d", "a.b.c\n", "ä.ö.ü", "x" * 70_000, "a." + "b" * 5000 + ".c", "\x00",
]  # fmt: skip


@pytest.mark.parametrize("credential", MALFORMED, ids=lambda text: repr(text)[:30])
async def test_a_malformed_credential_is_counted_without_asking_auth(credential: str | None) -> None:
    refusals: list[str] = []
    _, rpc = make_callers()
    callers = Callers(rpc, Time(), Time(), count_refusal=refusals.append)
    with pytest.raises(
        errors.NotAuthenticated,
        match=r"no credential|the credential is neither an API key|this is not a valid API key: its checksum",
    ):
        await callers.identify(None if credential is None else Credential(credential))
    assert not rpc.called
    assert refusals == ["missing" if credential is None else "malformed"]


@given(st.text(max_size=200))
def test_random_text_is_refused_without_asking_auth(text: str) -> None:
    if text.count(".") == 2:
        return
    callers, rpc = make_callers()
    with pytest.raises(errors.NotAuthenticated, match="the credential is neither an API key"):
        asyncio.run(callers.identify(Credential(text)))
    assert not rpc.called


async def test_keys_and_tokens_go_to_their_own_methods() -> None:
    callers, rpc = make_callers()
    assert await callers.identify(KEY) is OWNER
    assert await callers.identify(TOKEN) is PERSON
    assert rpc.called == ["auth.validateApiKey", "auth.identify"]


async def test_concurrent_requests_of_one_caller_ask_auth_once() -> None:
    callers, rpc = make_callers()
    await asyncio.gather(*(callers.identify(KEY) for _ in range(100)))
    assert len(rpc.called) == 1


async def test_refusals_are_not_cached() -> None:
    callers, rpc = make_callers()
    rpc.answers["auth.validateApiKey"] = raising(errors.NotAuthenticated("revoked"))
    for _ in range(2):
        with pytest.raises(errors.NotAuthenticated, match="revoked"):
            await callers.identify(KEY)
    assert len(rpc.called) == 2


async def test_without_auth_a_five_minute_old_answer_is_used() -> None:
    clock = Time()
    callers, rpc = make_callers(clock)
    await callers.identify(KEY)
    rpc.answers["auth.validateApiKey"] = raising(errors.NotReachable("no auth"))
    clock.now = 299
    assert await callers.identify(KEY) is OWNER
    clock.now = 300
    with pytest.raises(errors.NotReachable, match="no auth"):
        await callers.identify(KEY)


async def test_an_auth_that_is_still_starting_is_unavailable() -> None:
    """A 404 would tell the caller that its path or model doesn't exist."""
    callers, rpc = make_callers(Time())
    rpc.answers["auth.validateApiKey"] = raising(errors.UnknownMethod("auth.validateApiKey"))
    with pytest.raises(errors.Unavailable, match="auth is still starting"):
        await callers.identify(KEY)


async def test_an_access_token_is_not_accepted_past_its_expiry() -> None:
    clock, wall = Time(), Time()
    wall.now = 9_999_999_998  # the token ends a second later
    callers, rpc = make_callers(clock, wall)
    await callers.identify(TOKEN)
    clock.now = 0.9
    await callers.identify(TOKEN)
    assert len(rpc.called) == 1
    clock.now = 1.1
    await callers.identify(TOKEN)
    assert len(rpc.called) == 2


async def test_a_user_change_takes_effect_immediately_and_a_broken_stream_is_reopened() -> None:
    clock = Time()
    callers, rpc = make_callers(clock)
    async with asyncio.TaskGroup() as tasks:
        watch = tasks.create_task(callers.watch())
        rpc.changes.put_nowait(auth.Change(1))
        await _until(rpc.changes.empty)
        await callers.identify(KEY)
        clock.now = 50
        await callers.identify(KEY)
        assert len(rpc.called) == 1
        rpc.changes.put_nowait(auth.Change(2, USER))
        await _until(rpc.changes.empty)
        await callers.identify(KEY)
        assert len(rpc.called) == 2
        rpc.changes.put_nowait(errors.LinkLost("auth died"))
        await _until(rpc.changes.empty)
        clock.now = 56  # more than 5 s later, without a stream
        await callers.identify(KEY)
        assert len(rpc.called) == 3
        watch.cancel()


async def test_a_revocation_during_a_call_to_auth_is_not_lost() -> None:
    callers, rpc = make_callers()
    reached, answer = asyncio.Event(), asyncio.Event()

    async def validate(request: auth.ValidateApiKey) -> auth.Principal:
        reached.set()
        await answer.wait()
        return OWNER

    rpc.answers["auth.validateApiKey"] = validate
    async with asyncio.TaskGroup() as tasks:
        watch = tasks.create_task(callers.watch())
        rpc.changes.put_nowait(auth.Change(1))
        await _until(rpc.changes.empty)
        asking = tasks.create_task(callers.identify(KEY))
        await reached.wait()
        # Auth has read the key, then the key is revoked.
        rpc.changes.put_nowait(auth.Change(2, USER))
        await _until(rpc.changes.empty)
        answer.set()
        assert await asking is OWNER
        rpc.answers["auth.validateApiKey"] = raising(errors.NotAuthenticated("revoked"))
        with pytest.raises(errors.NotAuthenticated, match="revoked"):
            await callers.identify(KEY)
        watch.cancel()


async def test_a_key_that_auth_refused_is_not_accepted_while_auth_is_down() -> None:
    clock = Time()
    callers, rpc = make_callers(clock)
    await callers.identify(KEY)
    clock.now = 10
    for error in (errors.NotAuthenticated("revoked"), errors.NotReachable("no auth")):
        rpc.answers["auth.validateApiKey"] = raising(error)
        with pytest.raises(type(error)):
            await callers.identify(KEY)


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0)
    for _ in range(3):
        await asyncio.sleep(0)


def test_the_fakes_key_is_well_formed() -> None:
    assert credentials.looks_like_api_key(KEY)


# --- our own connection to NATS -------------------------------------------------------------------------------------------


def lost_callers(**more: int) -> tuple[Callers, FakeRpc, list[float]]:
    """Callers in virtual time, and when our own connection came back."""
    back_at, (_, rpc) = [math.inf], make_callers()
    clock = asyncio.get_running_loop().time
    rpc.answers["auth.validateApiKey"] = raising(errors.NotConnected("our own connection is lost"))
    return Callers(rpc, clock, Time(), back_at=lambda: back_at[0], **more), rpc, back_at


def in_virtual_time(story: Callable[[], Coroutine[None, None, None]]) -> None:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(story())


@pytest.mark.parametrize("auth_is_late", [0.0, 2.5])
def test_a_key_that_auth_must_be_asked_about_waits_until_our_own_connection_is_back(auth_is_late: float) -> None:
    async def story() -> None:
        callers, rpc, back_at = lost_callers()
        asked = [asyncio.create_task(callers.identify(KEY)) for _ in range(3)]
        await pass_time(20)
        back_at[0] = asyncio.get_running_loop().time()
        rpc.answers["auth.validateApiKey"] = raising(errors.NotReachable("no auth"))
        await pass_time(auth_is_late)

        async def validate(_request: object) -> auth.Principal:
            return OWNER

        rpc.answers["auth.validateApiKey"] = validate
        assert await asyncio.gather(*asked) == [OWNER] * 3

    in_virtual_time(story)


def test_all_questions_with_a_key_wait_at_most_as_long_as_in_the_queue() -> None:
    async def story() -> None:
        callers, _, _ = lost_callers(wait_seconds=7)
        asked = [asyncio.create_task(callers.identify(KEY)) for _ in range(3)]
        ends = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(end) for end in ends] == [errors.NotConnected] * 3
        assert asyncio.get_running_loop().time() == pytest.approx(7, abs=0.2)

    in_virtual_time(story)


def test_only_so_many_questions_wait_for_our_own_connection() -> None:
    async def story() -> None:
        callers, _, _ = lost_callers(most_waiting=2)
        asked = [asyncio.create_task(callers.identify(key)) for key in (KEY, KEY)]
        await pass_time(1)
        with pytest.raises(errors.Overloaded, match="2 requests already wait"):
            await callers.identify(KEY)
        for each in asked:
            each.cancel()
        await asyncio.wait(asked)

    in_virtual_time(story)


def test_with_our_own_connection_an_auth_that_is_away_is_not_waited_for() -> None:
    async def story() -> None:
        callers, rpc, back_at = lost_callers()
        back_at[0] = asyncio.get_running_loop().time() - 3.1
        rpc.answers["auth.validateApiKey"] = raising(errors.NotReachable("no auth"))
        with pytest.raises(errors.NotReachable, match="no auth"):
            await callers.identify(KEY)
        assert len(rpc.called) == 1

    in_virtual_time(story)


async def test_a_known_caller_does_not_wait_for_an_auth_that_is_away() -> None:
    """Questions about one credential are asked one after the other, so each would wait for the ones before it."""
    clock, (_, rpc) = Time(), make_callers()
    can_ask = True
    callers = Callers(rpc, clock, Time(), can_ask=lambda: can_ask)
    await callers.identify(KEY)
    clock.now, can_ask = 100, False
    assert await callers.identify(KEY) is OWNER
    assert len(rpc.called) == 1
    can_ask = True
    await callers.identify(KEY)
    assert len(rpc.called) == 2
