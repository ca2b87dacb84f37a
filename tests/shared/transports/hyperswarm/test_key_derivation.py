"""Our own derivation of the public key agrees with libsodium's and with RFC 8032."""

import secrets

import nacl.signing
import pytest

from shared.transports.hyperswarm import public_key

#: RFC 8032, section 7.1, tests 1 and 2.
VECTORS = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
    ),
]


@pytest.mark.parametrize(("seed", "key"), VECTORS)
def test_the_vectors_of_the_rfc(seed: str, key: str) -> None:
    assert public_key(bytes.fromhex(seed)).hex() == key


def test_the_derivation_agrees_with_libsodium() -> None:
    for _ in range(20):
        seed = secrets.token_bytes(32)
        assert public_key(seed) == bytes(nacl.signing.SigningKey(seed).verify_key)


def test_a_seed_has_32_bytes() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        public_key(b"short")
