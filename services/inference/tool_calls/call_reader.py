"""What the styles of `tool_styles` read a call with: each step waits for more text where it needs some.  Pure.

A step is a generator that yields while the text is not there yet. It decides by the text alone, never by where a piece of it ends.
"""

from collections.abc import Generator, Mapping

from services.inference.tool_calls import call_json, tagged_values
from services.inference.tool_calls.call_findings import BLANKS, MAX_BLANKS, Call
from services.inference.tool_calls.call_json import JsonScanner, Scan
from services.inference.tool_calls.tagged_values import Properties

#: Of tools, of parameters, and of what else stands between two marks. The API's names have 64.
MAX_NAME_CHARACTERS = 128

#: What no name holds, besides blanks: the beginnings of marks and of JSON.
_BEHIND_NAMES = frozenset("<[{")

Waiting = Generator[None, None, None]


class NoCall(Exception):
    """What was read is no call. Raised by the steps; who reads with them shows what was read as text."""


class CallReader:
    """Reads the calls of one answer, one after the other. ``text`` is what is known of the answer from where ``begin`` was called;
    whoever has more sets it anew."""

    def __init__(self, offered: Mapping[str, Properties]) -> None:
        self._offered = offered
        self.text = ""
        #: What lies before it is read, and is text if this is no call.
        self.at = 0
        #: What lies before it is settled, whatever comes behind.
        self.settled = 0
        self.calls: list[Call] = []
        #: It waits for a mark that may as well be missing.
        self.may_end = False
        #: Of styles whose answers are messages: whether one has begun, and whether its text is the answer's.
        self.in_message = False
        self.is_shown = True

    def begin(self) -> None:
        """A call may begin here."""
        self.at = self.settled = 0
        self.may_end = False

    # --- steps --------------------------------------------------------------------------------------------------------

    def mark(self, *marks: str) -> Generator[None, None, str]:
        """One of these, behind blanks."""
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
        """One of these behind a call, with the blanks before it, or nothing: models leave them out."""
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
        """The next character that is no blank; it is not read."""
        yield from self._blanks()
        return self.text[self.at]

    def name(self) -> Generator[None, None, str]:
        """What stands before the next blank, mark or JSON."""
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
        """What stands before a mark, which is read, too."""
        begin, last = self.at, self.at + MAX_NAME_CHARACTERS + len(mark)
        while (end := self.text.find(mark, begin, last)) < 0:
            if len(self.text) >= last:
                raise NoCall
            yield
        self.at = end + len(mark)
        return self.text[begin:end]

    def value_until(self, mark: str) -> Generator[None, None, str]:
        """As long as a call may be."""
        begin = self.at
        while (end := self.text.find(mark, self.at)) < 0:
            self.at = max(self.at, len(self.text) - len(mark) + 1)
            yield
        self.at = end + len(mark)
        return self.text[begin:end]

    def json(self, bracket: str) -> Generator[None, None, str]:
        """A JSON value that begins with this bracket."""
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

    # --- decisions ----------------------------------------------------------------------------------------------------

    def check_offered(self, name: str) -> None:
        if name not in self._offered:
            raise NoCall

    def take_json(self, text: str) -> None:
        """Calls whose names are in their JSON."""
        self._take(call_json.calls_in(text, self._offered))

    def take_arguments(self, name: str, arguments: str) -> None:
        self._take(((name, arguments),) if name in self._offered and call_json.is_object(arguments) else ())

    def take_values(self, name: str, values: Mapping[str, str]) -> None:
        """A call whose arguments stand between tags."""
        self.check_offered(name)
        self.take_arguments(name, tagged_values.arguments_of(values, self._offered[name]))

    def begin_message(self, *, is_shown: bool) -> None:
        self.settled = self.at
        self.in_message, self.is_shown = True, is_shown

    def end_message(self) -> None:
        """Raises NoCall where none has begun."""
        if not self.in_message:
            raise NoCall
        self.settled = self.at
        self.in_message, self.is_shown = False, True

    def _take(self, calls: tuple[Call, ...]) -> None:
        if not calls:
            raise NoCall
        self.calls.extend(calls)
        self.settled = self.at

    # --- the text -----------------------------------------------------------------------------------------------------

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
        """The mark that comes next, if any, and whether one may."""
        for mark in marks:
            if self.text.startswith(mark, self.at):
                return mark, True
        return "", any(mark.startswith(self.text[self.at : self.at + len(mark)]) for mark in marks)
