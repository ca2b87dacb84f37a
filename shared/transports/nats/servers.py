"""The NATS servers that a client may connect to: those of NATS_URL, and other members of their cluster. Pure."""

import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from shared import addresses, errors

_PORT = 4222
_MAX_LEARNED = 64


@dataclass(frozen=True, slots=True)
class ServerAddress:
    host: str
    port: int
    #: TLS from the start. If False, only if the server requires it.
    tls: bool
    certified_name: str
    user: str = ""
    password: str = ""
    token: str = ""
    #: Of a WebSocket; empty for NATS's own protocol.
    path: str = ""
    #: ``pin_of`` the certificate's key: then no CA is asked. Empty: the CAs decide.
    pin: str = ""

    def __str__(self) -> str:
        schemes = ("ws", "wss") if self.is_web else ("nats", "tls")
        return f"{schemes[self.tls]}://{addresses.host_port(self.host, self.port)}{self.path}"

    @property
    def is_web(self) -> bool:
        return self.path != ""

    @property
    def has_credentials(self) -> bool:
        return bool(self.user or self.token)


def read_urls(urls: str) -> tuple[ServerAddress, ...]:
    """Parse NATS_URL. Raises BadSettings, which does not quote it, because it may contain a password."""
    try:
        addresses.plain_hosts(urls)
        return tuple(_read(urlsplit(url.strip())) for url in urls.split(","))
    except ValueError as error:
        raise errors.BadSettings(f"NATS_URL: {error}", hint="separate several with commas") from None


def _read(parts: SplitResult) -> ServerAddress:
    host, is_web = parts.hostname or "", parts.scheme in addresses.WEB_PORTS
    port = parts.port or addresses.WEB_PORTS.get(parts.scheme, _PORT)
    pins = parse_qs(parts.query).get("pin", [""])
    address = ServerAddress(host, port, parts.scheme in {"tls", "wss"}, host, path=(parts.path or "/") if is_web else "", pin=pins[0])
    if parts.password is not None:
        if not parts.username:
            raise ValueError("a password needs a user in front of it, as in tls://user:password@nats.example.org")
        return replace(address, user=unquote(parts.username or ""), password=unquote(parts.password))
    # As in all NATS clients, a name without a password is a token.
    return replace(address, token=unquote(parts.username or ""))


class ServerList:
    """The servers of NATS_URL and the other members of their cluster, as named by the last INFO."""

    def __init__(self, configured: tuple[ServerAddress, ...]) -> None:
        self.configured = configured
        self._learned: tuple[ServerAddress, ...] = ()

    def learn(self, connect_urls: Iterable[str], *, by: ServerAddress, tls: bool) -> None:
        """Learn the servers that ``by`` named. ``tls`` is whether that connection is encrypted. They get the same credentials and at least
        as much encryption. Unusable ones are ignored, and those behind a WebSocket's proxy."""
        if by.is_web:
            return
        found = [_beside(by, url, tls) for _, url in zip(range(_MAX_LEARNED), connect_urls, strict=False)]
        self._learned = tuple(address for address in found if address is not None)

    def in_order(self, last: ServerAddress | None = None) -> list[ServerAddress]:
        """Return every server once, at random: first those of the last one's kind, else those without a WebSocket, which are faster."""
        places = {(server.host, server.port): server for server in (*self._learned, *self.configured)}
        first = last is not None and last.is_web
        return sorted(random.sample(list(places.values()), len(places)), key=lambda server: server.is_web != first)


def _beside(by: ServerAddress, url: str, tls: bool) -> ServerAddress | None:
    try:
        parts = urlsplit(f"nats://{url}")
        host, port = parts.hostname, parts.port or _PORT
    except ValueError:
        return None
    if not host or (not tls and host not in addresses.LOOPBACK and by.host in addresses.LOOPBACK):
        return None  # with a loopback NATS_URL nothing may leave this machine unencrypted
    # Clusters name their members by IP address, which certificates rarely include.
    return replace(by, host=host, port=port, tls=tls, certified_name=host if addresses.parse(host) is None else by.certified_name)
