"""The patterns of a policy. Pure."""

from collections.abc import Sequence

import re2

from services.gateway.guard.detectors import Match
from shared.config_documents import GuardKind, GuardPattern

#: RE2's memory for one pattern; a larger one is refused.
MAX_MEMORY = 1 << 20


class InvalidPattern(ValueError):
    """The message says why."""


class OwnPatterns:
    """Finds texts that match one of the patterns. A match is at most as long as its pattern's ``max_length``."""

    def __init__(self, patterns: Sequence[GuardPattern]) -> None:
        """``patterns``: at least one. Raises InvalidPattern."""
        self._patterns = [(pattern.name, compile_pattern(pattern.pattern), pattern.max_length) for pattern in patterns]
        self._any = _compile("|".join(f"(?:{pattern.pattern})" for pattern in patterns), len(patterns) * MAX_MEMORY)
        self._longest = max(pattern.max_length for pattern in patterns)

    def find(self, text: str, start: int, *, is_whole: bool) -> tuple[list[Match], int]:
        """Return the matches from ``start`` on, and up to where nothing that follows ``text`` can change them."""
        found: list[Match] = []
        decided = len(text) if is_whole else max(start, len(text) - self._longest)
        at = start
        while at < decided and (candidate := self._any.search(text, at)) is not None and candidate.start() < decided:
            match = self._match(text, candidate.start())
            if match is not None:
                found.append(match)
            at = candidate.start() + 1 if match is None else match.end
        return found, max(at, decided)

    def _match(self, text: str, start: int) -> Match | None:
        """Return the match that begins at ``start``. It depends only on the ``max_length`` characters from there and the next."""
        for name, pattern, most in self._patterns:
            for end in (start + most + 1, start + most):
                found = pattern.match(text[:end], start)
                if found is not None and start < found.end() <= start + most:
                    return Match(start, found.end(), GuardKind.OWN, name)
        return None


def compile_pattern(pattern: str) -> "re2._Regexp":
    """Raises InvalidPattern if RE2 refuses it, or if it matches the empty text."""
    compiled = _compile(pattern, MAX_MEMORY)
    if compiled.fullmatch("") is not None:
        raise InvalidPattern("it matches the empty text")
    return compiled


def _compile(pattern: str, memory: int) -> "re2._Regexp":
    options = re2.Options()
    # RE2 otherwise prints the pattern to stderr.
    options.log_errors = False
    options.max_mem = memory
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        reason = error.args[0] if error.args else ""
        raise InvalidPattern(reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)) from None
