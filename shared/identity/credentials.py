"""Check the written form of an API key, so that a mistyped or invented one is refused without a lookup.

An API key is its kind (``aip_live_``, ``aip_test_`` or ``aip_adm_``), 43 random characters of base62 (256 bits) and 6 characters of
checksum. The checksum is the CRC-32 (zlib) of the ASCII bytes of the 43 random characters, written as a base62 number: alphabet 0-9A-Za-z,
most significant digit first, padded with ``0`` to 6 digits (62^6 > 2^32). Only auth creates keys and knows whether one is valid.
"""

import re
import zlib
from collections.abc import Mapping

#: Prefix by kind; ``shared.api.auth.KeyKind`` describes the kinds.
PREFIXES: Mapping[str, str] = {"live": "aip_live_", "test": "aip_test_", "adm": "aip_adm_"}
PREFIX = PREFIXES["live"]
ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
RANDOM_CHARACTERS = 43
CHECKSUM_CHARACTERS = 6
#: Every key matches it completely. When searching a text for keys, check each match with `kind_of`.
FORM = re.compile(
    rf"aip_(?P<kind>{'|'.join(PREFIXES)})_(?P<random>[0-9A-Za-z]{{{RANDOM_CHARACTERS}}})(?P<checksum>[0-9A-Za-z]{{{CHECKSUM_CHARACTERS}}})"
)


def looks_like_api_key(text: str) -> bool:
    """Return whether ``text`` has the form of a key and the right checksum; the key may not exist."""
    return kind_of(text) is not None


def kind_of(text: str) -> str | None:
    """Return the kind of key by its form; None if it is no key."""
    # fullmatch, because `$` would accept a trailing newline.
    match = FORM.fullmatch(text)
    return match["kind"] if match is not None and checksum(match["random"]) == match["checksum"] else None


def checksum(random_characters: str) -> str:
    """Return the last 6 characters of the key with this random part."""
    number = zlib.crc32(random_characters.encode("ascii"))
    digits = []
    for _ in range(CHECKSUM_CHARACTERS):
        number, digit = divmod(number, len(ALPHABET))
        digits.append(ALPHABET[digit])
    return "".join(reversed(digits))
