"""Decides when a store counts as down: after five failures within ten seconds, until a probe succeeds. Pure."""

FAILURES, WITHIN_SECONDS = 5, 10.0


class Breaker:
    """A circuit breaker. While it is open, only the probe calls."""

    def __init__(self) -> None:
        self.is_open = False
        self.failed_at: list[float] = []

    def succeeded(self) -> bool:
        """Return whether this closes it. A success clears earlier failures: slow answers among thousands must not add up."""
        was_open, self.is_open = self.is_open, False
        self.failed_at.clear()
        return was_open

    def failed(self, now: float, *, times: int = 1) -> bool:
        """Return whether this opens it. ``times``: how many failures to count."""
        if self.is_open:
            return False
        self.failed_at = [at for at in self.failed_at if now - at < WITHIN_SECONDS] + [now] * times
        self.is_open = len(self.failed_at) >= FAILURES
        return self.is_open
