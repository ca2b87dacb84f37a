from uuid import UUID

import pytest

from services.gateway.idempotency import answer_encryption
from shared.types import UserId

ADA, BOB = UserId(UUID(int=1)), UserId(UUID(int=2))
SECRET, PLAIN = "s" * 16, b"CANARY in the coal mine"


def test_it_opens_for_its_tenant_at_its_place_and_nowhere_else() -> None:
    value = answer_encryption.seal(PLAIN, ADA, "here", SECRET)
    assert PLAIN not in value
    assert value != answer_encryption.seal(PLAIN, ADA, "here", SECRET)
    assert answer_encryption.unseal(value, ADA, "here", SECRET) == PLAIN
    assert answer_encryption.unseal(value, BOB, "here", SECRET) is None
    assert answer_encryption.unseal(value, ADA, "there", SECRET) is None
    assert answer_encryption.unseal(value, ADA, "here", "t" * 16) is None


@pytest.mark.parametrize("length", range(0, 60, 7))
def test_what_was_cut_does_not_open(length: int) -> None:
    assert answer_encryption.unseal(answer_encryption.seal(PLAIN, ADA, "here", SECRET)[:length], ADA, "here", SECRET) is None


def test_what_was_changed_in_any_place_does_not_open() -> None:
    value = answer_encryption.seal(PLAIN, ADA, "here", SECRET)
    for position in range(len(value)):
        damaged = bytearray(value)
        damaged[position] ^= 1
        assert answer_encryption.unseal(bytes(damaged), ADA, "here", SECRET) is None
