"""Who may connect to an HTTP port: so many connections at once, so many of them from one address. Pure."""

import ipaddress
from collections.abc import Iterable
from enum import Enum
from typing import Generic, TypeVar

from shared.timing.concurrency_limit import ConcurrencyLimit

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

#: What a provider gives to one customer, at least.
_IPV6_PREFIX = 64

G = TypeVar("G")


class ConnectionRefusal(Enum):
    FULL = "the port has as many connections as it holds"
    CROWD = "the address has as many connections as one may have"


class HttpConnectionLimits(Generic[G]):
    """The connections of a port. Addresses of this machine and of ``trusted`` networks are not counted one by one: there may be
    many users behind them."""

    def __init__(self, most: int, per_address: int, trusted: Iterable[Network]) -> None:
        #: 0: without a limit of its own.
        self._per_address = per_address
        self._limit = ConcurrencyLimit(most, per_address)
        self._trusted = tuple(trusted)
        #: Where each one comes from; None for those that are not counted.
        self._taken: dict[G, Network | None] = {}
        #: Those that have not asked anything yet, or not to the end: the longest waiting first.
        self._owing: dict[G, None] = {}

    def enter(self, guest: G, address: str | None) -> ConnectionRefusal | None:
        """Takes a place, or says why there is none."""
        origin = self._origin(address)
        if not self._limit.has_share(origin):
            return ConnectionRefusal.CROWD
        if self._limit.is_full:
            return ConnectionRefusal.FULL
        self._taken[guest] = origin
        self._limit.enter(origin)
        return None

    def leave(self, guest: G) -> None:
        """Safe to call twice, and for one that had no place."""
        self._owing.pop(guest, None)
        if guest in self._taken:
            self._limit.leave(self._taken.pop(guest))

    def owes(self, guest: G) -> None:
        """It has to send the head of a request; until it has, its place may go to another."""
        if guest in self._taken:
            self._owing.setdefault(guest)

    def has_asked(self, guest: G) -> None:
        self._owing.pop(guest, None)

    def longest_owing(self) -> G | None:
        return next(iter(self._owing), None)

    def _origin(self, address: str | None) -> Network | None:
        if address is None or not self._per_address:
            return None
        found: Address = ipaddress.ip_address(address.partition("%")[0])
        if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
            found = found.ipv4_mapped
        if found.is_loopback or any(found in network for network in self._trusted):
            return None
        return ipaddress.ip_network((found, _IPV6_PREFIX if found.version == 6 else 32), strict=False)


def network(text: str) -> Network:
    """An address is a network of one; raises ValueError."""
    return ipaddress.ip_network(text, strict=False)
