"""How many tokens of prompts one step may read while answers are running, so that these do not falter.  Pure.

The time of a step is taken for the time of its answers, which depends on how many there are, and that of the tokens it reads.
Both are learnt from the steps themselves: a processor and a GPU differ by a factor of a thousand.
"""

#: An answer's next token may come so many times later than when nobody reads. The bench asks for 3 at the 99th percentile.
SLOWDOWN = 2.4
#: A prompt must come to its end, however slow; and fewer could not be cut so that none is left over alone.
LEAST_TOKENS = 3
#: Before anything is known.
FIRST_TOKENS = 16
#: How much the newest step moves a mean.
_WEIGHT = 0.2


class Pace:
    """Told of every step; asked before the next one."""

    def __init__(self, most: int) -> None:
        #: In one step, when nobody waits for the next token.
        self._most = most
        #: Number of answers, rounded up to a power of two -> seconds of a step that does nothing else.
        self._step_seconds: dict[int, float] = {}
        self._token_seconds = 0.0

    def budget(self, answering: int) -> int:
        """Tokens to read in the next step."""
        if answering == 0:
            return self._most
        quiet = self._quiet_seconds(answering)
        if quiet == 0 or self._token_seconds == 0:
            return min(FIRST_TOKENS, self._most)
        return max(LEAST_TOKENS, min(self._most, int((SLOWDOWN - 1) * quiet / self._token_seconds)))

    def took(self, seconds: float, *, answering: int, read: int) -> None:
        """A step took so long."""
        if read == 0:
            bucket = _bucket(answering)
            self._step_seconds[bucket] = _mean(self._step_seconds.get(bucket, 0.0), seconds)
        elif (quiet := self._quiet_seconds(answering)) < seconds:
            self._token_seconds = _mean(self._token_seconds, (seconds - quiet) / read)

    def _quiet_seconds(self, answering: int) -> float:
        """Of a step with so many answers; of fewer, if so many were never seen."""
        known = [bucket for bucket in self._step_seconds if bucket <= _bucket(answering)]
        if answering == 0 or not self._step_seconds:
            return 0.0
        return self._step_seconds[max(known)] if known else self._step_seconds[min(self._step_seconds)]


def _bucket(answering: int) -> int:
    return 1 << (answering - 1).bit_length() if answering else 0


def _mean(before: float, now: float) -> float:
    return now if before == 0 else (1 - _WEIGHT) * before + _WEIGHT * now
