"""Shares a link's memory for unread stream items among its calls, without I/O.

A window is what a callee may send before the reader takes something. The sum of all windows is limited:

- Half of the memory is reserved: each of the ``wire.MAX_CALLS`` calls always has a window of FLOOR_ITEMS and FLOOR_BYTES.
- A quarter of the bytes can be borrowed: a call gets up to 1/LOAN_PART of the free bytes, for at most LARGEST_ITEMS and LARGEST_BYTES in
  all. With few calls, each has the largest window. With more calls, loans shrink each time a window is renewed.
- A quarter of the bytes is for overdrafts: a callee's last item may exceed its window by up to 1 MiB.

A stalled reader keeps its window and gets no new one. It can slow down other calls, down to the floor, but never stop them. If stalled
readers have used up the overdraft memory, an item that needs some ends its own call with ``overloaded``, which is retryable.
"""

from dataclasses import dataclass

from shared.protocol import wire

MAX_LINK_BYTES = 16 * 1024 * 1024
#: 64 bytes of bookkeeping per item need as much memory again.
MAX_LINK_ITEMS = MAX_LINK_BYTES // 64
LARGEST_ITEMS, LARGEST_BYTES = 1024, 64 * 1024
FLOOR_ITEMS, FLOOR_BYTES = MAX_LINK_ITEMS // 2 // wire.MAX_CALLS, MAX_LINK_BYTES // 2 // wire.MAX_CALLS
MAX_OVERDRAFT_BYTES = MAX_LINK_BYTES // 4
#: The share of the free memory that one call may borrow, so that later calls find some.
LOAN_PART = 64


@dataclass(slots=True)
class CreditWindow:
    """The window of one call. Granted: what the callee may still send, what is unread, and what was taken but not granted again."""

    granted_items: int
    granted_bytes: int
    unread_items: int = 0
    unread_bytes: int = 0
    taken_items: int = 0
    taken_bytes: int = 0
    overdraft: int = 0
    closed: bool = False


class _Loans:
    def __init__(self, *, floor: int, largest: int, free: int) -> None:
        self._floor = floor
        self._most = largest - floor
        self._free = free

    def grant(self, granted: int, taken: int) -> int:
        """Return how much to grant, at least what was taken, or less if the window has to shrink."""
        free = self._free + self._loan(granted)
        wanted = self._floor + min(self._most, free // LOAN_PART)
        credit = max(0, taken + wanted - granted)
        self._free = free - self._loan(granted - taken + credit)
        return credit

    def release(self, granted: int) -> None:
        self._free += self._loan(granted)

    def _loan(self, granted: int) -> int:
        return max(0, granted - self._floor)


class Windows:
    """The windows of one link. Owned by its ``Calls``."""

    def __init__(self) -> None:
        self._items = _Loans(floor=FLOOR_ITEMS, largest=LARGEST_ITEMS, free=MAX_LINK_ITEMS // 2)
        self._bytes = _Loans(floor=FLOOR_BYTES, largest=LARGEST_BYTES, free=MAX_LINK_BYTES // 4)
        self._overdrafts = 0

    def open(self) -> CreditWindow:
        return CreditWindow(self._items.grant(0, 0), self._bytes.grant(0, 0))

    def renew(self, window: CreditWindow) -> tuple[int, int]:
        """Return the items and bytes that the callee may send in addition."""
        items = self._items.grant(window.granted_items, window.taken_items)
        size = self._bytes.grant(window.granted_bytes, window.taken_bytes)
        window.granted_items += items - window.taken_items
        window.granted_bytes += size - window.taken_bytes
        window.taken_items = window.taken_bytes = 0
        return items, size

    def overdraw(self, window: CreditWindow) -> bool:
        """Note how far the unread bytes exceed the window. Returns False if the link has no memory for that."""
        overdraft = max(0, window.unread_bytes - window.granted_bytes)
        self._overdrafts += overdraft - window.overdraft
        window.overdraft = overdraft
        return overdraft == 0 or self._overdrafts <= MAX_OVERDRAFT_BYTES

    def close(self, window: CreditWindow) -> None:
        """End the window: nothing of the call will be read any more. Safe to call twice."""
        if window.closed:
            return
        window.closed = True
        self._items.release(window.granted_items)
        self._bytes.release(window.granted_bytes)
        self._overdrafts -= window.overdraft
        window.overdraft = 0
