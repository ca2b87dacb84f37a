"""Detects links that are replaced too often, which may mean that two processes use one key, possibly a stolen one. Pure.

Hyperswarm keeps one connection per key, so two processes with the same key disconnect each other again and again.
"""

from collections import OrderedDict, deque

from shared.types import NodeId

#: More links within this time than restarts or outages explain. Each node is reported at most once per QUIET_SECONDS.
MOST_LINKS = 6
WINDOW_SECONDS = 60.0
QUIET_SECONDS = 600.0
MAX_NODES = 4096


class DuplicateLinks:
    def __init__(self) -> None:
        self._opened: OrderedDict[NodeId, deque[float]] = OrderedDict()
        self._reported_at: dict[NodeId, float] = {}

    def opened(self, node: NodeId, now: float) -> bool:
        """Note that a link to this node has opened. Returns whether to report the node."""
        times = self._opened.setdefault(node, deque(maxlen=MOST_LINKS))
        self._opened.move_to_end(node)
        if len(self._opened) > MAX_NODES:
            forgotten, _ = self._opened.popitem(last=False)
            self._reported_at.pop(forgotten, None)
        times.append(now)
        is_contested = len(times) == MOST_LINKS and now - times[0] <= WINDOW_SECONDS
        if not is_contested or now - self._reported_at.get(node, -QUIET_SECONDS) < QUIET_SECONDS:
            return False
        self._reported_at[node] = now
        return True
