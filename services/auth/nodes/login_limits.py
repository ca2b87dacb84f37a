"""Limits what one node or one address may take of the NATS servers: logins in a second, and connections at once; and orders the logins that
wait. Pure."""

from collections import Counter, OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar

from shared.types import NodeId

#: Logins in a second of one known node, at each auth. A node that lost its server tries again after 0.1 to 2 s.
MAX_NODE_LOGINS = 10
#: Logins in a second of one address by keys that never got in. Each costs two signatures, a third of a millisecond.
MAX_UNKNOWN_LOGINS = 200
#: Of one node, over all servers. A node has one, and a second while it moves to another server.
MAX_CONNECTIONS = 8
#: Nodes that are remembered without a connection.
MAX_KNOWN = 10_000
#: Logins that wait, of each kind. Auth answers about a thousand in a second, and servers wait 2 s.
MAX_WAITING = 4_000

Login = TypeVar("Login")


class LoginRates:
    """Counts the logins of a second; ``clear`` begins the next one.

    A key that an address shows without its signature counts as unknown there for the rest of the second. So an address can neither lock out
    another node nor make auth check many signatures.
    """

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, NodeId | None]] = Counter()
        self._distrusted: set[tuple[str, NodeId]] = set()

    def count(self, address: str, node: NodeId, *, is_known: bool) -> str:
        """Count a login before its signature is checked. Return why it is refused; empty if it is not."""
        if is_known and (address, node) not in self._distrusted:
            self._counts[address, node] += 1
            return f"more than {MAX_NODE_LOGINS} logins in a second of this node" if self._counts[address, node] > MAX_NODE_LOGINS else ""
        self._counts[address, None] += 1
        is_refused = self._counts[address, None] > MAX_UNKNOWN_LOGINS
        return f"more than {MAX_UNKNOWN_LOGINS} logins in a second from this address by unknown keys" if is_refused else ""

    def distrust(self, address: str, node: NodeId) -> None:
        """Note a login that the node's key did not sign."""
        self._distrusted.add((address, node))

    def clear(self) -> None:
        self._counts.clear()
        self._distrusted.clear()


class LoginQueue(Generic[Login]):
    """The logins that wait for an answer, after a restart of the NATS server those of all nodes. The newest is answered first, because the
    older ones' nodes give up sooner; one whose server no longer waits is dropped."""

    def __init__(self, *, most_seconds: float) -> None:
        self._most_seconds = most_seconds
        #: With the time of its arrival: those that are first, and the others.
        self._waiting: tuple[deque[tuple[float, Login]], ...] = (deque(maxlen=MAX_WAITING), deque(maxlen=MAX_WAITING))

    def __len__(self) -> int:
        return sum(map(len, self._waiting))

    def add(self, login: Login, now: float, *, is_first: bool) -> None:
        self._waiting[not is_first].append((now, login))

    def take(self, now: float) -> Login | None:
        """Return the next one; None if all that are left are too old."""
        for waiting in self._waiting:
            if waiting:
                arrived_at, login = waiting.pop()
                if now - arrived_at < self._most_seconds:
                    return login
                waiting.clear()  # the others are older
        return None


@dataclass(frozen=True, slots=True)
class ConnectionId:
    server: str
    #: The server's number, which it never uses again.
    number: int


class NodeConnections:
    """The connections of nodes to all servers, as the servers report them. Each replica of auth has all of them, so each comes to the same
    decisions."""

    def __init__(self, known: Iterable[NodeId] = ()) -> None:
        #: When each began, and when a server last reported it. The node heard of last is at the end.
        self._nodes: OrderedDict[NodeId, dict[ConnectionId, tuple[datetime, float]]] = OrderedDict((node, {}) for node in known)

    def knows(self, node: NodeId) -> bool:
        """Return whether the node has logged in before."""
        return node in self._nodes

    def report(self, node: NodeId, connection: ConnectionId, began: datetime, now: float) -> ConnectionId | None:
        """Note an open connection. Return the node's oldest one if it has too many; it is forgotten, so end it."""
        found = self._nodes.setdefault(node, {})
        self._nodes.move_to_end(node)
        found[connection] = began, now
        if len(found) <= MAX_CONNECTIONS:
            return None
        oldest = min(found, key=lambda each: found[each][0])
        del found[oldest]
        return oldest

    def close(self, node: NodeId, connection: ConnectionId) -> None:
        self._nodes.get(node, {}).pop(connection, None)

    def forget(self, reported_before: float) -> None:
        """Forget connections that no server has reported since, and nodes that have had none for longest."""
        for found in self._nodes.values():
            for connection in [each for each, (_, reported) in found.items() if reported < reported_before]:
                del found[connection]
        idle = [node for node, found in self._nodes.items() if not found]
        for node in idle[: max(0, len(idle) - MAX_KNOWN)]:
            del self._nodes[node]
