"""Limits the connections to an HTTP port, in total and per address. Pure."""

import ipaddress
from collections.abc import Iterable
from enum import Enum
from typing import Generic, TypeVar

from shared import addresses
from shared.timing.concurrency_limit import ConcurrencyLimit

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

G = TypeVar("G")


class ConnectionRefusal(Enum):
    FULL = "the port has reached its connection limit"
    TOO_MANY = "the address has reached its connection limit"


class HttpConnectionLimits(Generic[G]):
    """The connections of a port. There is no limit per address for this machine and ``trusted`` networks: they may have many users."""

    def __init__(self, most: int, per_address: int, trusted: Iterable[Network]) -> None:
        #: 0: no limit.
        self._per_address = per_address
        self._limit = ConcurrencyLimit(most, per_address)
        self._trusted = tuple(trusted)
        #: The client network that a connection counts for; None if it counts only in total.
        self._taken: dict[G, str | None] = {}
        #: Connections without a complete request yet, longest waiting first.
        self._waiting: dict[G, None] = {}

    def enter(self, connection: G, address: str | None) -> ConnectionRefusal | None:
        """Add a connection, or return why there is no room."""
        origin = self._origin(address)
        if not self._limit.has_share(origin):
            return ConnectionRefusal.TOO_MANY
        if self._limit.is_full:
            return ConnectionRefusal.FULL
        self._taken[connection] = origin
        self._limit.enter(origin)
        return None

    def leave(self, connection: G) -> None:
        """Safe to call twice, and for a connection that was refused."""
        self._waiting.pop(connection, None)
        if connection in self._taken:
            self._limit.leave(self._taken.pop(connection))

    def await_request(self, connection: G) -> None:
        """Note that this connection has not sent a complete request head. Until then it may be closed to make room."""
        if connection in self._taken:
            self._waiting.setdefault(connection)

    def request_received(self, connection: G) -> None:
        self._waiting.pop(connection, None)

    def longest_waiting(self) -> G | None:
        return next(iter(self._waiting), None)

    def _origin(self, address: str | None) -> str | None:
        if address is None or not self._per_address:
            return None
        found = addresses.parse(address.partition("%")[0])
        if found is None or found.is_loopback or any(found in network for network in self._trusted):
            return None
        return addresses.client_network(str(found))


def network(text: str) -> Network:
    """Parse a network; an address is a network of one. Raises ValueError."""
    return ipaddress.ip_network(text, strict=False)
