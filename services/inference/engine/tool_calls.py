"""Finds the calls of tools in a model's answer while it is written, and passes on everything else.  Pure.

A text that cannot be the beginning of a call goes on at once; one that may be is held back until it is a call, or is not.
What looks like a call and is none (of a tool that nobody offered, broken JSON, too long) is the answer's text: nothing is
lost and nothing raises. Where the pieces of the answer begin and end makes no difference.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import msgspec

from services.inference.engine import tool_format
from services.inference.engine.tool_format import ToolStyle
from shared.api.generation import ToolCall

#: The longest call, with what is held back before it. Arguments of more than a page or two are a mistake of the model.
MAX_HELD_CHARACTERS = 64 * 1024
#: Deeper arguments are refused by JSON readers anyway.
MAX_DEPTH = 64
#: Blanks around a call belong to it, not to the answer; more than these are a text.
MAX_BLANKS = 64

_ID_CHARACTERS = 24
_ID_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

_BLANKS = " \t\r\n"
#: All that JSON has outside its strings, besides brackets and quotes.
_BETWEEN_STRINGS = frozenset(_BLANKS + ",:+-.0123456789Eaeflnrstu")
#: Where the first key of a call is looked for.
_LOOK_CHARACTERS = 128
#: A call's object begins with one of these keys; any other object is an answer, and is not held back.
_FIRST_KEYS = ("name", "arguments", "parameters", "type", "id", "function")


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a piece of the answer turned out to be."""

    text: str = ""
    calls: tuple[ToolCall, ...] = ()


class ToolCallParser:
    """Reads one answer. ``names`` are the tools on offer; ``draw_id`` gives each call its id, in their order."""

    def __init__(self, style: ToolStyle, names: frozenset[str], draw_id: Callable[[], str]) -> None:
        shape = tool_format.SHAPES[style]
        self._draw_id = draw_id
        self._finder: _Finder = _WholeAnswer(shape, names) if shape.whole_answer else _Marked(shape, names)

    def push(self, text: str) -> Parsed:
        """The next piece of the answer."""
        return self._parsed(self._finder.push(text))

    def finish(self) -> Parsed:
        """The answer is over; what was held back is decided now."""
        return self._parsed(self._finder.finish())

    def _parsed(self, found: "_Found") -> Parsed:
        return Parsed(found.text, tuple(ToolCall(self._draw_id(), name, arguments) for name, arguments in found.calls))


def ids_of(request: str) -> Callable[[], str]:
    """Draws `call_` and 24 characters: always the same for one request, so that another worker goes on with the same ids."""
    drawn = 0

    def draw() -> str:
        nonlocal drawn
        number = int.from_bytes(hashlib.sha256(f"{request}\0{drawn}".encode()).digest())
        drawn += 1
        characters = (_ID_ALPHABET[number // len(_ID_ALPHABET) ** place % len(_ID_ALPHABET)] for place in range(_ID_CHARACTERS))
        return "call_" + "".join(characters)

    return draw


# --- one value of JSON -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Found:
    text: str = ""
    #: Name and arguments of each call.
    calls: tuple[tuple[str, str], ...] = ()


class _Finder(Protocol):
    def push(self, text: str) -> _Found: ...
    def finish(self) -> _Found: ...


class _Scan(Enum):
    OPEN = "open"
    CLOSED = "closed"
    BROKEN = "broken"


class _JsonScanner:
    """Finds where a JSON object or list ends, character by character. Only brackets and strings are looked at."""

    def __init__(self) -> None:
        self._brackets: list[str] = []
        self._in_string = False
        self._escaped = False

    def step(self, character: str) -> _Scan:
        if self._in_string:
            self._in_string = self._escaped or character != '"'
            self._escaped = character == "\\" and not self._escaped
        elif character == '"':
            self._in_string = True
        elif character in "{[":
            self._brackets.append("}" if character == "{" else "]")
            return _Scan.BROKEN if len(self._brackets) > MAX_DEPTH else _Scan.OPEN
        elif character in "}]":
            if self._brackets.pop() != character:
                return _Scan.BROKEN
            return _Scan.OPEN if self._brackets else _Scan.CLOSED
        elif character not in _BETWEEN_STRINGS:
            return _Scan.BROKEN
        return _Scan.OPEN


class _Written(msgspec.Struct):
    """A call as models write it; one of the two has the arguments."""

    name: str
    arguments: msgspec.Raw = msgspec.Raw()
    parameters: msgspec.Raw = msgspec.Raw()


_written = msgspec.json.Decoder(_Written | list[_Written])


def _read(text: str, names: frozenset[str]) -> tuple[tuple[str, str], ...]:
    """Name and arguments of each call in a JSON value; none if it is anything but calls of tools on offer."""
    try:
        value = _written.decode(text)
        calls = tuple((call.name, _arguments(call)) for call in (value if isinstance(value, list) else [value]))
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return ()
    return calls if all(name in names and arguments for name, arguments in calls) else ()


def _arguments(call: _Written) -> str:
    """JSON text of an object, as the model wrote it; empty if it wrote none."""
    raw = bytes(call.arguments) or bytes(call.parameters)
    # Some models write the object into a string, as the API's clients get it.
    text = msgspec.json.decode(raw, type=str) if raw.startswith(b'"') else raw.decode()
    msgspec.json.decode(text, type=dict[str, object])
    return text


def _blanks_before(text: str, end: int) -> int:
    """How many blanks stand directly before ``end``, MAX_BLANKS at most."""
    first = max(0, end - MAX_BLANKS)
    return end - first - len(text[first:end].rstrip(_BLANKS))


# --- calls with a mark before them ------------------------------------------------------------------------------------


class _Marked:
    """Calls that begin with a mark, anywhere in an answer."""

    def __init__(self, shape: tool_format.Shape, names: frozenset[str]) -> None:
        self._opening, self._closing = shape.opening, shape.closing
        self._bracket = "[" if shape.listed else "{"
        self._names = names
        #: Blanks and what may become a mark; or a mark, the blanks before it, and the JSON behind it; or what may become the closing.
        self._held = ""
        self._state: Callable[[], _Found | None] = self._between
        #: Where in the held text the value begins, how far it is scanned, and where it is too long.
        self._begin = self._at = self._limit = 0
        self._scanner = _JsonScanner()
        self._called = False

    def push(self, text: str) -> _Found:
        self._held += text
        texts: list[str] = []
        calls: list[tuple[str, str]] = []
        while (found := self._state()) is not None:
            texts.append(found.text)
            calls.extend(found.calls)
        return _Found("".join(texts), tuple(calls))

    def finish(self) -> _Found:
        held, self._held = self._held, ""
        if self._state == self._behind or (self._called and not held.strip(_BLANKS)):
            return _Found()
        return _Found(held)

    # Each state takes a part of the held text and gives what became of it, or None when it needs more text.

    def _between(self) -> _Found | None:
        """Between calls: everything is text until the mark."""
        mark = self._held.find(self._opening)
        end = mark if mark >= 0 else len(self._held) - self._begun_mark()
        end -= _blanks_before(self._held, end)
        shown, self._held = self._held[:end], self._held[end:]
        if mark < 0:
            return _Found(shown) if shown else None
        self._begin = self._at = mark - end + len(self._opening)
        self._limit = mark - end + MAX_HELD_CHARACTERS
        self._scanner = _JsonScanner()
        self._state = self._before_value
        return _Found(shown)

    def _before_value(self) -> _Found | None:
        while self._at < len(self._held):
            if self._held[self._at] == self._bracket:
                self._begin = self._at
                self._state = self._value
                return _Found()
            if self._held[self._at] not in _BLANKS or self._at >= self._limit:
                return self._give_up(self._at)
            self._at += 1
        return None

    def _value(self) -> _Found | None:
        while self._at < len(self._held):
            if self._at >= self._limit:
                return self._give_up(self._at)
            scan = self._scanner.step(self._held[self._at])
            if scan is _Scan.BROKEN:
                return self._give_up(self._at)
            self._at += 1
            if scan is _Scan.CLOSED:
                calls = _read(self._held[self._begin : self._at], self._names)
                return self._take(calls) if calls else self._give_up(self._at)
        return None

    def _behind(self) -> _Found | None:
        """Behind a call: its closing mark goes with it, and may be missing."""
        rest = self._held.lstrip(_BLANKS)
        if len(self._held) - len(rest) <= MAX_BLANKS:
            if rest.startswith(self._closing):
                self._held = rest.removeprefix(self._closing)
            elif self._closing.startswith(rest):
                return None
        self._state = self._between
        return _Found()

    def _take(self, calls: tuple[tuple[str, str], ...]) -> _Found:
        self._held = self._held[self._at :]
        self._called = True
        self._state = self._behind if self._closing else self._between
        return _Found("", calls)

    def _give_up(self, at: int) -> _Found:
        """What was held up to ``at`` is text after all."""
        shown, self._held = self._held[:at], self._held[at:]
        self._state = self._between
        return _Found(shown)

    def _begun_mark(self) -> int:
        """The length of the longest end of the held text that begins a mark."""
        lengths = range(min(len(self._opening) - 1, len(self._held)), 0, -1)
        return next((length for length in lengths if self._opening.startswith(self._held[-length:])), 0)


# --- calls that are the whole answer ----------------------------------------------------------------------------------


class _WholeAnswer:
    """Calls that are the whole answer: one or more JSON values, with blanks or semicolons between them."""

    def __init__(self, shape: tool_format.Shape, names: frozenset[str]) -> None:
        self._opening = shape.opening
        self._names = names
        self._held = ""
        #: Where in the held text the value begins, and how far it is scanned.
        self._begin = self._at = 0
        #: None between two values.
        self._scanner: _JsonScanner | None = None
        self._calls: list[tuple[str, str]] = []
        #: It is no call, so all of it is text.
        self._given_up = False

    def push(self, text: str) -> _Found:
        if self._given_up:
            return _Found(text)
        self._held += text
        if len(self._held) <= MAX_HELD_CHARACTERS and self._may_be_calls():
            return _Found()
        self._given_up = True
        return self._all_text()

    def finish(self) -> _Found:
        if self._given_up or self._scanner is not None or not self._calls:
            return self._all_text()
        return _Found("", tuple(self._calls))

    def _all_text(self) -> _Found:
        held, self._held = self._held, ""
        return _Found(held)

    def _may_be_calls(self) -> bool:
        """Scan what is new; false when the answer cannot be calls any more."""
        while self._at < len(self._held):
            if self._scanner is None:
                if not self._between():
                    # A mark that is not complete yet is the one thing to wait for.
                    return self._begun_mark()
            elif not self._inside(self._scanner):
                return False
        return self._scanner is None or _may_be_call(self._held[self._begin : self._begin + _LOOK_CHARACTERS])

    def _between(self) -> bool:
        character = self._held[self._at]
        if character in "{[":
            self._begin, self._scanner = self._at, _JsonScanner()
            return True
        if character in _BLANKS or (character == ";" and self._calls):
            self._at += 1
            return True
        if self._opening and not self._calls and self._held.startswith(self._opening, self._at):
            self._at += len(self._opening)
            return True
        return False

    def _inside(self, scanner: _JsonScanner) -> bool:
        scan = scanner.step(self._held[self._at])
        self._at += 1
        if scan is _Scan.CLOSED:
            self._scanner = None
            value = self._held[self._begin : self._at]
            calls = _read(value, self._names) if _may_be_call(value) else ()
            self._calls.extend(calls)
            return bool(calls)
        return scan is _Scan.OPEN

    def _begun_mark(self) -> bool:
        return not self._calls and self._opening.startswith(self._held[self._at :])


def _may_be_call(value: str) -> bool:
    """Whether a JSON value, or the beginning of one, is an object or a list of objects with one of a call's keys first."""
    rest = value[:_LOOK_CHARACTERS].lstrip("[" + _BLANKS)
    if not rest:
        return True
    inside = rest[1:].lstrip(_BLANKS)
    if rest[0] != "{" or (inside and inside[0] != '"'):
        return False
    key, quote, _ = inside[1:].partition('"')
    return key in _FIRST_KEYS if quote else any(known.startswith(key) for known in _FIRST_KEYS)
