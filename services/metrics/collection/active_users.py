"""Count the active users of several time windows. Pure; the caller supplies the clock."""

from collections import OrderedDict

from shared.types import UserId

HOUR = 3600.0
WINDOWS = {"1h": HOUR, "24h": 24 * HOUR, "7d": 7 * 24 * HOUR}
#: About 20 MB. With more users in a week, the counts are too low, first for the longest window.
MAX_USERS = 100_000


class ActiveUserCounter:
    """The last activity of each user, oldest first."""

    def __init__(self, limit: int = MAX_USERS) -> None:
        self._limit = limit
        self._seen: OrderedDict[UserId, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._seen)

    def record(self, user: UserId, now: float) -> None:
        self._seen[user] = now
        self._seen.move_to_end(user)
        if len(self._seen) > self._limit:
            self._seen.popitem(last=False)

    def count(self, now: float) -> dict[str, int]:
        """Return the number of users per window. Also forgets users beyond the longest window."""
        longest = max(WINDOWS.values())
        while self._seen and now - next(iter(self._seen.values())) > longest:
            self._seen.popitem(last=False)
        counts = dict.fromkeys(WINDOWS, 0)
        for seen_at in self._seen.values():
            for window, seconds in WINDOWS.items():
                counts[window] += now - seen_at <= seconds
        return counts
