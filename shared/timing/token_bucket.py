"""Limits how often something happens, with bursts. Pure: the caller brings the clock."""


class TokenBucket:
    __slots__ = ("_at_once", "_left", "_per_second", "_seen_at")

    def __init__(self, per_second: float, at_once: float) -> None:
        self._per_second = per_second
        self._at_once = at_once
        self._left = at_once
        self._seen_at = 0.0

    def spend(self, now: float) -> bool:
        """Return whether it may happen once more, and count it then."""
        self._left = min(self._at_once, self._left + (now - self._seen_at) * self._per_second)
        self._seen_at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
