"""Limits on guesses, on a real Valkey and with a test clock."""

import asyncio
from collections.abc import AsyncIterator, Callable
from uuid import uuid4

import pytest
import redis

from services.auth.sessions import failed_logins
from services.auth.sessions.failed_logins import FailedLogins, Guess
from shared import errors
from shared.stores.cache import Cache
from shared.types import UserId
from tests.services.auth.sessions.test_session_store import Clock

MINUTE = 60


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def failed(valkey_url: str, clock: Clock) -> AsyncIterator[FailedLogins]:
    async with Cache.open(valkey_url) as cache:
        yield FailedLogins(cache, clock=clock)


async def charged(failed: FailedLogins, times: int, account: str = "anna", address: str = "", browser: str = "") -> int:
    """Return how many of these guesses are allowed."""
    outcomes = await asyncio.gather(*(failed.charge(account, address, browser) for _ in range(times)), return_exceptions=True)
    assert all(isinstance(outcome, Guess | errors.Limited | errors.NotAllowed) for outcome in outcomes)
    return sum(isinstance(outcome, Guess) for outcome in outcomes)


async def wait_of(failed: FailedLogins, account: str = "anna") -> float:
    with pytest.raises(errors.Limited) as refused:
        await failed.charge(account)
    assert refused.value.retry_after_seconds is not None
    return refused.value.retry_after_seconds


async def test_ten_of_many_concurrent_attempts_are_allowed(failed: FailedLogins) -> None:
    assert await charged(failed, 200) == 10
    assert await wait_of(failed) == 15 * MINUTE
    assert await charged(failed, 1, "ben") == 1
    await failed.reset("anna")
    assert await charged(failed, 200) == 10


async def test_each_used_up_window_is_followed_by_a_longer_one_up_to_an_hour(failed: FailedLogins, clock: Clock) -> None:
    waits = []
    for _ in range(6):
        assert await charged(failed, 11) == 10
        waits.append(await wait_of(failed) / MINUTE)
        clock.now += waits[-1] * MINUTE - 1
        assert await charged(failed, 1) == 0
        clock.now += 1
    assert waits == [15, 30, 60, 60, 60, 60]


async def test_fewer_attempts_than_a_window_allows_keep_windows_short(failed: FailedLogins, clock: Clock) -> None:
    for _ in range(5):
        assert await charged(failed, 9) == 9
        clock.now += 15 * MINUTE
    assert await charged(failed, 20) == 10
    assert await wait_of(failed) == 15 * MINUTE


async def test_after_a_hundred_failures_in_a_row_a_reset_is_needed(failed: FailedLogins, clock: Clock) -> None:
    made = 0
    for _ in range(30):
        made += await charged(failed, 20)
        clock.now += 60 * MINUTE
    assert made == 100
    with pytest.raises(errors.NotAllowed, match="100 failures in a row") as refused:
        await failed.charge("anna")
    assert "by mail" in refused.value.hint
    await failed.reset("anna")
    assert await charged(failed, 1) == 1


async def test_failures_in_a_row_expire(failed: FailedLogins, valkey_url: str) -> None:
    await failed.charge("anna")
    with redis.Redis.from_url(valkey_url) as client:
        lives = [client.pttl(key) for key in client.keys("*")]
    assert all(0 < life <= 3 * 86_400_000 for life in lives)


async def test_an_address_has_thirty_attempts_for_all_accounts(failed: FailedLogins) -> None:
    made = [await charged(failed, 1, f"user{n}", "203.0.113.7") for n in range(200)]
    assert sum(made) == 30
    with pytest.raises(errors.Limited, match="from your address"):
        await failed.charge("anna", "203.0.113.7")
    assert await charged(failed, 1, "anna", "203.0.113.8") == 1
    assert await charged(failed, 1, "anna") == 1


async def test_a_success_refunds_only_its_own_charge(failed: FailedLogins) -> None:
    """A login to one's own account must not reset the count of guesses at other accounts."""
    for n in range(29):
        await failed.charge(f"user{n}", "203.0.113.7")
    for _ in range(5):
        await failed.charge("mine", "203.0.113.7")
        await failed.reset("mine", "203.0.113.7")
    assert await charged(failed, 5, "another", "203.0.113.7") == 1


async def test_an_attempt_refused_by_one_limit_is_charged_to_none(failed: FailedLogins) -> None:
    assert await charged(failed, 50, "anna", "203.0.113.7") == 5
    made = [await charged(failed, 1, f"user{n}", "203.0.113.7") for n in range(50)]
    assert sum(made) == 25


async def test_the_mesh_has_a_limit(failed: FailedLogins, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failed_logins, "MESH_GUESSES", 50)
    made = [await charged(failed, 1, f"user{n}", f"203.0.113.{n}") for n in range(60)]
    assert sum(made) == 50
    with pytest.raises(errors.Limited, match="in this mesh"):
        await failed.charge("anna")
    await failed.reset("user1", "203.0.113.1")
    assert await charged(failed, 1, "anna") == 1


async def test_a_stranger_with_one_address_leaves_the_owner_attempts(failed: FailedLogins) -> None:
    assert await charged(failed, 50, "anna", "203.0.113.7") == 5
    with pytest.raises(errors.Limited, match="for this account from your address"):
        await failed.charge("anna", "203.0.113.7")
    assert await charged(failed, 50, "anna", "198.51.100.1") == 5
    # All strangers together have as many attempts as before.
    assert await charged(failed, 50, "anna", "198.51.100.2") == 0
    assert await charged(failed, 50, "anna") == 0


async def test_addresses_of_one_ipv6_network_count_as_one(failed: FailedLogins) -> None:
    made = [await charged(failed, 1, "anna", f"2001:db8::{n:x}") for n in range(20)]
    assert sum(made) == 5


async def test_a_known_browser_has_its_own_attempts(failed: FailedLogins, clock: Clock) -> None:
    while await charged(failed, 20):
        clock.now += 60 * MINUTE
    with pytest.raises(errors.NotAllowed, match="100 failures in a row"):
        await failed.charge("anna", "203.0.113.7")
    assert await charged(failed, 40, "anna", "203.0.113.7", "a browser") == 10
    with pytest.raises(errors.Limited, match="from this browser"):
        await failed.charge("anna", "203.0.113.7", "a browser")
    assert await charged(failed, 40, "anna", "203.0.113.7", "another one") == 10
    await failed.reset("anna", "203.0.113.7", "a browser")
    assert await charged(failed, 40, "anna", "203.0.113.7", "a browser") == 10
    # A success in this browser does not help strangers.
    assert await charged(failed, 1) == 0


async def test_a_reset_unlocks_the_account_from_every_address(failed: FailedLogins) -> None:
    assert await charged(failed, 5, "anna", "203.0.113.7") == 5
    await failed.reset("anna")
    assert await charged(failed, 9, "anna", "203.0.113.7") == 5


# --- refunds ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def counted(valkey_url: str) -> Callable[[], dict[bytes, bytes]]:
    """Return the counters in Valkey by key, without names and ends of windows."""

    def read() -> dict[bytes, bytes]:
        with redis.Redis.from_url(valkey_url) as client:
            account = {key: client.hmget(key, "run", "used") for key in client.keys("*") if client.type(key) == b"hash"}
            shared = {key: client.get(key) for key in client.keys("*") if client.type(key) == b"string"}
        return {**{key: b"/".join(value) for key, value in account.items()}, **shared}

    return read


async def test_a_refunded_attempt_never_counted(failed: FailedLogins, counted: Callable[[], dict[bytes, bytes]]) -> None:
    await charged(failed, 3, "anna", "203.0.113.7")
    before = counted()
    assert sorted(before.values()) == [b"3", b"3", b"3/3", b"3/3"]
    for _ in range(200):
        await failed.refund(await failed.charge("anna", "203.0.113.7"))
    assert counted() == before
    assert await charged(failed, 20, "anna", "203.0.113.7") == 2
    assert await charged(failed, 20, "anna") == 5


async def test_refunding_the_only_attempt_leaves_no_trace(failed: FailedLogins, counted: Callable[[], dict[bytes, bytes]]) -> None:
    await failed.refund(await failed.charge("anna"))
    assert list(counted().values()) == [b"0"], "all that is left is the mesh's counter"
    assert await charged(failed, 20) == 10


async def test_concurrent_refunds_each_return_their_own_charge(failed: FailedLogins, counted: Callable[[], dict[bytes, bytes]]) -> None:
    """Wrong guesses stay charged, in whatever order the others are refunded."""
    wrong = 0

    async def guess(number: int) -> None:
        nonlocal wrong
        guess = await failed.charge("anna", "203.0.113.7")
        if number % 8 == 0:
            wrong += 1
        else:
            await failed.refund(guess)

    for began in range(0, 24, 2):
        await asyncio.gather(*(guess(number) for number in range(began, began + 2)))
    assert wrong == 3
    assert sorted(counted().values()) == [b"3", b"3", b"3/3", b"3/3"]
    assert await charged(failed, 20, "anna", "203.0.113.7") == 2


async def test_reset_counters_are_not_refunded_again(failed: FailedLogins, counted: Callable[[], dict[bytes, bytes]]) -> None:
    late = await failed.charge("anna", "203.0.113.7")
    await failed.charge("anna", "203.0.113.7")
    await failed.reset("anna", "203.0.113.7")
    await charged(failed, 5, "anna", "203.0.113.7")
    assert sorted(counted().values()) == [b"5/5", b"5/5", b"6", b"6"]
    await failed.refund(late)
    assert sorted(counted().values()) == [b"5", b"5", b"5/5", b"5/5"], (
        "the address and the mesh were still charged with it; the account was not"
    )


async def test_a_refund_only_affects_the_window_that_was_charged(
    failed: FailedLogins, clock: Clock, counted: Callable[[], dict[bytes, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failed_logins, "WINDOW_SECONDS", 0.2)
    late = await failed.charge("anna", "203.0.113.7")
    clock.now += 1
    async with asyncio.timeout(30):
        while len(counted()) > 2:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    monkeypatch.undo()
    await charged(failed, 2, "anna", "203.0.113.7")
    assert sorted(counted().values()) == [b"2", b"2", b"3/2", b"3/2"]
    await failed.refund(late)
    assert sorted(counted().values()) == [b"2", b"2", b"2/2", b"2/2"], "only the rows of the account still had it"


async def test_an_attempt_without_an_address_refunds_no_address(failed: FailedLogins, counted: Callable[[], dict[bytes, bytes]]) -> None:
    await failed.charge("anna", "203.0.113.7")
    await failed.refund(await failed.charge("anna"))
    assert sorted(counted().values()) == [b"1", b"1", b"1/1", b"1/1"]


def test_codes_are_counted_separately_and_names_ignore_case() -> None:
    user = UserId(uuid4())
    assert failed_logins.codes_of(user) != failed_logins.account_of(user, "anna")
    assert failed_logins.account_of(None, "ANNA") == failed_logins.account_of(None, "anna")
