"""How many retries may be sent to the workers, so that a failure of many is not made worse by asking all of it again.  Pure."""

from collections import deque

WINDOW_SECONDS = 10.0
#: Of the requests of the window, or of those that run now where these are more: an answer may take longer than the window.
SHARE = 0.2
#: For whoever has few requests.
PER_SECOND = 10
#: Times are counted in pieces of this length, so that memory does not grow with the number of requests.
_PIECE_SECONDS = 0.5


class _Window:
    """How often something happened in the last WINDOW_SECONDS."""

    __slots__ = ("_pieces", "_total")

    def __init__(self) -> None:
        self._pieces: deque[tuple[int, int]] = deque()
        self._total = 0

    def add(self, now: float) -> None:
        piece, count = int(now // _PIECE_SECONDS), 0
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
    """One for the gateway. Every ``begin`` is followed by one ``end``; the caller brings the clock."""

    def __init__(self) -> None:
        self._requests, self._retries = _Window(), _Window()
        self._running = 0

    def begin(self, now: float) -> None:
        self._requests.total(now)  # lets go of what is too old
        self._requests.add(now)
        self._running += 1

    def end(self) -> None:
        self._running -= 1

    def spend(self, now: float) -> bool:
        """Whether one more retry may be sent; it is counted if so."""
        requests = max(self._requests.total(now), self._running)
        if self._retries.total(now) + 1 > SHARE * requests + PER_SECOND * WINDOW_SECONDS:
            return False
        self._retries.add(now)
        return True
