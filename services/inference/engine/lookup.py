"""Guesses the next tokens of an answer from its prompt and itself, and decides how many a step should compute at once (a draft).  Pure.

An answer that copies repeats what came after the same tokens before. A step with several tokens takes less time than as many steps, so a
draft pays if enough of its guesses are right. Each token is drawn as in a separate step, and a wrong guess is cut off again.
"""

from array import array
from collections.abc import Callable

MAX_DRAFTED = 16
#: A guess needs so many equal tokens before it, and compares at most so many.
_MIN_MATCH, _MAX_MATCH = 3, 32
#: Earlier places with the same last tokens that are compared.
_PLACES = 8
#: Tokens that are indexed in one step: of a long prompt, they take 2 ms.
INDEXED_AT_ONCE = 4_096
#: Chances are learned apart for matches from each of these lengths on.
_LENGTHS = (5, 9, 17)
#: How much the earlier guesses, and times of drafts, still count after each new one.
_FORGET = 0.97
#: The same for times of drafts after each plain step.
_FORGET_PLAIN = 0.999
#: The chance of a guess before anything is known, too small for drafts on a processor, and how many guesses it counts as.
_FIRST_CHANCE, _FIRST_WEIGHT = 0.6, 2.0
#: The additional time of a step with drafted tokens, in plain steps, before anything is known: two cores with SmolLM2.
_FIRST_COST, _FIRST_COST_PER_TOKEN = 0.8, 0.253
#: A single slow step must not rule out drafts.
_MAX_SURPRISE = 2.0
_WEIGHT = 0.2
#: A draft must make the answer this many times as fast.
_MIN_GAIN = 1.05
#: What an answer may lose by wrong guesses: so many plain steps, and as many more for each token. So a text that always defeats the
#: chances costs less than 3 % of an answer of 140 tokens.
_FIRST_LOSS, _LOSS_PER_TOKEN = 2.0, 0.015
#: After so many drafts, one step has none: its time is what prompts are paced by, and drafts are compared with.
PLAIN_EVERY = 32


def most_outputs(slots: int) -> int:
    """Return the most tokens that a step draws: one of each slot, or those of a draft."""
    return max(slots, 1 + MAX_DRAFTED)


class _Chances:
    """How often guesses were right, by the length of their match."""

    def __init__(self, above: "_Chances | None" = None) -> None:
        """``above``: those of all answers, with which a new answer begins."""
        self._above = above
        self._hits, self._tries = [0.0] * (len(_LENGTHS) + 1), [0.0] * (len(_LENGTHS) + 1)

    def of(self, match: int) -> float:
        at = _length(match)
        first = _FIRST_CHANCE if self._above is None else self._above.of(match)
        return (self._hits[at] + _FIRST_WEIGHT * first) / (self._tries[at] + _FIRST_WEIGHT)

    def record(self, match: int, *, is_hit: bool) -> None:
        at = _length(match)
        self._hits[at] = _FORGET * self._hits[at] + is_hit
        self._tries[at] = _FORGET * self._tries[at] + 1
        if self._above is not None:
            self._above.record(match, is_hit=is_hit)


def _length(match: int) -> int:
    return sum(match >= least for least in _LENGTHS)


class _Costs:
    """The time of a step by its drafted tokens, in plain steps. A straight line fits: the first drafted token changes llama.cpp's way to
    compute, and each one adds the same."""

    def __init__(self) -> None:
        #: How many times the first line fits.
        self._scale = 1.0
        #: For the least squares: the weight, and the weighted sums of x, y, x² and xy.
        self._sums = [0.0] * 5

    def of(self, drafted: int) -> float:
        weight, x, y, xx, xy = self._sums
        # As if two lengths had been tried: if all steps have the same one, there is no line.
        for tried in (1, MAX_DRAFTED):
            more = self._scale * _first_cost(tried)
            weight, x, y, xx, xy = weight + 1, x + tried, y + more, xx + tried * tried, xy + tried * more
        slope = (weight * xy - x * y) / (weight * xx - x * x)
        return max(1.0, 1 + y / weight + slope * (drafted - x / weight))

    def record(self, drafted: int, cost: float) -> None:
        more = min(cost, _MAX_SURPRISE * self.of(drafted)) - 1
        self._scale += _WEIGHT * (more / _first_cost(drafted) - self._scale)
        new = (1, drafted, more, drafted * drafted, drafted * more)
        self._sums = [_FORGET * known + one for known, one in zip(self._sums, new, strict=True)]

    def fade(self) -> None:
        """Return to the first line, slowly. Else a machine that was busy for a while would never draft again."""
        self._scale = 1 + _FORGET_PLAIN * (self._scale - 1)
        self._sums = [_FORGET_PLAIN * known for known in self._sums]


def _first_cost(drafted: int) -> float:
    return _FIRST_COST + _FIRST_COST_PER_TOKEN * drafted


class Speculation:
    """What is known of drafts, for all answers of a model."""

    def __init__(self, is_end: Callable[[int], bool]) -> None:
        """``is_end``: whether a token ends an answer; such a guess would be followed by nothing."""
        self.is_end = is_end
        self.chances = _Chances()
        self.costs = _Costs()


class PromptLookup:
    """Plans the drafts of one answer. It learns from its guesses also if they aren't drafted, so trying them costs nothing."""

    def __init__(self, tokens: list[int], speculation: Speculation) -> None:
        """``tokens``: prompt and answer; the owner appends to it."""
        self._tokens = tokens
        self._is_end, self._costs = speculation.is_end, speculation.costs
        self._chances = _Chances(speculation.chances)
        self._last: dict[tuple[int, ...], int] = {}
        #: For each token, the previous place with the same last tokens.
        self._before = array("i", [-1] * (_MIN_MATCH - 1))
        #: Where the next token was guessed from, and how many equal tokens are before it; 0 for no guess.
        self._place = self._match = 0
        self._plain_seconds = 0.0
        #: Drafts since the last step without.
        self._drafts = 0
        #: How many plain steps may still be lost.
        self._spare = _FIRST_LOSS

    def plan(self, limit: int) -> tuple[int, ...]:
        """Return the guesses that the next step should compute, at most ``limit``."""
        guesses = self._guess(min(limit, MAX_DRAFTED))
        if not self._plain_seconds or self._drafts >= PLAIN_EVERY:
            return ()
        count, most = 0, _MIN_GAIN
        chance = tokens = 1.0
        for drafted in range(1, len(guesses) + 1):
            chance *= self._chances.of(self._match + drafted - 1)
            tokens += chance
            cost = self._costs.of(drafted)
            if tokens / cost > most and cost - 1 <= self._spare:
                count, most = drafted, tokens / cost
        return tuple(guesses[:count])

    def record(self, token: int) -> None:
        """The next token is known, and will be appended."""
        self._spare += _LOSS_PER_TOKEN
        if self._match:
            is_hit = self._tokens[self._place] == token
            self._chances.record(self._match, is_hit=is_hit)
            self._place, self._match = (self._place + 1, self._match + 1) if is_hit else (0, 0)

    def record_step(self, seconds: float, drafted: int, accepted: int) -> None:
        """A step has computed this answer's next token, and nothing else except guesses."""
        if not drafted:
            self._drafts = 0
            self._plain_seconds += (_WEIGHT if self._plain_seconds else 1.0) * (seconds - self._plain_seconds)
            self._costs.fade()
            return
        self._drafts += 1
        self._spare += 1 + accepted - self._costs.of(drafted)
        self._costs.record(drafted, seconds / self._plain_seconds)

    def _guess(self, count: int) -> list[int]:
        self._index()
        if not self._match:
            self._find()
        guesses: list[int] = []
        for at in range(self._place, self._place + count) if self._match else ():
            # Behind the last token, the guesses themselves are repeated. Rows of images are below zero.
            token = self._tokens[at] if at < len(self._tokens) else guesses[at - len(self._tokens)]
            if token < 0 or self._is_end(token):
                break
            guesses.append(token)
        return guesses

    def _index(self) -> None:
        tokens, before = self._tokens, self._before
        for at in range(len(before), min(len(tokens), len(before) + INDEXED_AT_ONCE)):
            key = tuple(tokens[at - _MIN_MATCH + 1 : at + 1])
            before.append(self._last.get(key, -1))
            self._last[key] = at

    def _find(self) -> None:
        """Find the earlier place with the longest match."""
        tokens, end = self._tokens, len(self._tokens) - 1
        place = self._before[end] if len(self._before) > end else -1
        for _ in range(_PLACES):
            if place < 0:
                return
            match = _MIN_MATCH
            while match < _MAX_MATCH and match <= place and tokens[place - match] == tokens[end - match]:
                match += 1
            if match > self._match:
                self._place, self._match = place + 1, match
            place = self._before[place]
