"""Recovery codes: enough bits, readable, and bound to their owner."""

import re
from math import log2
from uuid import UUID

import pytest

from services.auth.mfa import recovery_codes, totp
from shared.types import UserId

ANNA, BEN = UserId(UUID(int=1)), UserId(UUID(int=2))
PEPPER = "p" * 32


def test_ten_codes_of_at_least_fifty_bits_in_groups() -> None:
    codes = recovery_codes.new_codes()
    assert len(set(codes)) == 10
    assert all(re.fullmatch(r"[0-9a-hjkmnp-tv-z]{4}(-[0-9a-hjkmnp-tv-z]{4}){2}", code) for code in codes)
    assert 12 * log2(len(recovery_codes._ALPHABET)) >= 50
    assert len(set(recovery_codes._ALPHABET)) == 32
    seen = {character for _ in range(200) for code in recovery_codes.new_codes() for character in code}
    assert seen == {*recovery_codes._ALPHABET, "-"}


@pytest.mark.parametrize(
    "typed", ["0b1c-2d3e-4f5g", "0B1C-2D3E-4F5G", " 0b1c 2d3e 4f5g ", "0b1c2d3e4f5g", "ob1c-2d3e-4f5g", "oblc2d3e4f5g"]
)
def test_a_code_is_accepted_however_it_is_typed(typed: str) -> None:
    assert recovery_codes.may_be(typed)
    assert recovery_codes.digest(typed, ANNA, PEPPER) == recovery_codes.digest("0b1c-2d3e-4f5g", ANNA, PEPPER)


@pytest.mark.parametrize("typed", ["", "123456", "0b1c-2d3e", "0b1c-2d3e-4f5g-6h7j", "0b1c-2d3e-4f5!", "é" * 12, "x" * 10_000])
def test_text_that_is_not_a_recovery_code(typed: str) -> None:
    assert not recovery_codes.may_be(typed)


def test_a_recovery_code_is_never_taken_for_an_app_code() -> None:
    assert not any(totp.may_be(code) for code in recovery_codes.new_codes())
    assert not recovery_codes.may_be("123 456")


def test_the_digest_depends_on_its_owner_and_the_pepper() -> None:
    code = "0b1c-2d3e-4f5g"
    digests = {
        recovery_codes.digest(code, ANNA, PEPPER),
        recovery_codes.digest(code, BEN, PEPPER),
        recovery_codes.digest(code, ANNA, "q" * 32),
    }
    assert len(digests) == 3
    assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in digests)
