"""Normalizes texts before they are searched, and knows where each character comes from, so that masks hit the original. Pure.

Texts from PDFs and office programs have dashes, spaces and invisible characters that nobody typed. NFKC is applied to each character, or to
a letter with its mark, so that it doesn't matter in which pieces a text arrives.
"""

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

from shared.config_documents import GuardKind

#: What normalizing may change: a letter with a mark, a carriage return, and all but ASCII and the letters of some scripts.
_UNIT = re.compile(
    "[A-Za-z][\u0300-\u036f]"
    "|[^\x00-\x0c\x0e-\x7f\xc0-\u0131\u0134-\u013e\u0141-\u0148\u014a-\u017e\u0391-\u03c9\u0410-\u044f\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fff\uac00-\ud7a3]"
)
_MINUS = "\u2212"
_LINE_BREAKS = frozenset("\x85\u2028\u2029")


@dataclass(frozen=True, slots=True)
class Match:
    """A place in a text."""

    start: int
    end: int
    kind: GuardKind
    #: The name of the policy's own pattern; empty for other kinds.
    name: str = ""


def normalize(text: str) -> str:
    return text if _is_plain(text) else _UNIT.sub(lambda unit: _normalized(unit.group()), text)


def normalize_pattern(pattern: str) -> str:
    """Return a regular expression for normalized texts."""
    return pattern if _is_plain(pattern) else _UNIT.sub(lambda unit: _escaped(unit.group()), pattern)


class SearchedText:
    """A text that grows at its end and is forgotten from its beginning. ``text`` is its normalized form."""

    def __init__(self, before: str) -> None:
        """``before``: is searched, but never taken."""
        self.text = normalize(before)
        self._original = self.text
        #: A letter that a mark may follow.
        self._waiting = ""
        #: Characters of the original that were taken.
        self._taken = len(self.text)
        #: Where each character of ``text`` begins and ends in the original; None if they are the same.
        self._starts: list[int] | None = None
        self._ends: list[int] = []

    def add(self, piece: str, *, is_last: bool = False) -> None:
        piece, self._waiting = self._waiting + piece, ""
        if piece and not is_last and piece[-1].isascii() and piece[-1].isalpha():
            piece, self._waiting = piece[:-1], piece[-1]
        if self._starts is None:
            if _is_plain(piece):
                self.text += piece
                self._original += piece
                return
            self._starts, self._ends = list(range(len(self.text))), list(range(1, len(self.text) + 1))
        parts: list[str] = []
        at = 0
        for unit in _UNIT.finditer(piece):
            parts += self._place(piece[at : unit.start()]), self._place(unit.group(), _normalized(unit.group()))
            at = unit.end()
        self.text += "".join((*parts, self._place(piece[at:])))

    def take_before(self, position: int) -> str:
        """Return the original up to the character at ``position``, without what was taken."""
        if self._starts is None:
            return self._take(position)
        return self._take(self._starts[position] if position < len(self._starts) else len(self._original))

    def take_through(self, position: int) -> str:
        """Return the original up to the end of the character before ``position``, without what was taken."""
        return self._take(position if self._starts is None else self._ends[position - 1])

    def forget(self, cut: int) -> None:
        """Forget this many characters of ``text``, which were taken."""
        self.text = self.text[cut:]
        start = cut if self._starts is None else min(self._taken, self._starts[cut])
        self._original = self._original[start:]
        self._taken -= start
        if self._starts is not None:
            self._starts = [position - start for position in self._starts[cut:]]
            self._ends = [position - start for position in self._ends[cut:]]
            if self._original == self.text:
                self._starts = None

    def _place(self, original: str, shown: str | None = None) -> str:
        """Add to the original; return what it is in ``text``: the same, or ``shown``."""
        assert self._starts is not None  # the caller made it
        start, end = len(self._original), len(self._original) + len(original)
        self._original += original
        if shown is None:
            self._starts.extend(range(start, end))
            self._ends.extend(range(start + 1, end + 1))
            return original
        self._starts.extend([start] * len(shown))
        self._ends.extend([end] * len(shown))
        return shown

    def _take(self, end: int) -> str:
        part = self._original[self._taken : end]
        self._taken = max(self._taken, end)
        return part


def _is_plain(text: str) -> bool:
    return text.isascii() and "\r" not in text


@lru_cache(4096)
def _normalized(unit: str) -> str:
    category = unicodedata.category(unit[0])
    if category == "Cf" or unit == "\r":
        return ""
    if category == "Pd" or unit == _MINUS:
        return "-"
    if category == "Zs":
        return " "
    return "\n" if unit in _LINE_BREAKS else unicodedata.normalize("NFKC", unit)


def _escaped(unit: str) -> str:
    """Return a unit of a regular expression. Within a class, no more than one character may stand for it."""
    shown = _normalized(unit)
    if len(shown) > 1:
        return unit
    return shown if not shown.isascii() or shown.isalnum() or shown in {"", " "} else f"\\{shown}"
