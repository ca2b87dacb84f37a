"""Encodes and parses frames between Python and the sidecar. Only this file and sidecar/frames.js know their layout. Pure.

A frame is: u32le length of the rest | u8 type | u32le id | payload. See protocol.md for the types.
"""

import struct
from typing import Final

#: To the sidecar.
HELLO: Final = 0x01
CALL: Final = 0x02
RESPONSE: Final = 0x21
#: In both directions.
PART: Final = 0x10
DATA: Final = 0x11
CLOSE: Final = 0x12
CREDIT: Final = 0x13
#: From the sidecar.
REQUEST: Final = 0x20
READY: Final = 0x81
ANSWER: Final = 0x82
EVENT: Final = 0x83
OPEN: Final = 0x84

MAX_FRAME_BYTES: Final = 8 * 1024 * 1024
HEADER_BYTES: Final = 9

_HEADER: Final = struct.Struct("<IBI")
_NUMBER: Final = struct.Struct("<I")
_COUNTED: Final = HEADER_BYTES - 4

Frame = tuple[int, int, bytes]


class BadFrame(ValueError):
    """An invalid frame. The caller of the parser stops the sidecar."""


def header(kind: int, number: int, size: int) -> bytes:
    return _HEADER.pack(_COUNTED + size, kind, number)


def number(payload: bytes) -> int:
    """Decode the payload of a CREDIT."""
    if len(payload) != 4:
        raise BadFrame(f"a number of {len(payload)} bytes")
    found: int = _NUMBER.unpack(payload)[0]
    return found


def encode_number(value: int) -> bytes:
    return _NUMBER.pack(value)


class SidecarParser:
    """Splits a stream of bytes into frames."""

    def __init__(self) -> None:
        self._waiting: list[bytes] = []
        self._size = 0
        self._needed = HEADER_BYTES

    def feed(self, chunk: bytes) -> list[Frame]:
        """Return the completed frames. Raises BadFrame."""
        if self._size:
            self._waiting.append(chunk)
            self._size += len(chunk)
            if self._size < self._needed:
                return []
            chunk = b"".join(self._waiting)
            self._waiting = []
            self._size = 0
        frames: list[Frame] = []
        at, size, needed = 0, len(chunk), HEADER_BYTES
        while size - at >= HEADER_BYTES:
            length, kind, number = _HEADER.unpack_from(chunk, at)
            if length < _COUNTED or length > MAX_FRAME_BYTES:
                raise BadFrame(f"a frame of {length} bytes")
            end = at + 4 + length
            if end > size:
                needed = 4 + length
                break
            frames.append((kind, number, chunk[at + HEADER_BYTES : end]))
            at = end
        if at < size:
            self._waiting = [chunk[at:]]
            self._size = size - at
            self._needed = needed
        return frames
