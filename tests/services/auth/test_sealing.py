"""Sealed data opens only for its purpose and owner, with its key, and unchanged."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.auth import sealing
from services.auth.sealing import DataSealer
from shared import errors

KEY, OLD = bytes(range(32)), bytes(range(32, 64))
OURS = DataSealer(KEY)


@given(st.binary(max_size=200))
def test_sealed_data_can_be_opened(plain: bytes) -> None:
    sealed = OURS.seal("totp seed", "anna", plain)
    assert OURS.open("totp seed", "anna", sealed) == plain
    assert plain not in sealed or len(plain) < 4
    assert sealed != OURS.seal("totp seed", "anna", plain), "each time under another nonce"


@pytest.mark.parametrize(
    ("purpose", "owner"),
    [
        pytest.param("totp seed", "ben", id="another's row"),
        pytest.param("signing key", "anna", id="another purpose"),
        pytest.param("totp", " seed/anna", id="other words that read the same"),
        pytest.param("totp seed/anna", "", id="the border moved"),
    ],
)
def test_data_moved_elsewhere_does_not_open(purpose: str, owner: str) -> None:
    sealed = OURS.seal("totp seed", "anna", b"seed")
    with pytest.raises(errors.Internal, match="the stored value was changed, or encrypted for something else"):
        OURS.open(purpose, owner, sealed)


def test_any_changed_bit_is_detected() -> None:
    sealed = OURS.seal("totp seed", "anna", b"seed")
    for place in range(len(sealed) * 8):
        changed = bytearray(sealed)
        changed[place // 8] ^= 1 << place % 8
        with pytest.raises(
            (errors.Internal, errors.Unavailable),
            match=r"the stored value was changed, or encrypted for something else|encrypted with another DATA_KEY",
        ):
            OURS.open("totp seed", "anna", bytes(changed))


@given(st.binary(max_size=100))
def test_no_bytes_are_taken_for_sealed_data(junk: bytes) -> None:
    with pytest.raises(
        (errors.Internal, errors.Unavailable),
        match=r"the stored value was changed, or encrypted for something else|encrypted with another DATA_KEY",
    ):
        OURS.open("totp seed", "anna", junk)


def test_a_second_key_opens_what_the_first_sealed_during_a_rotation() -> None:
    before = DataSealer(OLD).seal("totp seed", "anna", b"seed")
    with pytest.raises(errors.Unavailable, match="another DATA_KEY") as refused:
        OURS.open("totp seed", "anna", before)
    assert "DATA_KEY_OLD" in refused.value.hint
    both = DataSealer.of(base64.b64encode(KEY).decode(), base64.b64encode(OLD).decode())
    assert both.open("totp seed", "anna", before) == b"seed"
    assert both.is_outdated(before)
    now = both.seal("totp seed", "anna", b"seed")
    assert not both.is_outdated(now)
    assert OURS.open("totp seed", "anna", now) == b"seed"


def test_a_sealed_value_names_its_key_by_eight_hash_digits() -> None:
    sealed = OURS.seal("totp seed", "anna", b"seed")
    assert sealing.key_id_of(sealed) == OURS.key_id == sealing.key_id(KEY)
    assert OURS.key_id == "630dcd29", "the first eight of SHA-256 of the bytes 0 to 31"


@pytest.mark.parametrize("text", [base64.b64encode(KEY).decode(), base64.b64encode(KEY).decode().rstrip("=") + "\n"])
def test_a_key_is_read_as_openssl_writes_it(text: str) -> None:
    assert sealing.read_key(text) == KEY


def test_a_key_in_url_safe_base64_is_read_too() -> None:
    key = b"\xfb\xff" * 16
    assert sealing.read_key(base64.urlsafe_b64encode(key).decode()) == sealing.read_key(base64.b64encode(key).decode()) == key


@pytest.mark.parametrize(
    "text",
    ["", "changeme", "x" * 44, base64.b64encode(KEY[:31]).decode(), base64.b64encode(KEY + b"x").decode(), "é" * 44, KEY.hex()],
)
def test_an_invalid_key_is_a_wrong_setting_and_not_quoted(text: str) -> None:
    with pytest.raises(errors.BadSettings, match="DATA_KEY is not 32 bytes") as refused:
        sealing.read_key(text)
    assert not text or text not in refused.value.message + refused.value.hint


def test_keys_for_other_purposes_differ() -> None:
    derived = {sealing.derive(KEY, purpose) for purpose in ("audit", "signing")} | {sealing.derive(OLD, "audit"), KEY}
    assert len(derived) == 4
    assert sealing.derive(KEY, "audit") == sealing.derive(KEY, "audit")
    assert all(len(key) == 32 for key in derived)
