"""The patterns of a policy. Pure.

RE2 is linear in the text, but a search for each of many candidates is not. So a text is searched in steps, each search sees only what can
be part of a match that begins in its step, and a block of the text has a budget. Steps and blocks begin at multiples of their size, so that
the pieces in which a text arrives never change the result.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import re2

from services.gateway.guard.searched_text import Match, normalize_pattern
from shared.config_documents import GuardKind, GuardPattern

#: RE2's memory for one pattern; a larger one is refused.
MAX_MEMORY = 1 << 20
#: Patterns that stay compiled, each with up to MAX_MEMORY.
_COMPILED = 128
#: Characters of a block, and what its searches may cost: 40 ms at worst, and 1,500 matches of a simple pattern.
BLOCK_CHARACTERS, BLOCK_COST = 4096, 20_000
#: A step is searched to its end even if that exceeds the budget.
STEP_CHARACTERS = 16
#: How far to look for the next step with a candidate.
_LOOK_AHEAD_CHARACTERS = 1024
#: Larger programs count as this one. RE2 rarely needs so long for them, and classes such as \\pL have 1,200 instructions.
_MAX_COUNTED_PROGRAM = 500
#: Of policies that people set who are no administrators. The memory is enough for a class such as \pL; with more, one pattern takes up to
#: 40 ms to compile.
MAX_PATTERNS, MAX_PATTERN_MEMORY = 5, 1 << 16
#: The sum of ``program size * max_length``. RE2 takes up to 5 ns for each instruction and character.
MAX_WORK = 100_000


class InvalidPattern(ValueError):
    """The message says why."""


@dataclass(slots=True)
class OwnBudget:
    """How far a text was searched, and what its present block has cost. Positions are in the whole text."""

    block: int = 0
    spent: int = 0
    step: int = -1
    #: Where the search of the step began.
    step_start: int = 0
    #: The end of the last match, at first of what precedes the text.
    last_end: int = 0

    def open_step(self, step: int) -> None:
        self.step, self.step_start = step, max(step * STEP_CHARACTERS, self.last_end)
        block = step * STEP_CHARACTERS // BLOCK_CHARACTERS
        if block != self.block:
            self.block, self.spent = block, 0


@dataclass(frozen=True, slots=True)
class _Pattern:
    name: str
    regexp: "re2._Regexp"
    max_length: int
    #: Of a match, in units of about 2 µs: as much as a search takes if RE2 has no memory for its automaton.
    cost: int


class OwnPatterns:
    """Finds texts that match one of the patterns. A match is at most as long as its pattern's ``max_length``."""

    def __init__(self, patterns: Sequence[GuardPattern]) -> None:
        """``patterns``: at least one. Raises InvalidPattern."""
        self._patterns = [_compile_own(pattern) for pattern in patterns]
        self._any = _compile("|".join(f"(?:{pattern.pattern})" for pattern in patterns), len(patterns) * MAX_MEMORY)
        self._longest = max(pattern.max_length for pattern in patterns)

    def find(self, text: str, start: int, *, is_whole: bool, offset: int = 0, budget: OwnBudget | None = None) -> tuple[list[Match], int]:
        """Return the matches from ``start`` on, and up to where nothing that follows ``text`` can change them. Matches may end later.

        ``budget``: of the whole text, in which ``text`` begins at ``offset``, a step before ``start`` if it isn't the beginning. Beyond it,
        the rest of a block is one match.
        """
        budget = OwnBudget(last_end=offset + start) if budget is None else budget
        found: list[Match] = []
        decided = len(text) if is_whole else max(start, len(text) - self._longest)
        looks_ahead = True
        at = start
        while at < decided:
            border = (budget.step + 1) * STEP_CHARACTERS - offset
            if at >= border:
                at = max(at, budget.last_end - offset)
                budget.open_step((offset + at) // STEP_CHARACTERS)
                border = (budget.step + 1) * STEP_CHARACTERS - offset
            if budget.spent > BLOCK_COST:
                end = (budget.block + 1) * BLOCK_CHARACTERS - offset
                if end > len(text) and not is_whole:
                    return found, at
                found.append(Match(at, min(end, len(text)), GuardKind.OWN))
                at = found[-1].end
                budget.last_end = offset + at
                continue
            if looks_ahead and (skipped := self._skip(text, budget.step_start - offset)) >= border:
                at = max(at, skipped)
                continue
            # The part of a step that is decided is searched at once, and again with the rest of it, for what it costs.
            is_complete = border <= decided
            begin = budget.step_start - offset if is_complete else max(at, budget.last_end - offset)
            matches, cost = self._search(text, begin, min(border, decided), min(len(text), border + self._longest))
            found.extend(match for match in matches if match.start >= at)
            if matches:
                budget.last_end = offset + matches[-1].end
            if is_complete:
                budget.spent += cost
            # A candidate that is much too long is seen from far away.
            looks_ahead = bool(matches)
            at = border
        return found, decided

    def _skip(self, text: str, start: int) -> int:
        """Return the first place from ``start`` on where a match may begin."""
        end = min(len(text), start + _LOOK_AHEAD_CHARACTERS + self._longest)
        part, shift = _part(text, start, end)
        candidate = self._any.search(part, start - shift, end - shift)
        return start + _LOOK_AHEAD_CHARACTERS if candidate is None else shift + candidate.start()

    def _search(self, text: str, start: int, stop: int, end: int) -> tuple[list[Match], int]:
        """Return the matches that begin in ``text[start:stop]``, and what they and longer candidates cost. Leftmost matches win, then those
        of earlier patterns."""
        text, shift = _part(text, start, end)
        at, stop, end = start - shift, stop - shift, end - shift
        found: list[Match] = []
        candidate = self._any.search(text, at, end)
        if candidate is None or candidate.start() >= stop:
            return found, 0
        cost = 0
        following: dict[int, Match] = {}
        outdated = list(range(len(self._patterns)))
        while True:
            for number in outdated:
                match, spent = _next(self._patterns[number], text, at, stop, end)
                cost += spent
                following.pop(number, None)
                if match is not None:
                    following[number] = match
            if not following:
                return found, cost
            match = following[min(following, key=lambda number: (following[number].start, number))]
            found.append(Match(shift + match.start, shift + match.end, match.kind, match.name))
            at = match.end
            outdated = [number for number, other in following.items() if other.start < at]


def check_bounds(patterns: Sequence[GuardPattern]) -> str:
    """Return why a policy may not have these patterns unless an administrator sets it, after their path; empty if it may."""
    if len(patterns) > MAX_PATTERNS:
        return f" may have at most {MAX_PATTERNS} entries"
    work = 0
    for position, pattern in enumerate(patterns):
        try:
            work += _compile(pattern.pattern, MAX_PATTERN_MEMORY).programsize * pattern.max_length
        except InvalidPattern as error:
            return f".{position}.pattern can't be used: {error}"
    return " take too long to search: use a lower max_length, or smaller classes and repetitions" if work > MAX_WORK else ""


def compile_pattern(pattern: str) -> "re2._Regexp":
    """Raises InvalidPattern if RE2 refuses it, or if it matches the empty text."""
    compiled = _compile(pattern, MAX_MEMORY)
    if compiled.fullmatch("") is not None:
        raise InvalidPattern("it matches the empty text")
    return compiled


def _compile_own(pattern: GuardPattern) -> _Pattern:
    compiled = compile_pattern(pattern.pattern)
    return _Pattern(pattern.name, compiled, pattern.max_length, 2 + min(compiled.programsize, _MAX_COUNTED_PROGRAM) // 2)


def _part(text: str, start: int, end: int) -> tuple[str, int]:
    """Return the part of a text with a character before and after it, for borders of words, and where it begins. RE2's module converts all
    of the text that it gets to UTF-8, in each call."""
    shift = max(0, start - 1)
    return text[shift : end + 1], shift


def _next(pattern: _Pattern, text: str, at: int, stop: int, end: int) -> tuple[Match | None, int]:
    """Return the first match that begins in ``text[at:stop]``, and what it and the candidates before it cost."""
    cost = 0
    while at < stop and (candidate := pattern.regexp.search(text, at, end)) is not None and candidate.start() < stop:
        cost += pattern.cost
        start, last = candidate.span()
        if last - start > pattern.max_length:
            candidate = pattern.regexp.match(text, start, start + pattern.max_length)
            last = start if candidate is None else candidate.end()
        if last > start:
            return Match(start, last, GuardKind.OWN, pattern.name), cost
        at = start + 1
    return None, cost


@lru_cache(_COMPILED)
def _compile(pattern: str, memory: int) -> "re2._Regexp":
    options = re2.Options()
    # RE2 otherwise prints the pattern to stderr.
    options.log_errors = False
    options.max_mem = memory
    # Groups would take a second, slower search.
    options.never_capture = True
    try:
        return re2.compile(normalize_pattern(pattern), options)
    except re2.error as error:
        reason = error.args[0] if error.args else ""
        raise InvalidPattern(reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)) from None
