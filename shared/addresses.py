"""Classifies network addresses (loopback, plain-text, DHT nodes, what counts as one client), and writes them. Pure."""

import re
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import urlsplit

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
#: Where the address of a mesh's pages has the WebSocket of its NATS server.
MESH_PATH = "/mesh"
#: The ports of WebSockets, by their schemes.
WEB_PORTS = {"ws": 80, "wss": 443}
#: The metadata services outside of link-local networks: of AWS, Google, Alibaba, Oracle and Azure.
_METADATA = frozenset(map(ip_address, ("fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "192.0.0.192", "168.63.129.16")))
#: RFC 6052: its last four bytes are an IPv4 address.
_NAT64 = ip_network("64:ff9b::/96")
#: RFC 4291: all global unicast addresses. Python also calls others global, such as ::127.0.0.1 and 64:ff9b:1::/48.
_GLOBAL_UNICAST = ip_network("2000::/3")
#: RFC 1123 section 2.1. The last label needs a letter, so that a mistyped IP address is not a name.
_NAME = re.compile(r"(?=.{1,253}$)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*(?![0-9]+$)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.IGNORECASE)

_NO_SERVER = "not an address such as tls://nats.example.org:4222 or wss://ai.example.org/mesh"


def plain_hosts(nats_urls: str) -> list[str]:
    """Return the hosts in this comma-separated list that would be reached over a network without TLS.

    Raises ValueError for an invalid address. The message does not repeat it, because it may contain a password.
    """
    found = []
    for url in nats_urls.split(","):
        try:
            parts = urlsplit(url.strip())
            _ = parts.port
        except ValueError:
            raise ValueError(_NO_SERVER) from None
        is_web = parts.scheme in WEB_PORTS
        if not (is_web or parts.scheme in ("nats", "tls")) or not parts.hostname:
            raise ValueError(_NO_SERVER)
        if parts.fragment or (not is_web and (parts.path.strip("/") or parts.query)):
            # Most likely an unescaped password; the rest of it would be ignored.
            raise ValueError("nothing may follow host and port; write /, ?, #, @ and : in a password as %2F, %3F, %23, %40 and %3A")
        if parts.scheme in ("nats", "ws") and parts.hostname not in LOOPBACK:
            found.append(parts.hostname)
    return found


def mesh_url(address: str, pin: str | None) -> str:
    """Return the URL of the WebSocket of a mesh whose pages are at ``address``, https://…; ``pin`` is curl's, of its own certificate."""
    key = "" if pin is None else f"?pin={pin.rstrip('=').translate(str.maketrans('+/', '-_'))}"
    return f"wss{address.removeprefix('https').rstrip('/')}{MESH_PATH}{key}"


def has_credentials(nats_urls: str) -> bool:
    """Return whether a URL of this list, which ``plain_hosts`` accepts, has a password or a token."""
    return any(urlsplit(url.strip()).username is not None for url in nats_urls.split(","))


def is_host_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None


def mistake_of_node(text: str) -> str:
    """Return why ``text`` names no DHT node; empty if it does."""
    found = read_place(text)
    if found is None:
        return f"{text!r} is not host:port"
    # dht-rpc encodes an address in four bytes.
    return f"{text!r}: the DHT is IPv4 only; give an IPv4 address or a name" if ":" in found[0] else ""


def read_place(text: str) -> tuple[str, int] | None:
    """Return host and port of ``host:port``; None if it is something else."""
    host, _, port = text.rpartition(":")
    return (host.strip("[]"), int(port)) if host and port.isdecimal() and 0 < int(port) < 65536 else None


def host_of_node(text: str) -> str:
    """Return the host of a DHT node, which may have another address before an @; empty if it names none."""
    found = read_place(text.rpartition("@")[2])
    return "" if found is None else found[0]


def host_port(host: str, port: int | None) -> str:
    """Return host and port as URLs and the header ``Host`` have them: an IPv6 address in brackets."""
    shown = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return shown if port is None else f"{shown}:{port}"


def parse(address: str) -> IPv4Address | IPv6Address | None:
    """Return an IPv4-mapped IPv6 address as IPv4; None for text that is no address."""
    try:
        found = ip_address(address)
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found


def is_loopback(host: str) -> bool:
    """Return whether only this machine answers at this name or address."""
    found = parse(host)
    return host.lower() == "localhost" if found is None else found.is_loopback


def is_public(address: str) -> bool:
    """Return whether an address is reachable over the internet, rather than loopback, private or shared by a VPN. True for no address."""
    found = parse(address.partition("%")[0])
    return found is None or all(each.is_global and (each.version == 4 or each in _GLOBAL_UNICAST) for each in _reached(found))


def is_forbidden(address: str) -> bool:
    """Return whether no server of another program is at an address: it has no single machine, or one that tells the credentials of ours."""
    found = parse(address.partition("%")[0])
    return found is None or any(
        each.is_link_local or each.is_multicast or each.is_unspecified or each in _METADATA for each in _reached(found)
    )


def _reached(address: IPv4Address | IPv6Address) -> tuple[IPv4Address | IPv6Address, ...]:
    """Return all addresses that packets to this one may reach: a gateway may pass them on to an IPv4 address within it."""
    if isinstance(address, IPv4Address):
        return (address,)
    if address in _NAT64:
        return (IPv4Address(int(address) & 0xFFFF_FFFF),)
    return (address, *filter(None, (address.sixtofour, *(address.teredo or ()))))


def local_network(address: str) -> str | None:
    """Return the /24 or /64 of ``address``, whose machines are probably near each other. None for no address."""
    found = parse(address)
    return None if found is None else str(ip_network((found, 64 if isinstance(found, IPv6Address) else 24), strict=False))


def client_network(address: str) -> str:
    """Return what to count for ``address``: for IPv6 the /64 network, which is the least that one customer gets. Empty for no address."""
    found = parse(address)
    if found is None:
        return ""
    return str(ip_network((found, 64), strict=False) if isinstance(found, IPv6Address) else found)


def site_network(address: str) -> str:
    """Return the /48 of an IPv6 address, which has 65,536 networks of one customer; empty for others."""
    found = parse(address)
    return str(ip_network((found, 48), strict=False)) if isinstance(found, IPv6Address) else ""
