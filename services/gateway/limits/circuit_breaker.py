"""When Valkey counts as away: five failures in a row within ten seconds. It is back with the first probe that succeeds. Pure."""

FAILURES, WITHIN_SECONDS = 5, 10.0


class Breaker:
    """One for what it watches. While it is open nobody but the probe calls."""

    def __init__(self) -> None:
        self.is_open = False
        self._failed_at: list[float] = []

    def succeeded(self) -> bool:
        """True where that closes it. One slow answer among thousands must not add up with others, so it clears what failed."""
        was_open, self.is_open = self.is_open, False
        self._failed_at.clear()
        return was_open

    def failed(self, now: float, *, times: int = 1) -> bool:
        """True where that opens it. ``times``: for how many failures it counts."""
        if self.is_open:
            return False
        self._failed_at = [at for at in self._failed_at if now - at < WITHIN_SECONDS] + [now] * times
        self.is_open = len(self._failed_at) >= FAILURES
        return self.is_open
