"""RESP2 without I/O: commands to bytes, and the server's bytes to replies.

Written from valkey.io/topics/protocol. In Python: one reply of 13 numbers takes 2.6 µs, and 0.5 with hiredis; that is no reason for one
more package.
"""

import re
from collections.abc import Iterable

from shared import errors

#: Of one reply. The largest value that we keep, an answer of a model, has 256 KiB; who sends more than this is none of ours.
MOST_BYTES = 16 * 1024 * 1024
#: A line is a number, or an error's words.
MOST_LINE_BYTES = 64 * 1024
#: Of arrays within arrays; those of our scripts have one.
MOST_DEPTH = 8

_CRLF = b"\r\n"
#: What most scripts answer: numbers, one behind the other.
_NUMBERS = re.compile(rb"(?::[+-]?\d{1,20}\r\n)+")
_NUMBER = re.compile(rb"[+-]?\d{1,20}")
_LENGTH = re.compile(rb"-1|\d{1,10}")

Word = str | int | float | bytes


class ReplyError(Exception):
    """The server answers with an error: its words."""

    @property
    def word(self) -> str:
        """The first of them, which says what kind it is."""
        return str(self).partition(" ")[0]


Reply = int | bytes | None | ReplyError | list["Reply"]


class _Incomplete(Exception):
    """The reply goes on; it cannot end before ``args[0]``."""


def command(words: Iterable[Word]) -> bytes:
    """The bytes of one call."""
    parts = [b""]
    for word in words:
        plain = word if type(word) is bytes else str(word).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(plain), plain))
    parts[0] = b"*%d\r\n" % (len(parts) - 1)
    return b"".join(parts)


class RespParser:
    """Feed it what the socket gave; a reply may come in any number of parts."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._held_bytes = 0
        #: What is held cannot be a whole reply before there is so much of it.
        self._least_bytes = 0

    def feed(self, data: bytes) -> list[Reply]:
        """The replies that are whole now. Raises ProtocolViolation: the connection cannot go on."""
        if self._parts:
            self._parts.append(data)
            self._held_bytes += len(data)
            if self._held_bytes < self._least_bytes:
                return []
            data = b"".join(self._parts)
            self._parts.clear()
        found: list[Reply] = []
        at = 0
        try:
            while at < len(data):
                reply, at = _reply(data, at, 0)
                found.append(reply)
        except _Incomplete as incomplete:
            self._hold(data[at:], incomplete.args[0] - at)
        return found

    def _hold(self, rest: bytes, least_bytes: int) -> None:
        if least_bytes > MOST_BYTES:
            raise errors.ProtocolViolation(f"Valkey announced a reply of {least_bytes} bytes or more")
        self._parts.append(rest)
        self._held_bytes, self._least_bytes = len(rest), least_bytes


def _reply(data: bytes, at: int, depth: int) -> tuple[Reply, int]:
    """The reply that begins at ``at``, and where the next one does."""
    end = data.find(_CRLF, at)
    if end < 0:
        if len(data) - at > MOST_LINE_BYTES:
            raise errors.ProtocolViolation("Valkey sent a line without end")
        raise _Incomplete(len(data) + 1)
    kind, line, after = data[at : at + 1], data[at + 1 : end], end + 2
    match kind:
        case b":":
            return _number(line), after
        case b"$":
            return _text(data, after, _length(line))
        case b"*":
            return _list(data, after, _length(line), depth + 1)
        case b"+":
            return line, after
        case b"-":
            return ReplyError(line.decode(errors="replace")), after
        case _:
            raise errors.ProtocolViolation(f"not a Valkey: {data[at : at + 20]!r}")


def _number(line: bytes) -> int:
    if _NUMBER.fullmatch(line) is None:
        raise errors.ProtocolViolation(f"Valkey sent a number that is none: {line[:40]!r}")
    return int(line)


def _length(line: bytes) -> int | None:
    """None for -1, by which nothing is said to be there."""
    if _LENGTH.fullmatch(line) is None:
        raise errors.ProtocolViolation(f"Valkey sent a length that is none: {line[:40]!r}")
    return None if line == b"-1" else int(line)


def _text(data: bytes, at: int, length: int | None) -> tuple[Reply, int]:
    if length is None:
        return None, at
    end = at + length
    if len(data) < end + 2:
        raise _Incomplete(end + 2)
    if data[end : end + 2] != _CRLF:
        raise errors.ProtocolViolation("Valkey sent a value that does not end where it says")
    return data[at:end], end + 2


def _list(data: bytes, at: int, length: int | None, depth: int) -> tuple[Reply, int]:
    if length is None:
        return None, at
    if depth > MOST_DEPTH:
        raise errors.ProtocolViolation("Valkey sent lists within lists without end")
    if (numbers := _NUMBERS.match(data, at)) is not None:
        lines = numbers[0].replace(b":", b"").split()
        if len(lines) == length:
            return [int(line) for line in lines], numbers.end()
    # The shortest element has three bytes.
    if at + 3 * length > len(data):
        raise _Incomplete(at + 3 * length)
    found: list[Reply] = []
    for _ in range(length):
        element, at = _reply(data, at, depth)
        found.append(element)
    return found, at
