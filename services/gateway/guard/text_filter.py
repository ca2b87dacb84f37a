"""Finds matches in a text that arrives in pieces, and holds back only what later pieces may still change. Pure.

Where the text is cut depends on the text alone, so its pieces never change the result. Up to a border no match can begin before it and
end after it: a character that no kind contains, or a space after a word that no number continues. Ordinary prose is held for one word.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from services.gateway.facts.guardrails import GuardScan
from services.gateway.guard.detectors import CONTEXT_CHARACTERS, LIKELY, MAX_SECRET_CHARACTERS, TRIGGER, Detector, OpenSecret, knows_country
from services.gateway.guard.own_patterns import InvalidPattern, OwnBudget, OwnPatterns
from services.gateway.guard.phone_numbers import PhoneBudget
from services.gateway.guard.searched_text import Match, SearchedText
from shared import errors
from shared.config_documents import GuardKind, GuardPattern
from shared.telemetry.version import version

#: Policies whose detectors and patterns stay compiled. Searches fill up to 10 MiB for five patterns.
_DETECTORS, _OWN_PATTERNS = 256, 64
#: A text without a border is held up to HOLD characters; then what begins in the first STEP is decided.
HOLD, STEP = 512, 256
#: Larger pieces are read in parts, because RE2 converts the text at each call.
_PART = 4096
#: Kept for the words before a number, and for the step of own patterns.
_CONTEXT = CONTEXT_CHARACTERS + 24

_GAP = re.compile(r"(?s:.*)[^A-Za-z0-9._%+@:/()-]")
#: A number may continue on the next line.
_BORDER = re.compile(r"[^A-Za-z0-9._%+@:/() \n-]|[a-z_%@:][A-Z+./()-]* |(?<![0-9A-Z -])\n|\n(?=[^0-9A-Z])")
#: How much more text must come before the end of an open secret is looked for again.
_RETRY_CHARACTERS = 128


@dataclass(frozen=True, slots=True)
class Found:
    """A match in the text."""

    kind: GuardKind
    text: str
    #: See ``Match``.
    name: str = ""


Part = str | Found


class TextFilter:
    def __init__(self, detector: Detector, own: OwnPatterns | None = None, *, before: str = "") -> None:
        """``before``: what a reader knows about the text, such as the name of a field."""
        self._detector = detector
        self._own = own
        #: Text that is not returned yet, after up to ``_CONTEXT`` characters that are.
        self._searched = SearchedText(before)
        #: Positions in the normalized text.
        self._returned = self._decided = self._own_decided = len(self._searched.text)
        #: Characters of the whole text before it.
        self._offset = 0
        self._retry_at = 0
        self._matches: list[Match] = []
        self._phones = PhoneBudget()
        self._own_budget = OwnBudget(last_end=self._returned)

    def feed(self, piece: str) -> list[Part]:
        """Return what is decided now."""
        if len(piece) <= _PART:
            self._searched.add(piece)
            return self._advance(is_whole=False)
        return [part for start in range(0, len(piece), _PART) for part in self.feed(piece[start : start + _PART])]

    def end(self) -> list[Part]:
        """Return the rest. The filter is not usable afterwards."""
        self._searched.add("", is_last=True)
        return self._advance(is_whole=True)

    def _advance(self, *, is_whole: bool) -> list[Part]:
        text = self._searched.text
        if is_whole or len(text) >= self._retry_at:
            self._decide(is_whole=is_whole)
        limit = self._decided
        if self._own is not None:
            found, self._own_decided = self._own.find(
                text, self._own_decided, is_whole=is_whole, offset=self._offset, budget=self._own_budget
            )
            self._matches.extend(found)
            limit = min(limit, self._own_decided)
        parts = self._take(limit)
        if self._returned >= 2 * _CONTEXT:
            self._trim(self._returned - _CONTEXT)
        return parts

    def _decide(self, *, is_whole: bool) -> None:
        text = self._searched.text
        size = len(text)
        while self._decided < size:
            trigger = TRIGGER.search(text, self._decided)
            gap = _GAP.match(text, self._decided, size if trigger is None else trigger.start())
            if gap is not None:
                self._decided = gap.end()
            left = size - self._decided
            if trigger is None:
                if is_whole:
                    self._decided = size
                elif left >= HOLD:
                    self._decided += STEP * ((left - HOLD) // STEP + 1)
                return
            limit, begins_before = self._next_limit(text, is_whole=is_whole)
            if not limit:
                return
            if LIKELY.search(text, self._decided, limit) is None:
                self._decided = begins_before
                continue
            phones = self._phones.copy()
            try:
                found = self._detector.find(
                    text, self._decided, limit, begins_before, offset=self._offset, phones=phones, is_whole=is_whole
                )
            except OpenSecret:
                self._retry_at = min(size + _RETRY_CHARACTERS, self._decided + HOLD + MAX_SECRET_CHARACTERS)
                return
            self._phones = phones
            found = [match for match in found if match.start < begins_before]
            self._matches.extend(found)
            self._decided = max(begins_before, found[-1].end if found else 0)

    def _next_limit(self, text: str, *, is_whole: bool) -> tuple[int, int]:
        """Return up to where to read, and before where a match must begin; 0 if more text is needed."""
        border = _BORDER.search(text, self._decided, self._decided + HOLD)
        if border is not None:
            return border.end(), border.end()
        if len(text) - self._decided >= HOLD:
            return self._decided + HOLD, self._decided + STEP
        return (len(text), len(text)) if is_whole else (0, 0)

    def _take(self, limit: int) -> list[Part]:
        """Return the text up to ``limit``, but no part of matches that end after it. Overlapping matches are returned as one."""
        parts: list[Part] = []
        groups = _merge(self._matches) if self._matches else []
        taken = 0
        for group in groups:
            start, end = group[0].start, max(match.end for match in group)
            if end > limit:
                limit = min(limit, start)
                break
            taken += len(group)
            if before := self._searched.take_before(start):
                parts.append(before)
            strongest = min(group, key=lambda match: _ORDER[match.kind])
            parts.append(Found(strongest.kind, self._searched.take_through(end), strongest.name))
            self._returned = end
        if groups:
            self._matches = [match for group in groups for match in group][taken:]
        if limit >= self._returned and (rest := self._searched.take_before(limit)):
            parts.append(rest)
            self._returned = limit
        return parts

    def _trim(self, cut: int) -> None:
        self._searched.forget(cut)
        self._offset += cut
        self._returned -= cut
        self._decided -= cut
        self._own_decided = max(0, self._own_decided - cut)
        self._retry_at = max(0, self._retry_at - cut)
        if self._matches:
            self._matches = [Match(match.start - cut, match.end - cut, match.kind, match.name) for match in self._matches]


_ORDER = {kind: number for number, kind in enumerate(GuardKind)}


def _merge(matches: Sequence[Match]) -> list[list[Match]]:
    groups: list[list[Match]] = []
    end = -1
    for match in sorted(matches, key=lambda match: match.start):
        if match.start < end:
            groups[-1].append(match)
        else:
            groups.append([match])
        end = max(end, match.end)
    return groups


def open_filter(scan: GuardScan, before: str = "") -> TextFilter:
    """Return the filter of a text in which a policy looks for something. Raises ConfigUnreadable for a pattern or country that only a newer
    release knows."""
    detector = _detector(frozenset(scan.actions), scan.countries, scan.allow, scan.internal_ips)
    return TextFilter(detector, _own_patterns(scan.patterns) if scan.has_patterns else None, before=before)


@lru_cache(_DETECTORS)
def _detector(kinds: frozenset[GuardKind], countries: tuple[str, ...], allow: tuple[str, ...], internal_ips: bool) -> Detector:
    unknown = [country for country in countries if not knows_country(country)]
    if unknown and not kinds.isdisjoint({GuardKind.PHONE, GuardKind.NATIONAL_ID}):
        raise _unreadable(f"finds no numbers of {', '.join(unknown)}")
    return Detector(kinds, countries=countries, allow=allow, internal_addresses=internal_ips)


@lru_cache(_OWN_PATTERNS)
def _own_patterns(patterns: tuple[GuardPattern, ...]) -> OwnPatterns:
    try:
        return OwnPatterns(patterns)
    except InvalidPattern as error:
        raise _unreadable(f"can't search a pattern ({error})") from error


def _unreadable(why: str) -> errors.ConfigUnreadable:
    return errors.ConfigUnreadable(
        f"this gateway (release {version()}) {why}, as a guardrail says", hint="use a newer gateway: docs/runbooks/config_unreadable.md"
    )
