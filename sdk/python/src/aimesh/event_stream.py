"""Cuts the bytes of a stream into server-sent events, whatever pieces they come in.  Pure.

As the HTML standard has it (section "Server-sent events"): lines end in LF, CRLF or CR, comments begin with a colon, several `data` lines
make one text, an empty line ends the event, and an event that was cut off is none.
"""

import re
from dataclasses import dataclass

from aimesh.errors import ProtocolError

#: A piece of an answer has some hundred bytes; a whole answer in one piece is below the gateway's own limits.
MAX_EVENT_BYTES = 1024 * 1024

_LINE_END = re.compile(rb"\r\n|\n|\r")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class SseEvent:
    data: bytes
    #: What to send as `Last-Event-ID` to get what follows it; empty where there is none.
    id: str = ""


class SseParser:
    """One stream."""

    def __init__(self) -> None:
        self._held = bytearray()
        #: The last piece ended in CR, which ended a line; a LF right behind it belongs to that end.
        self._after_return = False
        self._data: list[bytes] = []
        self._bytes = 0
        self._id = ""
        self._is_first = True

    def push(self, piece: bytes) -> list[SseEvent]:
        """The events that are complete now. Raises ProtocolError for one that is too long."""
        return [event for line in self._lines(piece) if (event := self._take(line)) is not None]

    def _lines(self, piece: bytes) -> list[bytes]:
        if self._after_return and piece[:1] == b"\n":
            piece = piece[1:]
            self._after_return = False
        if not piece:
            return []
        self._after_return = piece.endswith(b"\r")
        *ended, rest = _LINE_END.split(piece)
        if ended:
            ended[0] = bytes(self._held) + ended[0]
            self._held.clear()
        self._held += rest
        if len(self._held) > MAX_EVENT_BYTES:
            raise _too_long()
        return ended

    def _take(self, line: bytes) -> SseEvent | None:
        if self._is_first:
            line = line.removeprefix(_BYTE_ORDER_MARK)
            self._is_first = False
        if not line:
            return self._ended()
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._bytes += len(value) + 1
            if self._bytes > MAX_EVENT_BYTES:
                raise _too_long()
            self._data.append(value)
        elif name == b"id":
            self._id = _id_of(value)
        return None

    def _ended(self) -> SseEvent | None:
        event = SseEvent(b"\n".join(self._data), self._id) if self._data else None
        self._data.clear()
        self._bytes, self._id = 0, ""
        return event


def _id_of(value: bytes) -> str:
    """Empty for what could not be sent back in a header."""
    return value.decode("ascii") if len(value) <= 255 and value.isascii() and value.decode("ascii").isprintable() else ""


def _too_long() -> ProtocolError:
    return ProtocolError(f"the stream has an event of more than {MAX_EVENT_BYTES} bytes", hint="is base_url the address of aimesh?")
