"""Limits how many prompt tokens a step may read, so that running answers aren't slowed too much.  Pure.

If more prompts wait than answers run, a step may take longer in proportion.

It models the time of a step as the time for the answers, which depends on their number, plus the time for the tokens that are read.
It learns both from the steps, because processors and GPUs differ by a factor of a thousand. For that, some steps read nothing.
"""

#: Reading may slow the next token of an answer by this factor. The bench requires 3 at the 99th percentile.
SLOWDOWN = 2.4
LEAST_TOKENS = 3
FIRST_TOKENS = 16
#: After this many reading steps, one step reads nothing and measures the answers alone.
QUIET_EVERY = 50
#: Weight of the newest step in a mean.
_WEIGHT = 0.2


class PrefillBudget:
    """Gets the time of every step, and returns the budget of the next."""

    def __init__(self, most: int) -> None:
        self._most = most
        #: Number of answers, rounded up to a power of two -> seconds of a step that reads nothing.
        self._step_seconds: dict[int, float] = {}
        #: The same -> steps that read, since the last step that didn't.
        self._steps_since: dict[int, int] = {}
        self._token_seconds = 0.0

    def budget(self, answering: int, reading: int = 1) -> int:
        """Return the tokens that the next step may read; 0 for a step that measures the answers alone."""
        if answering == 0:
            return self._most
        bucket = _bucket(answering)
        if not self._step_seconds:
            return min(FIRST_TOKENS, self._most)
        if bucket not in self._step_seconds or self._steps_since.get(bucket, 0) >= QUIET_EVERY:
            return 0
        if self._token_seconds == 0:
            return min(FIRST_TOKENS, self._most)
        share = (SLOWDOWN - 1) * max(1.0, reading / answering)
        return max(LEAST_TOKENS, min(self._most, int(share * self._step_seconds[bucket] / self._token_seconds)))

    def record_step(self, seconds: float, *, answering: int, read: int) -> None:
        """Record the time of a step."""
        bucket = _bucket(answering)
        if read == 0:
            self._step_seconds[bucket] = _mean(self._step_seconds.get(bucket, 0.0), seconds)
            self._steps_since[bucket] = 0
            return
        self._steps_since[bucket] = self._steps_since.get(bucket, 0) + 1
        quiet = self._step_seconds.get(bucket, 0.0)
        if quiet < seconds:
            self._token_seconds = _mean(self._token_seconds, (seconds - quiet) / read)


def _bucket(answering: int) -> int:
    return 1 << (answering - 1).bit_length() if answering else 0


def _mean(before: float, now: float) -> float:
    return now if before == 0 else (1 - _WEIGHT) * before + _WEIGHT * now
