"""Splits the bytes of a streamed HTTP response into lines, and lines into server-sent events, however they are split.  Pure.

By the HTML standard (section "Server-sent events"), lines end in LF, CRLF or CR, comments begin with a colon, several `data` lines
make one text, an empty line ends the event, and an incomplete event is dropped.
"""

import re
from typing import TypeVar

import msgspec

T = TypeVar("T")

#: An event has a few hundred bytes; with log probabilities or a tool call, some ten thousand.
MAX_EVENT_BYTES = 1024 * 1024

_LINE_END = re.compile(rb"\r\n|\n|\r")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

#: What msgspec raises for bytes that are not the expected JSON.
UNREADABLE = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError)


class BadStream(Exception):
    """The server breaks its protocol. Caught by `http_server_client.ServerExchange`."""


def convert_or(default: T, value: object) -> T:
    """Convert decoded JSON to the default's type; return the default for another form."""
    try:
        return msgspec.convert(value, type(default))
    except msgspec.ValidationError:
        return default


class Lines:
    """Splits bytes into lines. An incomplete line is held back, up to MAX_EVENT_BYTES."""

    def __init__(self) -> None:
        self._held = bytearray()
        #: The last piece ended in CR, so a LF at the start of the next one ends the same line.
        self._after_return = False

    def push(self, piece: bytes) -> list[bytes]:
        """Raises BadStream for a line that is too long."""
        if self._after_return and piece[:1] == b"\n":
            piece = piece[1:]
            self._after_return = False
        if not piece:
            return []
        self._after_return = piece.endswith(b"\r")
        # Splitting at LF alone is several times as fast, and hardly any server uses anything else.
        *ended, rest = _LINE_END.split(piece) if b"\r" in piece else piece.split(b"\n")
        may_be_too_long = len(self._held) + len(piece) > MAX_EVENT_BYTES
        if ended:
            ended[0] = bytes(self._held) + ended[0]
            self._held.clear()
        self._held += rest
        if may_be_too_long and max(map(len, (self._held, *ended))) > MAX_EVENT_BYTES:
            raise BadStream(f"a line of more than {MAX_EVENT_BYTES} bytes")
        return ended


class StreamEventParser:
    """Parses server-sent events into their data; skips all other fields."""

    def __init__(self) -> None:
        self._lines = Lines()
        self._data: list[bytes] = []
        self._bytes = 0
        self._is_first = True

    def push(self, piece: bytes) -> list[bytes]:
        """Raises BadStream for an event that is too long."""
        return [data for line in self._lines.push(piece) if (data := self._line(line)) is not None]

    def _line(self, line: bytes) -> bytes | None:
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
                raise BadStream(f"an event of more than {MAX_EVENT_BYTES} bytes")
            self._data.append(value)
        return None

    def _ended(self) -> bytes | None:
        event = b"\n".join(self._data) if self._data else None
        self._data.clear()
        self._bytes = 0
        return event
