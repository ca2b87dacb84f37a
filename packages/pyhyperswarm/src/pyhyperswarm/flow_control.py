"""Flow control by credit: how much one side may send before the other has taken it. Pure.

The transport has no receive window: 505 MB once reached a peer that did not read, within 2 s. So each side grants the other a number of
bytes, end to end, and renews them as the application takes messages. A message costs its bytes plus ``OVERHEAD``.
"""

from collections import deque
from typing import Final

#: Makes empty messages cost something. Part of the protocol between peers.
OVERHEAD: Final = 32
#: Larger messages are sent in parts, so that they do not delay others for long.
MAX_PART_BYTES: Final = 64 * 1024
#: A peer that grants more credit than this, or sends more than its window, is disconnected.
MAX_WINDOW_BYTES: Final = 1024 * 1024
#: The least difference between the windows of strangers and peers, because tiny credits are not sent.
MIN_GROWTH_BYTES: Final = 1024
#: Credit below this share of the window waits, so that one frame covers many messages.
_BATCH: Final = 4


class SendWindow:
    """What may be sent, and what waits for credit. Splits messages that are longer than a part."""

    def __init__(self, credit: int) -> None:
        self._credit = min(credit, MAX_WINDOW_BYTES)
        self._waiting: deque[bytes] = deque()
        #: How much of the first waiting message was sent.
        self._offset = 0
        self._waiting_cost = 0

    @property
    def room(self) -> int:
        """Return how much more may be sent; negative if messages wait."""
        return self._credit - self._waiting_cost

    def take(self, message: bytes) -> bool:
        """Return True if the message may be sent now, whole, and charge for it. Otherwise the caller must call ``wait``."""
        size = len(message)
        if not self._waiting and size + OVERHEAD <= self._credit and size <= MAX_PART_BYTES:
            self._credit -= size + OVERHEAD
            return True
        return False

    def wait(self, message: bytes) -> None:
        """Queue a message. ``next_part`` returns it as credit arrives."""
        self._waiting.append(message)
        self._waiting_cost += len(message) + OVERHEAD * (1 + len(message) // MAX_PART_BYTES)

    def grant(self, credit: int) -> None:
        self._credit = min(self._credit + credit, MAX_WINDOW_BYTES)

    def next_part(self) -> tuple[bytes, bool] | None:
        """Return the next waiting part to send, charged for, and whether it ends its message; None if nothing may be sent."""
        if not self._waiting:
            self._waiting_cost = 0
            return None
        message = self._waiting[0]
        left = len(message) - self._offset
        size = min(left, MAX_PART_BYTES, self._credit - OVERHEAD)
        # A tiny part would cost more than it carries.
        if size < 0 or (size < left and size < OVERHEAD):
            return None
        part = message[self._offset : self._offset + size] if size < len(message) else message
        self._credit -= size + OVERHEAD
        self._waiting_cost = max(0, self._waiting_cost - size - OVERHEAD)
        self._offset += size
        if self._offset < len(message):
            return part, False
        self._waiting.popleft()
        self._offset = 0
        return part, True


class ReceiveWindow:
    """What the peer may send, and when to grant more.

    A stranger gets ``first`` bytes once. ``open`` makes it a peer with a whole window.
    """

    def __init__(self, first: int, window: int) -> None:
        self._first = first
        self._window = window
        self._taken = 0
        self.is_open = False

    def open(self) -> int:
        """Return the credit to grant; 0 if it was already open."""
        if self.is_open:
            return 0
        self.is_open = True
        grant = max(0, self._window - self._first) + self._taken
        self._taken = 0
        return grant

    def take(self, cost: int) -> int:
        """Note that the application has taken messages of this cost. Returns the credit to grant, usually 0."""
        self._taken += cost
        if not self.is_open or self._taken < self._window // _BATCH:
            return 0
        grant, self._taken = self._taken, 0
        return grant
