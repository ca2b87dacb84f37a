"""Parse server-sent events from bytes in any pieces, as in the HTML standard, "Server-sent events".  Pure."""

import re
from dataclasses import dataclass

from aimesh.errors import ProtocolError

#: A repeated answer can be one event: up to 1 MiB of text, six times as long with JSON's escapes, or shorter with log probabilities.
MAX_EVENT_BYTES = 8 * 1024 * 1024

_LINE_END = re.compile(rb"\r\n|\n|\r")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class SseEvent:
    data: bytes
    #: Sent as `Last-Event-ID` to resume after this event; empty if it has none.
    id: str = ""
    #: Empty if it has none.
    name: str = ""


class SseParser:
    """Parses one stream, whose events have at most so many bytes."""

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_event_bytes = max_event_bytes
        self._unfinished_line = bytearray()
        #: The last piece ended in CR, so a LF at the start of the next one belongs to it.
        self._after_return = False
        self._data: list[bytes] = []
        self._data_bytes = 0
        self._id = ""
        self._name = ""
        self._is_first_line = True

    def push(self, piece: bytes) -> list[SseEvent]:
        """Return the events that are complete now. Raises ProtocolError for an event that is too long."""
        return [event for line in self._split(piece) if (event := self._parse(line)) is not None]

    def _split(self, piece: bytes) -> list[bytes]:
        if self._after_return and piece[:1] == b"\n":
            piece = piece[1:]
            self._after_return = False
        if not piece:
            return []
        self._after_return = piece.endswith(b"\r")
        *ended, rest = _LINE_END.split(piece)
        if ended:
            ended[0] = bytes(self._unfinished_line) + ended[0]
            self._unfinished_line.clear()
        self._unfinished_line += rest
        if len(self._unfinished_line) > self._max_event_bytes:
            raise _too_long(self._max_event_bytes)
        return ended

    def _parse(self, line: bytes) -> SseEvent | None:
        if self._is_first_line:
            line = line.removeprefix(_BYTE_ORDER_MARK)
            self._is_first_line = False
        if not line:
            return self._end_event()
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data_bytes += len(value) + 1
            if self._data_bytes > self._max_event_bytes:
                raise _too_long(self._max_event_bytes)
            self._data.append(value)
        elif name == b"id":
            self._id = _sendable_id(value)
        elif name == b"event":
            self._name = value.decode(errors="replace")
        return None

    def _end_event(self) -> SseEvent | None:
        event = SseEvent(b"\n".join(self._data), self._id, self._name) if self._data else None
        self._data.clear()
        self._data_bytes, self._id, self._name = 0, "", ""
        return event


def _sendable_id(value: bytes) -> str:
    """Return an empty string for an id that no header can carry."""
    return value.decode("ascii") if len(value) <= 255 and value.isascii() and value.decode("ascii").isprintable() else ""


def _too_long(max_bytes: int) -> ProtocolError:
    return ProtocolError(f"the stream has an event of more than {max_bytes} bytes", hint="is base_url the address of aimesh?")
