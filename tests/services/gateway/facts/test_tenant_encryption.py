from uuid import UUID

import pytest

from services.gateway.facts import tenant_encryption
from shared.types import UserId

ADA, BOB = UserId(UUID(int=1)), UserId(UUID(int=2))
SECRET, PLAIN = "s" * 16, b"CANARY in the coal mine"


def test_an_answer_decrypts_only_for_its_tenant_and_storage_key() -> None:
    value = tenant_encryption.seal(PLAIN, ADA, "here", SECRET)
    assert PLAIN not in value
    assert value != tenant_encryption.seal(PLAIN, ADA, "here", SECRET)
    assert tenant_encryption.unseal(value, ADA, "here", SECRET) == PLAIN
    assert tenant_encryption.unseal(value, BOB, "here", SECRET) is None
    assert tenant_encryption.unseal(value, ADA, "there", SECRET) is None
    assert tenant_encryption.unseal(value, ADA, "here", "t" * 16) is None


@pytest.mark.parametrize("length", range(0, 60, 7))
def test_a_truncated_answer_does_not_decrypt(length: int) -> None:
    assert tenant_encryption.unseal(tenant_encryption.seal(PLAIN, ADA, "here", SECRET)[:length], ADA, "here", SECRET) is None


def test_an_answer_changed_anywhere_does_not_decrypt() -> None:
    value = tenant_encryption.seal(PLAIN, ADA, "here", SECRET)
    for position in range(len(value)):
        damaged = bytearray(value)
        damaged[position] ^= 1
        assert tenant_encryption.unseal(bytes(damaged), ADA, "here", SECRET) is None
