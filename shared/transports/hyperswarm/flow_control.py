"""Credit windows: how much one side may send before the other has taken it. Pure.

The transport has no receive window of its own: a peer that does not read let 505 MB through in 2 s. So each side grants the
other so many bytes, end to end, and gives them back as the application takes them. A message costs its bytes and ``OVERHEAD``.
"""

from collections import deque
from typing import Final

#: What a message costs besides its bytes, so that empty ones are not free. Part of the peer wire.
OVERHEAD: Final = 32
#: Larger messages travel in parts, so that none holds up what comes behind it for long.
MAX_PART_BYTES: Final = 64 * 1024
#: No window is larger; a peer that grants more than that, and what it was sent, is cut off.
MAX_WINDOW_BYTES: Final = 1024 * 1024
#: A window has to be so much larger than what a stranger gets, because nobody grants crumbs.
MIN_GROWTH_BYTES: Final = 1024
#: A credit smaller than this share of the window waits for more: one frame for many messages.
_BATCH: Final = 4


class SendWindow:
    """What may leave, and what waits because the peer has not granted enough. Splits what is longer than a part."""

    def __init__(self, credit: int) -> None:
        self._credit = min(credit, MAX_WINDOW_BYTES)
        self._waiting: deque[bytes] = deque()
        #: How much of the first waiting message has left.
        self._offset = 0
        self._waiting_cost = 0

    @property
    def room(self) -> int:
        """What may still be sent before it waits; negative when something waits."""
        return self._credit - self._waiting_cost

    def take(self, message: bytes) -> bool:
        """True: it may leave now, whole, and is paid for. False: it has to ``wait``."""
        size = len(message)
        if not self._waiting and size + OVERHEAD <= self._credit and size <= MAX_PART_BYTES:
            self._credit -= size + OVERHEAD
            return True
        return False

    def wait(self, message: bytes) -> None:
        """Queue a message; ``next_part`` brings it as credit comes."""
        self._waiting.append(message)
        self._waiting_cost += len(message) + OVERHEAD * (1 + len(message) // MAX_PART_BYTES)

    def grant(self, credit: int) -> None:
        self._credit = min(self._credit + credit, MAX_WINDOW_BYTES)

    def next_part(self) -> tuple[bytes, bool] | None:
        """What may leave now of what waits, paid for, and whether it ends its message. None: nothing may."""
        if not self._waiting:
            self._waiting_cost = 0
            return None
        message = self._waiting[0]
        left = len(message) - self._offset
        size = min(left, MAX_PART_BYTES, self._credit - OVERHEAD)
        # A sliver of a large message would cost more than it carries; it waits for more credit.
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
    """What the peer may send, and when to tell it that it may send more.

    A stranger gets ``first`` bytes once and nothing back; ``open`` makes it a peer with a whole window.
    """

    def __init__(self, first: int, window: int) -> None:
        self._first = first
        self._window = window
        self._taken = 0
        self._is_open = False

    @property
    def is_open(self) -> bool:
        return self._is_open

    def open(self) -> int:
        """Returns what to grant now; 0 when it is open already."""
        if self._is_open:
            return 0
        self._is_open = True
        grant = max(0, self._window - self._first) + self._taken
        self._taken = 0
        return grant

    def take(self, cost: int) -> int:
        """The application has taken messages of so much cost. Returns what to grant now, mostly 0."""
        self._taken += cost
        if not self._is_open or self._taken < self._window // _BATCH:
            return 0
        grant, self._taken = self._taken, 0
        return grant
