"""Limits the retries of one gateway: during an outage, retries add load, so only a share of the requests is retried. Pure."""

from collections import deque

WINDOW_SECONDS = 10.0
#: Share of the window's requests, or of the running ones if there are more: an answer may outlast the window.
SHARE = 0.2
#: Always allowed, for gateways with little traffic.
PER_SECOND = 10
#: Width of a counting bucket: memory must not grow with the number of requests.
_PIECE_SECONDS = 0.5


class _Window:
    __slots__ = ("_pieces", "_total")

    def __init__(self) -> None:
        self._pieces: deque[tuple[int, int]] = deque()
        self._total = 0

    def add(self, now: float) -> None:
        piece, count = int(now // _PIECE_SECONDS), 0
        if self._pieces and self._pieces[0][0] <= piece - WINDOW_SECONDS / _PIECE_SECONDS:
            self.total(now)  # drops old buckets
        if self._pieces and self._pieces[-1][0] >= piece:
            piece, count = self._pieces.pop()
        self._pieces.append((piece, count + 1))
        self._total += 1

    def total(self, now: float) -> int:
        oldest = (now - WINDOW_SECONDS) // _PIECE_SECONDS
        while self._pieces and self._pieces[0][0] <= oldest:
            self._total -= self._pieces.popleft()[1]
        return self._total


class RetryBudget:
    """Limits the gateway's retries. Follow every ``begin`` with one ``end``."""

    def __init__(self) -> None:
        self._requests, self._retries = _Window(), _Window()
        self._running = 0

    def begin(self, now: float) -> None:
        self._requests.add(now)
        self._running += 1

    def end(self) -> None:
        self._running -= 1

    def spend(self, now: float) -> bool:
        """Return whether another retry is allowed, and count it if so."""
        requests = max(self._requests.total(now), self._running)
        if self._retries.total(now) + 1 > SHARE * requests + PER_SECOND * WINDOW_SECONDS:
            return False
        self._retries.add(now)
        return True
