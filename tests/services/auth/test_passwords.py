"""Which passwords are allowed, and how they are hashed and compared."""

import asyncio
import os
import sys
import threading
from collections.abc import Iterator
from typing import Literal

import argon2
import pytest

from services.auth import passwords
from services.auth.passwords import Passwords
from shared import errors

COMMON = frozenset({"password1", "12345678"})
WORDS = ("john_doe", "johnny", "aimesh")


@pytest.mark.parametrize(
    ("password", "fault"),
    [
        pytest.param("secure_password", None, id="the seed's example"),
        pytest.param("correct horse battery staple", None, id="a sentence"),
        pytest.param("пароль-секрет", None, id="any script"),
        pytest.param("x1y2z3w", "shorter", id="seven characters"),
        pytest.param("ab" * 128, None, id="256 characters"),
        pytest.param("ab" * 128 + "c", "longer", id="257 characters"),
        pytest.param("password1", "common", id="on the list"),
        pytest.param("PassWord1", "common", id="on the list in other letters"),
        pytest.param("zzzzzzzzzzzz", "common", id="one character again and again"),
        pytest.param("john_doe", "your name", id="the user name"),
        pytest.param("JOHN_DOE1234", "your name", id="the user name and a little"),
        pytest.param("aimesh99", "this product", id="the product"),
        pytest.param("aimesh-and-llamas", None, id="the product in a sentence"),
    ],
)
def test_find_fault(password: str, fault: str | None) -> None:
    found = passwords.find_fault(password, WORDS, 8, COMMON)
    assert found is None if fault is None else fault in (found or "")


def test_a_short_name_does_not_make_a_password_bad() -> None:
    assert passwords.find_fault("bobsleds", ("bob", "", "aimesh"), 8, COMMON) is None


@pytest.fixture(autouse=True, scope="module")
def _cheap_hashes() -> None:
    """Override the fixture: this module uses real hashes."""


@pytest.fixture
def opened() -> Iterator[Passwords]:
    with Passwords.open(min_length=8) as made:
        yield made


@pytest.mark.parametrize("common", ["password1", "12345678", "qwerty123", "iloveyou", "Password123"])
def test_the_shipped_list_has_the_most_common_passwords(opened: Passwords, common: str) -> None:
    with pytest.raises(errors.BadRequest, match="most common"):
        opened.check(common, username="anna", email="a@b.c")


def test_the_local_part_of_the_address_counts_as_a_word(opened: Passwords) -> None:
    with pytest.raises(errors.BadRequest, match="your address"):
        opened.check("maria.smith1", username="anna", email="maria.smith@example.com")


async def test_hash_and_verify(opened: Passwords) -> None:
    hashed = await opened.hash("secure_password")
    assert hashed.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert await opened.verify("secure_password", hashed)
    assert not await opened.verify("secure_passwort", hashed)
    assert await opened.hash("secure_password") != hashed


async def test_composed_and_decomposed_letters_are_the_same(opened: Passwords) -> None:
    assert await opened.verify("cafe\u0301 crème", await opened.hash("caf\u00e9 crème"))


async def test_characters_beyond_the_maximum_count(opened: Passwords) -> None:
    hashed = await opened.hash("ab" * 128)
    assert await opened.verify("ab" * 128, hashed)
    assert not await opened.verify("ab" * 128 + "c", hashed)


async def test_hashes_with_other_parameters_are_outdated(opened: Passwords) -> None:
    assert not opened.is_outdated(await opened.hash("secure_password"))
    assert opened.is_outdated(argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash("secure_password"))


class Counting(argon2.PasswordHasher):
    """Counts comparisons, and can block them."""

    def __init__(self) -> None:
        super().__init__(time_cost=1, memory_cost=8, parallelism=1)
        self.compared = 0
        self.gate = threading.Event()
        self.gate.set()

    def verify(self, hash: str | bytes, password: str | bytes) -> Literal[True]:  # noqa: A002
        assert self.gate.wait(10)
        self.compared += 1
        return super().verify(hash, password)


async def test_an_unknown_user_costs_a_comparison_too() -> None:
    hasher = Counting()
    with Passwords.open(min_length=8, hasher=hasher) as made:
        hashed = await made.hash("secure_password")
        assert not await made.verify("wrong_password", hashed)
        assert hasher.compared == 1
        assert not await made.verify("wrong_password", None)
        assert hasher.compared == 2
        assert not await made.verify("x" * 100_000, None)
        assert hasher.compared == 3


async def test_requests_beyond_the_queue_are_told_to_retry_and_the_loop_stays_responsive() -> None:
    hasher = Counting()
    with Passwords.open(min_length=8, hasher=hasher) as made:
        hashed = await made.hash("secure_password")
        hasher.gate.clear()
        asked = [asyncio.ensure_future(made.verify("secure_password", hashed)) for _ in range(500)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert hasher.compared == 0
        hasher.gate.set()
        answers = await asyncio.gather(*asked, return_exceptions=True)
        refused = [answer for answer in answers if isinstance(answer, errors.Overloaded)]
        assert len(refused) + answers.count(True) == 500
        assert 50 < answers.count(True) <= 50 + 64
        assert refused[0].retry_after_seconds == 1
        assert await made.verify("secure_password", hashed)


async def test_a_canceled_caller_counts_until_its_hash_is_done() -> None:
    hasher = Counting()
    with Passwords.open(min_length=8, hasher=hasher) as made:
        hashed = await made.hash("secure_password")
        hasher.gate.clear()
        for _ in range(3):
            asked = asyncio.ensure_future(made.verify("secure_password", hashed))
            await asyncio.sleep(0)
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked
        assert made._at_once == 3
        hasher.gate.set()
        assert await made.verify("secure_password", hashed)
        for _ in range(6000):
            if not made._at_once:
                return
            await asyncio.sleep(0.005)
        pytest.fail("cancelled callers are counted for ever")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux gives a thread a priority of its own")
async def test_hashing_runs_at_low_priority(opened: Passwords) -> None:
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert await opened._run(lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id())) == max(10, own)
    assert os.getpriority(os.PRIO_PROCESS, 0) == own


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux gives a thread a priority of its own")
async def test_a_service_started_with_nice_by_an_ordinary_user_can_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    def as_for_a_user(which: int, who: int, priority: int) -> None:
        if priority < 15:
            raise PermissionError

    monkeypatch.setattr(os, "getpriority", lambda which, who: 15)
    monkeypatch.setattr(os, "setpriority", as_for_a_user)
    with Passwords.open(min_length=8) as made:
        assert await made._run(lambda: "hashed") == "hashed"
