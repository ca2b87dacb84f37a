"""How many different users were active lately. Pure; the caller brings the clock. Memory is bounded by MAX_USERS."""

from collections import OrderedDict

from shared.types import UserId

HOUR = 3600.0
#: The `time_window` label -> its length in seconds.
WINDOWS = {"1h": HOUR, "24h": 24 * HOUR, "7d": 7 * 24 * HOUR}
#: About 20 MB; with more users than this in a week the counts are too low, those of the shorter windows last.
MAX_USERS = 100_000


class ActiveUserCounter:
    """Who was seen when, the longest unseen first."""

    def __init__(self, limit: int = MAX_USERS) -> None:
        self._limit = limit
        self._seen: OrderedDict[UserId, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._seen)

    def saw(self, user: UserId, now: float) -> None:
        self._seen[user] = now
        self._seen.move_to_end(user)
        if len(self._seen) > self._limit:
            self._seen.popitem(last=False)

    def count(self, now: float) -> dict[str, int]:
        """Different users within each window, and forgets those beyond the longest."""
        longest = max(WINDOWS.values())
        while self._seen and now - next(iter(self._seen.values())) > longest:
            self._seen.popitem(last=False)
        counts = dict.fromkeys(WINDOWS, 0)
        for seen_at in self._seen.values():
            for window, seconds in WINDOWS.items():
                counts[window] += now - seen_at <= seconds
        return counts
