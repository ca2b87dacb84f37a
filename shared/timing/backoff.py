"""Pauses between attempts that double up to a limit, with or without jitter. Pure."""

import random
from collections.abc import Callable
from dataclasses import dataclass

#: Keeps the power within a float, however often something failed.
_MAX_DOUBLINGS = 64


@dataclass(frozen=True, slots=True)
class Backoff:
    first_seconds: float
    longest_seconds: float
    #: The random share of each pause: 0 for none, 0.5 for "equal" jitter, 1 for "full" jitter.
    jitter: float = 0.0

    def pause(self, failures: int, draw: Callable[[], float] = random.random) -> float:
        """Return the seconds to wait after this many failures in a row, at least one. ``draw`` returns numbers from 0 to 1."""
        longest = min(self.longest_seconds, self.first_seconds * 2.0 ** min(failures - 1, _MAX_DOUBLINGS))
        return longest * (1 - self.jitter * (1 - draw()))
