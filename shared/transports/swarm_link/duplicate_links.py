"""Whether a node's link is made anew too often: two processes may show one key, of which one may be a thief's. Pure.

Hyperswarm keeps one connection for each key, so two with the same one push each other out again and again.
"""

from collections import OrderedDict, deque

from shared.types import NodeId

#: So many links within this time are no restart and no outage any more; and nobody is told of it twice within the second.
MOST_LINKS = 6
WINDOW_SECONDS = 60.0
QUIET_SECONDS = 600.0
#: Nodes that are watched at a time.
MAX_NODES = 4096


class DuplicateLinks:
    def __init__(self) -> None:
        self._opened: OrderedDict[NodeId, deque[float]] = OrderedDict()
        self._told_at: dict[NodeId, float] = {}

    def opened(self, node: NodeId, now: float) -> bool:
        """A link to this node has opened; True if somebody should be told."""
        times = self._opened.setdefault(node, deque(maxlen=MOST_LINKS))
        self._opened.move_to_end(node)
        if len(self._opened) > MAX_NODES:
            forgotten, _ = self._opened.popitem(last=False)
            self._told_at.pop(forgotten, None)
        times.append(now)
        is_contested = len(times) == MOST_LINKS and now - times[0] <= WINDOW_SECONDS
        if not is_contested or now - self._told_at.get(node, -QUIET_SECONDS) < QUIET_SECONDS:
            return False
        self._told_at[node] = now
        return True
