"""Decides which servers may receive webhooks, and at which addresses. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network

import httpx

from shared import addresses, errors

HTTPS = "https"
_PORTS = {HTTPS: 443, "http": 80}
#: Ports below belong to services such as mail and databases, which a request must not confuse.
_FIRST_FREE_PORT = 1024


@dataclass(frozen=True, slots=True)
class Receiver:
    """The parts of an endpoint's URL, as they go on the wire."""

    scheme: str
    #: A name or an address, without brackets.
    host: str
    port: int
    #: Path and query.
    target: str

    @property
    def authority(self) -> str:
        """Return what the header ``Host`` has."""
        return addresses.host_port(self.host, None if self.port == _PORTS[self.scheme] else self.port)


@dataclass(frozen=True, slots=True)
class ReceiverRules:
    """WEBHOOK_ALLOWED_HOSTS: private receivers, which plain HTTP may reach, too."""

    places: frozenset[tuple[str, int]] = frozenset()
    networks: tuple[IPv4Network | IPv6Network, ...] = ()

    @classmethod
    def parse(cls, entries: Iterable[str]) -> "ReceiverRules":
        """Raises ValueError for what is neither host:port nor a network such as 10.0.0.0/8."""
        places, networks = set[tuple[str, int]](), list[IPv4Network | IPv6Network]()
        for entry in entries:
            host, _, port = entry.rpartition(":")
            host = host.removeprefix("[").removesuffix("]")
            if "/" in entry:
                networks.append(ip_network(entry))
            elif port.isdecimal() and 0 < int(port) < 65536 and (addresses.is_host_name(host) or addresses.parse(host) is not None):
                places.add((_plain(host), int(port)))
            else:
                raise ValueError(f"{entry[:100]!r} is neither host:port nor a network such as 10.0.0.0/8")
        return cls(frozenset(places), tuple(networks))

    def find_mistake(self, receiver: Receiver, address: str) -> str:
        """Return why nothing may be sent to the receiver at this address of its host; empty if it may."""
        if addresses.is_forbidden(address):
            return f"{receiver.host} has the address {address}, which never gets webhooks"
        found = addresses.parse(address)
        if (_plain(receiver.host), receiver.port) in self.places or any(found in network for network in self.networks):
            return ""
        if not addresses.is_public(address):
            return f"{receiver.host} has the address {address}, which is not public"
        if receiver.scheme != HTTPS:
            return "the URL must begin with https://"
        if receiver.port != _PORTS[HTTPS] and receiver.port < _FIRST_FREE_PORT:
            return f"the port {receiver.port} is neither 443 nor above 1023"
        return ""


def wrong_url(what: str) -> errors.BadRequest:
    return errors.BadRequest(f"url {what}", field="url")


def read_url(url: str) -> Receiver:
    """Raises BadRequest for a URL without a host, and for one with a user, a password or a fragment."""
    try:
        parts = httpx.URL(url)
    except (httpx.InvalidURL, ValueError):
        raise wrong_url("is not a URL such as https://example.org/hook") from None
    if parts.scheme not in _PORTS or not parts.raw_host or not url.isprintable():
        raise wrong_url("is not a URL such as https://example.org/hook")
    # The resolver would take the port modulo 65536: 65558 is SSH.
    if parts.port is not None and not 0 < parts.port < 65536:
        raise wrong_url("must have a port between 1 and 65535")
    if parts.userinfo or parts.fragment:
        raise wrong_url("must not have a user, a password or a fragment")
    host = parts.raw_host.decode("ascii").removeprefix("[").removesuffix("]")
    return Receiver(parts.scheme, host, parts.port or _PORTS[parts.scheme], parts.raw_path.decode("ascii"))


def _plain(host: str) -> str:
    found = addresses.parse(host)
    return host.rstrip(".").lower() if found is None else str(found)
