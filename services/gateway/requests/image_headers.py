"""Reads the format and size of an image from its header, without decoding a pixel. Pure.

Formats: PNG (https://www.w3.org/TR/png/), JPEG (ITU T.81), GIF89a, and WebP (RFC 9649).
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass

#: Segments or blocks read before the size; a file with more is not a photo.
MAX_SEGMENTS = 1024
MAX_EXTENSIONS = 64


class BadImage(ValueError):
    """The text completes "the image …"."""


@dataclass(frozen=True, slots=True)
class ImageHeader:
    format: str
    width: int
    height: int


def read(data: bytes) -> ImageHeader:
    """Raises BadImage. The first bytes decide, not a declared type."""
    for magic, (name, size) in _FORMATS.items():
        if data.startswith(magic) and (name != "webp" or data[8:12] == b"WEBP"):
            try:
                width, height = size(data)
            except (IndexError, struct.error):
                raise BadImage("is truncated") from None
            if not (width and height):
                raise BadImage("has no pixels")
            return ImageHeader(name, width, height)
    raise BadImage("is not a JPEG, PNG, WebP or GIF")


def _png(data: bytes) -> tuple[int, int]:
    if data[8:16] != b"\0\0\0\rIHDR" and len(data) >= 16:
        raise BadImage("is a broken PNG")
    width, height = struct.unpack_from(">II", data, 16)
    if data.find(b"IEND", 33) < 0:
        raise BadImage("is truncated")
    return width, height


def _jpeg(data: bytes) -> tuple[int, int]:
    at = 2
    for _ in range(MAX_SEGMENTS):
        if data[at] != 0xFF:
            raise BadImage("is a broken JPEG")
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker in _STANDALONE:
            at += 2
            continue
        (length,) = struct.unpack_from(">H", data, at + 2)
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 5)
            if data.find(b"\xff\xd9", at + length) < 0:
                raise BadImage("is truncated")
            return width, height
        if marker in _WITHOUT_FRAME or length < 2:
            raise BadImage("is a broken JPEG")
        at += 2 + length
    raise BadImage("is a broken JPEG")


#: Start of frame, without the tables DHT, JPG and DAC, which share its range.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD8)})
#: SOI, EOI and start of scan, which must not come before a frame.
_WITHOUT_FRAME = frozenset({0xD8, 0xD9, 0xDA, 0x00})


def _gif(data: bytes) -> tuple[int, int]:
    """Return the size of the screen, or of the first frame if that is larger."""
    screen_width, screen_height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + _colors(flags)
    for _ in range(MAX_EXTENSIONS):
        kind = data[at]
        if kind == 0x2C:
            left, top, width, height = struct.unpack_from("<HHHH", data, at + 1)
            if data.find(b"\0", at + 10) < 0:
                raise BadImage("is truncated")
            return max(screen_width, left + width), max(screen_height, top + height)
        if kind != 0x21:
            raise BadImage("is a broken GIF")
        at = _end_of_blocks(data, at + 2)
    raise BadImage("is a broken GIF")


def _end_of_blocks(data: bytes, at: int) -> int:
    for _ in range(MAX_SEGMENTS):
        size = data[at]
        at += 1 + size
        if not size:
            return at
    raise BadImage("is a broken GIF")


def _colors(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _webp(data: bytes) -> tuple[int, int]:
    (size,) = struct.unpack_from("<I", data, 4)
    if len(data) < size + 8:
        raise BadImage("is truncated")
    match data[12:16]:
        case b"VP8X":
            return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
        case b"VP8L" if data[20] == 0x2F:
            (bits,) = struct.unpack_from("<I", data, 21)
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8 " if data[23:26] == b"\x9d\x01\x2a":
            width, height = struct.unpack_from("<HH", data, 26)
            return width & 0x3FFF, height & 0x3FFF
    raise BadImage("is a broken WebP")


_FORMATS: dict[bytes, tuple[str, Callable[[bytes], tuple[int, int]]]] = {
    b"\x89PNG\r\n\x1a\n": ("png", _png), b"\xff\xd8\xff": ("jpeg", _jpeg), b"GIF87a": ("gif", _gif), b"GIF89a": ("gif", _gif),
    b"RIFF": ("webp", _webp),
}  # fmt: skip
