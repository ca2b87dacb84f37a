"""Finds tool calls in answers that consist only of JSON.  Pure."""

from collections.abc import Collection

from services.inference.tool_calls.call_findings import BLANKS, MAX_HELD_CHARACTERS, Call, CallFinding
from services.inference.tool_calls.call_json import JsonScanner, Scan, calls_in

#: The first key of a call must be in so many characters.
_LOOK_CHARACTERS = 128
#: A call's object starts with one of these keys; any other object is text, and is not held back.
_FIRST_KEYS = ("name", "arguments", "parameters", "type", "id", "function")


class WholeAnswer:
    """Parses one or more JSON values with blanks or semicolons between them."""

    def __init__(self, opening: str, names: Collection[str]) -> None:
        """``opening`` is an optional mark before them."""
        self._opening = opening
        self._names = names
        self._held = ""
        #: The start of the current value in the held text, and how far it is scanned.
        self._begin = self._at = 0
        #: None between two values.
        self._scanner: JsonScanner | None = None
        self._calls: list[Call] = []
        #: The answer isn't calls, so all of it is text.
        self._is_plain_text = False

    def push(self, text: str) -> CallFinding:
        if self._is_plain_text:
            return CallFinding(text)
        self._held += text
        if len(self._held) <= MAX_HELD_CHARACTERS and self._may_be_calls():
            return CallFinding()
        self._is_plain_text = True
        return self._all_text()

    def finish(self) -> CallFinding:
        if self._is_plain_text or self._scanner is not None or not self._calls:
            return self._all_text()
        return CallFinding("", tuple(self._calls))

    def _all_text(self) -> CallFinding:
        held, self._held = self._held, ""
        return CallFinding(held)

    def _may_be_calls(self) -> bool:
        """Scan the new text; return False once the answer can't be calls."""
        while self._at < len(self._held):
            if self._scanner is None:
                if not self._between():
                    # Only an incomplete mark is worth waiting for.
                    return self._begun_mark()
            elif not self._inside(self._scanner):
                return False
        return self._scanner is None or _may_be_call(self._held[self._begin : self._begin + _LOOK_CHARACTERS])

    def _between(self) -> bool:
        character = self._held[self._at]
        if character in "{[":
            self._begin, self._scanner = self._at, JsonScanner()
            return True
        if character in BLANKS or (character == ";" and self._calls):
            self._at += 1
            return True
        if self._opening and not self._calls and self._held.startswith(self._opening, self._at):
            self._at += len(self._opening)
            return True
        return False

    def _inside(self, scanner: JsonScanner) -> bool:
        scan = scanner.step(self._held[self._at])
        self._at += 1
        if scan is Scan.CLOSED:
            self._scanner = None
            value = self._held[self._begin : self._at]
            calls = calls_in(value, self._names) if _may_be_call(value) else ()
            self._calls.extend(calls)
            return bool(calls)
        return scan is Scan.OPEN

    def _begun_mark(self) -> bool:
        return not self._calls and self._opening.startswith(self._held[self._at :])


def _may_be_call(value: str) -> bool:
    """Return whether a JSON value, or the start of one, may be an object or a list of objects whose first key is a call's."""
    rest = value[:_LOOK_CHARACTERS].lstrip("[" + BLANKS)
    if not rest:
        return True
    inside = rest[1:].lstrip(BLANKS)
    if rest[0] != "{" or (inside and inside[0] != '"'):
        return False
    key, quote, _ = inside[1:].partition('"')
    return key in _FIRST_KEYS if quote else any(known.startswith(key) for known in _FIRST_KEYS)
