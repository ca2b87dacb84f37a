"""How many tokens of prompts one step may read while answers are running, so that these do not falter.  Pure.

Where more wait to be read than answers are running, the many count for more than the few: a step may take longer in proportion.

The time of a step is taken for the time of its answers, which depends on how many there are, and that of the tokens it reads.
Both are learnt from the steps themselves: a processor and a GPU differ by a factor of a thousand. For that, a step now and then
reads nothing.
"""

#: An answer's next token may come so many times later than when nobody reads. The bench asks for 3 at the 99th percentile.
SLOWDOWN = 2.4
#: A prompt must come to its end, however slow.
LEAST_TOKENS = 3
#: Before anything is known.
FIRST_TOKENS = 16
#: After so many steps that read, one that does not shows how long the answers alone take by now.
QUIET_EVERY = 50
#: How much the newest step moves a mean.
_WEIGHT = 0.2


class PrefillBudget:
    """Told of every step; asked before the next one."""

    def __init__(self, most: int) -> None:
        #: In one step, when nobody waits for the next token.
        self._most = most
        #: Number of answers, rounded up to a power of two -> seconds of a step that does nothing else.
        self._step_seconds: dict[int, float] = {}
        #: The same -> steps that read since the last one that did not.
        self._steps_since: dict[int, int] = {}
        self._token_seconds = 0.0

    def budget(self, answering: int, reading: int = 1) -> int:
        """Tokens to read in the next step, for so many prompts; 0 for a step that is to show how long the answers take."""
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

    def took(self, seconds: float, *, answering: int, read: int) -> None:
        """A step took so long."""
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
