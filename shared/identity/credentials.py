"""The written form of an API key, so that a mistyped or invented one is refused without asking anybody.

An API key is its kind (``aip_live_``, ``aip_test_`` or ``aip_adm_``), 43 random characters of base62 (256 bits) and 6 characters
of checksum. The checksum is the CRC-32 (zlib) of the ASCII bytes of the 43 random characters, written as a base62 number:
alphabet 0-9A-Za-z, most significant digit first, padded with ``0`` to 6 digits (62^6 > 2^32). Only auth makes keys and knows
whether one is good.
"""

import re
import zlib
from collections.abc import Mapping

#: How a key of each kind begins; ``shared.api.auth.KeyKind`` says what each is for.
PREFIXES: Mapping[str, str] = {"live": "aip_live_", "test": "aip_test_", "adm": "aip_adm_"}
#: Of the kind that people use every day.
PREFIX = PREFIXES["live"]
ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
RANDOM_CHARACTERS = 43
CHECKSUM_CHARACTERS = 6
#: Every key matches it whole; where keys are searched for in a text, `kind_of` sorts out what only looks like one.
FORM = re.compile(
    rf"aip_(?P<kind>{'|'.join(PREFIXES)})_(?P<random>[0-9A-Za-z]{{{RANDOM_CHARACTERS}}})(?P<checksum>[0-9A-Za-z]{{{CHECKSUM_CHARACTERS}}})"
)


def looks_like_api_key(text: str) -> bool:
    """Whether ``text`` has the form of a key and its checksum agrees; says nothing about whether the key exists."""
    return kind_of(text) is not None


def kind_of(text: str) -> str | None:
    """The kind of key that ``text`` has the form of; None if it is no key."""
    # The whole text, to its very end: `$` would let a trailing newline pass.
    match = FORM.fullmatch(text)
    return match["kind"] if match is not None and checksum(match["random"]) == match["checksum"] else None


def checksum(random_characters: str) -> str:
    """The last 6 characters of the key whose random part this is."""
    number = zlib.crc32(random_characters.encode("ascii"))
    digits = []
    for _ in range(CHECKSUM_CHARACTERS):
        number, digit = divmod(number, len(ALPHABET))
        digits.append(ALPHABET[digit])
    return "".join(reversed(digits))
