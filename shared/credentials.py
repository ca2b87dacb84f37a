"""The written form of an API key, so that a mistyped or invented one is refused without asking anybody.

An API key is ``aip_live_``, 43 random characters of base62 (256 bits) and 6 characters of checksum. The checksum is the
CRC-32 (zlib) of the ASCII bytes of the 43 random characters, written as a base62 number: alphabet 0-9A-Za-z, most
significant digit first, padded with ``0`` to 6 digits (62^6 > 2^32). Only auth makes keys and knows whether one is good.
"""

import re
import zlib

PREFIX = "aip_live_"
ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
RANDOM_CHARACTERS = 43
CHECKSUM_CHARACTERS = 6

# `\Z`, not `$`: the latter would let a trailing newline pass.
_FORM = re.compile(rf"{PREFIX}([0-9A-Za-z]{{{RANDOM_CHARACTERS}}})([0-9A-Za-z]{{{CHECKSUM_CHARACTERS}}})\Z")


def looks_like_api_key(text: str) -> bool:
    """Whether ``text`` has the form of a key and its checksum agrees; says nothing about whether the key exists."""
    match = _FORM.match(text)
    return match is not None and checksum(match[1]) == match[2]


def checksum(random_characters: str) -> str:
    """The last 6 characters of the key whose random part this is."""
    number = zlib.crc32(random_characters.encode("ascii"))
    digits = []
    for _ in range(CHECKSUM_CHARACTERS):
        number, digit = divmod(number, len(ALPHABET))
        digits.append(ALPHABET[digit])
    return "".join(reversed(digits))
