"""The parsing steps of `tool_styles`; a step waits for more text if it needs some.  Pure.

A step is a generator that yields until it has enough text. Its result must not depend on how the text is split into pieces.
"""

from collections.abc import Generator, Mapping

from services.inference.tool_calls import call_json, tagged_values
from services.inference.tool_calls.call_json import BLANKS, MAX_BLANKS, Call, JsonScanner, Scan
from services.inference.tool_calls.tagged_values import Properties

#: Of tools, parameters and other text between two marks. The API allows 64.
MAX_NAME_CHARACTERS = 128

#: Characters that end a name, besides blanks: they start marks and JSON.
_BEHIND_NAMES = frozenset("<[{")

Waiting = Generator[None, None, None]


class NoCall(Exception):
    """The text is not a call, and must be shown as text. The steps raise it."""


class CallReader:
    """Reads the calls of one answer. ``text`` is the answer so far, from where ``begin`` was called; its owner updates it."""

    def __init__(self, offered: Mapping[str, Properties]) -> None:
        self._offered = offered
        self.text = ""
        #: Text before it was read, and is shown if this is not a call.
        self.at = 0
        #: Text before it is consumed, whatever follows.
        self.settled = 0
        self.calls: list[Call] = []
        #: It waits for an optional mark.
        self.may_end = False
        #: For styles with messages: whether one has started, and whether its text belongs to the answer.
        self.in_message = False
        self.is_shown = True

    def begin(self) -> None:
        self.at = self.settled = 0
        self.may_end = False

    def mark(self, *marks: str) -> Generator[None, None, str]:
        """Read one of these marks, after blanks."""
        yield from self._blanks()
        while True:
            found, begun = self._find(marks)
            if found:
                self.at += len(found)
                return found
            if not begun:
                raise NoCall
            yield

    def mark_behind(self, *marks: str) -> Waiting:
        """Read one of these optional marks after a call, with the blanks before it."""
        begin = self.at
        self.may_end = True
        while True:
            self.at = begin + self._count_blanks(begin)
            found, begun = self._find(marks)
            if found or not begun or self.at - begin > MAX_BLANKS:
                break
            yield
        self.may_end = False
        self.at = self.at + len(found) if found and self.at - begin <= MAX_BLANKS else begin
        self.settled = self.at

    def next_sign(self) -> Generator[None, None, str]:
        """Return the next character after blanks, without reading it."""
        yield from self._blanks()
        return self.text[self.at]

    def name(self) -> Generator[None, None, str]:
        """Read a name, up to the next blank, mark or JSON."""
        yield from self._blanks()
        end = self.at
        while True:
            while end < len(self.text) and self.text[end] not in _BEHIND_NAMES and self.text[end] not in BLANKS:
                end += 1
                if end - self.at > MAX_NAME_CHARACTERS:
                    raise NoCall
            if end < len(self.text):
                break
            yield
        if end == self.at:
            raise NoCall
        begin, self.at = self.at, end
        return self.text[begin:end]

    def name_until(self, mark: str) -> Generator[None, None, str]:
        """Read a name and the mark after it."""
        begin, last = self.at, self.at + MAX_NAME_CHARACTERS + len(mark)
        while (end := self.text.find(mark, begin, last)) < 0:
            if len(self.text) >= last:
                raise NoCall
            yield
        self.at = end + len(mark)
        return self.text[begin:end]

    def value_until(self, mark: str) -> Generator[None, None, str]:
        """Read a value and the mark after it."""
        begin = self.at
        while (end := self.text.find(mark, self.at)) < 0:
            self.at = max(self.at, len(self.text) - len(mark) + 1)
            yield
        self.at = end + len(mark)
        return self.text[begin:end]

    def json(self, bracket: str) -> Generator[None, None, str]:
        """Read a JSON value that starts with this bracket."""
        if (yield from self.next_sign()) != bracket:
            raise NoCall
        begin, scanner = self.at, JsonScanner()
        while True:
            while self.at < len(self.text):
                scan = scanner.step(self.text[self.at])
                if scan is Scan.BROKEN:
                    raise NoCall
                self.at += 1
                if scan is Scan.CLOSED:
                    return self.text[begin : self.at]
            yield

    def check_offered(self, name: str) -> None:
        if name not in self._offered:
            raise NoCall

    def take_json(self, text: str) -> None:
        """Take calls with their names in the JSON."""
        self._take(call_json.calls_in(text, self._offered))

    def take_arguments(self, name: str, arguments: str) -> None:
        self._take(((name, arguments),) if name in self._offered and call_json.is_object(arguments) else ())

    def take_values(self, name: str, values: Mapping[str, str]) -> None:
        """Take a call with its arguments between tags."""
        self.check_offered(name)
        self.take_arguments(name, tagged_values.arguments_of(values, self._offered[name]))

    def begin_message(self, *, is_shown: bool) -> None:
        self.settled = self.at
        self.in_message, self.is_shown = True, is_shown

    def end_message(self) -> None:
        """Raises NoCall if none has started."""
        if not self.in_message:
            raise NoCall
        self.settled = self.at
        self.in_message, self.is_shown = False, True

    def _take(self, calls: tuple[Call, ...]) -> None:
        if not calls:
            raise NoCall
        self.calls.extend(calls)
        self.settled = self.at

    def _blanks(self) -> Waiting:
        while True:
            self.at += self._count_blanks(self.at)
            if self.at < len(self.text):
                return
            yield

    def _count_blanks(self, begin: int) -> int:
        end = begin
        while end < len(self.text) and self.text[end] in BLANKS:
            end += 1
        return end - begin

    def _find(self, marks: tuple[str, ...]) -> tuple[str, bool]:
        for mark in marks:
            if self.text.startswith(mark, self.at):
                return mark, True
        return "", any(mark.startswith(self.text[self.at : self.at + len(mark)]) for mark in marks)
