"""The format of API keys: what looks like a key, and of which kind it is."""

import re
import zlib

import pytest

from shared.api.auth import KeyKind
from shared.identity import credentials

RANDOM = "0aZ" * 14 + "x"
SUM = credentials.checksum(RANDOM)


def test_every_kind_of_key_has_its_prefix() -> None:
    assert set(credentials.PREFIXES) == {kind.value for kind in KeyKind}
    assert credentials.PREFIXES["live"] == credentials.PREFIX
    assert {kind: f"aip_{kind}_" for kind in credentials.PREFIXES} == credentials.PREFIXES


@pytest.mark.parametrize("kind", KeyKind)
def test_the_kind_shows_in_the_key(kind: KeyKind) -> None:
    key = credentials.PREFIXES[kind] + RANDOM + SUM
    assert credentials.kind_of(key) == kind
    assert credentials.looks_like_api_key(key)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="nothing"),
        pytest.param(f"aip_join_{RANDOM}{SUM}", id="a kind that is none"),
        pytest.param(f"aip__{RANDOM}{SUM}", id="no kind"),
        pytest.param(f"aip_LIVE_{RANDOM}{SUM}", id="the kind in capitals"),
        pytest.param(f"aip_live_{RANDOM}{SUM}\n", id="a newline at the end"),
        pytest.param(f"aip_live_{RANDOM}{SUM}0", id="too long"),
        pytest.param(f" aip_live_{RANDOM}{SUM}", id="a space before"),
        pytest.param(f"aip_live_{RANDOM[:-1]}y{SUM}", id="another random part"),
        pytest.param(f"aip_live_{RANDOM}{SUM[:-1]}!", id="a character of no alphabet"),
        pytest.param("aip_live_" + "٣" * 49, id="digits of another script"),
        pytest.param("aip_live_" + "A" * 65_536, id="64 KiB"),
        pytest.param("aip_live_\ud800", id="half a character"),
    ],
)
def test_text_that_is_not_a_key(text: str) -> None:
    assert credentials.kind_of(text) is None
    assert not credentials.looks_like_api_key(text)


def test_the_checksum_is_a_crc_of_the_random_part_in_base62() -> None:
    number = sum(credentials.ALPHABET.index(digit) * 62**place for place, digit in enumerate(reversed(SUM)))
    assert number == zlib.crc32(RANDOM.encode())
    assert len(SUM) == 6


def test_keys_in_a_text_are_found() -> None:
    key = f"aip_test_{RANDOM}{SUM}"
    found = re.findall(credentials.FORM, f"export KEY={key}; echo $KEY")
    assert ["aip_{}_{}{}".format(*parts) for parts in found] == [key]
