from uuid import UUID

import pytest

from services.gateway.repeats import sealed
from shared.types import UserId

ADA, BOB = UserId(UUID(int=1)), UserId(UUID(int=2))
SECRET, PLAIN = "s" * 16, b"CANARY in the coal mine"


def test_it_opens_for_its_tenant_at_its_place_and_nowhere_else() -> None:
    value = sealed.seal(PLAIN, ADA, "here", SECRET)
    assert PLAIN not in value
    assert value != sealed.seal(PLAIN, ADA, "here", SECRET)
    assert sealed.unseal(value, ADA, "here", SECRET) == PLAIN
    assert sealed.unseal(value, BOB, "here", SECRET) is None
    assert sealed.unseal(value, ADA, "there", SECRET) is None
    assert sealed.unseal(value, ADA, "here", "t" * 16) is None


@pytest.mark.parametrize("length", range(0, 60, 7))
def test_what_was_cut_does_not_open(length: int) -> None:
    assert sealed.unseal(sealed.seal(PLAIN, ADA, "here", SECRET)[:length], ADA, "here", SECRET) is None


def test_what_was_changed_in_any_place_does_not_open() -> None:
    value = sealed.seal(PLAIN, ADA, "here", SECRET)
    for position in range(len(value)):
        damaged = bytearray(value)
        damaged[position] ^= 1
        assert sealed.unseal(bytes(damaged), ADA, "here", SECRET) is None
