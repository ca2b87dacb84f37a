"""How fast bytes, or lines, arrive. Pure: the caller brings the clock."""

#: Before, single bursts would decide.
MIN_SECONDS = 0.5


class TransferSpeed:
    __slots__ = ("_began", "_first_bytes")

    def __init__(self, now: float, first_bytes: int = 0) -> None:
        self._began, self._first_bytes = now, first_bytes

    def measure(self, now: float, done_bytes: int) -> float:
        """Return the bytes per second since the beginning; 0 as long as that is unknown."""
        seconds = now - self._began
        return max(0, done_bytes - self._first_bytes) / seconds if seconds >= MIN_SECONDS else 0.0
