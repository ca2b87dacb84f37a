"""When a crashed engine is started again, and when it has crashed too often.  Pure; the caller brings the clock."""

from collections import deque
from dataclasses import dataclass, field

FIRST_DELAY_SECONDS = 1.0
LONGEST_DELAY_SECONDS = 30.0
MOST_CRASHES = 5
WITHIN_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class RestartIn:
    seconds: float
    #: Of the last WITHIN_SECONDS, this one included.
    crashes: int


@dataclass(frozen=True, slots=True)
class GiveUp:
    crashes: int


@dataclass(slots=True)
class Restarts:
    """The crashes of one engine. The delay doubles with each crash and shrinks as old ones are forgotten."""

    _crashes: deque[float] = field(default_factory=deque)

    def crashed(self, now: float) -> RestartIn | GiveUp:
        while self._crashes and now - self._crashes[0] >= WITHIN_SECONDS:
            self._crashes.popleft()
        self._crashes.append(now)
        count = len(self._crashes)
        if count >= MOST_CRASHES:
            return GiveUp(count)
        return RestartIn(min(FIRST_DELAY_SECONDS * 2 ** (count - 1), LONGEST_DELAY_SECONDS), count)
