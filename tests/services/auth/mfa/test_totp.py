"""TOTP codes, checked against the tables of the RFCs."""

from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.auth.mfa import totp

#: The seed of RFC 6238 appendix B and RFC 4226 appendix D.
SEED = b"12345678901234567890"
NOW = 1_800_000_010.0
STEP = totp.step_at(NOW)


@pytest.mark.parametrize(
    ("seconds", "code"),
    [
        (59, "94287082"),
        (1111111109, "07081804"),
        (1111111111, "14050471"),
        (1234567890, "89005924"),
        (2000000000, "69279037"),
        (20000000000, "65353130"),
    ],
)
def test_rfc_6238_appendix_b(seconds: int, code: str) -> None:
    assert totp.code_at(SEED, totp.step_at(seconds), digits=8) == code


@pytest.mark.parametrize(
    ("count", "code"),
    [
        (0, "755224"),
        (1, "287082"),
        (2, "359152"),
        (3, "969429"),
        (4, "338314"),
        (5, "254676"),
        (6, "287922"),
        (7, "162583"),
        (8, "399871"),
        (9, "520489"),
    ],
)
def test_rfc_4226_appendix_d(count: int, code: str) -> None:
    assert totp.code_at(SEED, count) == code


@pytest.mark.parametrize(
    ("off", "found"),
    [
        pytest.param(-60, None, id="two steps behind"),
        pytest.param(-30, STEP - 1, id="one step behind"),
        pytest.param(0, STEP, id="now"),
        pytest.param(30, STEP + 1, id="one step ahead"),
        pytest.param(60, None, id="two steps ahead"),
    ],
)
def test_a_phone_may_be_thirty_seconds_off(off: int, found: int | None) -> None:
    assert totp.find_step(SEED, totp.code_at(SEED, totp.step_at(NOW + off)), NOW) == found


def test_a_code_is_accepted_as_apps_display_it() -> None:
    code = totp.code_at(SEED, STEP)
    assert totp.find_step(SEED, f" {code[:3]} {code[3:]} ", NOW) == STEP
    assert totp.may_be(f"{code[:3]} {code[3:]}")


@pytest.mark.parametrize("text", ["", "12345", "1234567", "12345a", "１２３４５６", "٠١٢٣٤٥", "-12345", "abcd-efgh-jkmn"])
def test_text_that_is_not_a_code(text: str) -> None:
    assert not totp.may_be(text)
    assert totp.find_step(SEED, text, NOW) is None


@given(st.integers(0, 999_999))
def test_only_the_current_code_and_its_neighbors_are_right(number: int) -> None:
    code = f"{number:06}"
    right = {totp.code_at(SEED, step) for step in (STEP - 1, STEP, STEP + 1)}
    assert (totp.find_step(SEED, code, NOW) is not None) == (code in right)


def test_the_first_step_has_no_predecessor() -> None:
    assert totp.find_step(SEED, totp.code_at(SEED, 0), 0) == 0


def test_the_uri_for_apps() -> None:
    seed = totp.new_seed()
    assert len(seed) * 8 == 160
    address = urlsplit(totp.uri(seed, "anna.b", "aimesh home/1"))
    assert (address.scheme, address.netloc) == ("otpauth", "totp")
    assert unquote(address.path) == "/aimesh home/1:anna.b"
    assert {name: values[0] for name, values in parse_qs(address.query).items()} == {
        "secret": totp.secret_text(seed),
        "issuer": "aimesh home/1",
        "algorithm": "SHA1",
        "digits": "6",
        "period": "30",
    }
    assert len(totp.secret_text(seed)) == 32
    assert totp.new_seed() != seed
