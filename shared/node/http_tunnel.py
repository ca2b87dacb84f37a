"""Passes a client's WebSocket on to another server as it is: after the offer, bytes go both ways, and no frame is read."""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from shared import addresses

#: Until the server behind accepts the connection.
OPEN_SECONDS = 5.0
#: The server behind ends a connection that has not logged in within 2 s. Until then it may be closed to make room.
LOGIN_SECONDS = 3.0
#: Each side of NATS sends a PING every few seconds.
IDLE_SECONDS = 60.0
#: Of one address in a second. NATS sees only our own address, so auth can't count the logins of each.
MAX_OFFERS = 20
_HEADERS = (b"host", b"upgrade", b"connection", b"sec-websocket-key", b"sec-websocket-version")


@dataclass(frozen=True, slots=True)
class TunnelTarget:
    """Offers of a WebSocket for ``path`` go to the server at ``host`` and ``port``."""

    path: str
    host: str
    port: int


def find_offer(target: TunnelTarget, method: str, url: bytes, headers: list[tuple[bytes, bytes]], address: str) -> bytes | None:
    """Return the head to send to the server if this request offers a WebSocket for it; else None. Pure. ``address`` is the client's: the
    server's log believes the header, so there is no other."""
    found = dict(headers)
    if method != "GET" or url != target.path.encode() or found.get(b"upgrade", b"").lower() != b"websocket":
        return None
    lines = [b"%b: %b" % (name, found[name]) for name in _HEADERS if name in found]
    return b"\r\n".join((b"GET / HTTP/1.1", *lines, b"x-forwarded-for: " + address.encode(), b"", b""))


class OfferRates:
    """Counts the offers of each address in a second. Pure."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._second = 0

    def count(self, address: str, now: float) -> bool:
        """Return whether there is room for one more."""
        if int(now) != self._second:
            self._second = int(now)
            self._counts.clear()
        network = addresses.client_network(address)
        self._counts[network] += 1
        return self._counts[network] <= MAX_OFFERS


class Tunnels:
    """What the tunnels of one HTTP server share."""

    def __init__(self, target: TunnelTarget | None) -> None:
        """``target`` is None if there are none."""
        self.target = target
        self.rates = OfferRates()
        #: Set while the server runs.
        self.opening: asyncio.TaskGroup | None = None


class Tunnel(asyncio.Protocol):
    """The client's side. It takes over a connection whose reading is paused, and ends with it."""

    def __init__(self, client: asyncio.Transport, refuse: Callable[[], None], ended: Callable[[], None]) -> None:
        """``refuse``: tell the client that the server is away, and close. ``ended`` is called once."""
        self._client = client
        self._refuse = refuse
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._server: asyncio.Transport | None = None
        self._heard_at = self._loop.time()
        self._idle = self._loop.call_later(IDLE_SECONDS, self._look)
        self._opening: asyncio.Task[None] | None = None

    def begin(self, tasks: asyncio.TaskGroup, target: TunnelTarget, head: bytes) -> None:
        self._opening = tasks.create_task(self._open(target, head))

    async def _open(self, target: TunnelTarget, head: bytes) -> None:
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                await self._loop.create_connection(lambda: _ServerSide(self), target.host, target.port)
        except (OSError, TimeoutError):
            self._refuse()
            return
        assert self._server is not None
        self._server.write(head)
        self._client.resume_reading()

    def connected(self, server: asyncio.Transport) -> None:
        self._server = server
        if self._client.is_closing():
            server.abort()

    def shutdown(self) -> None:
        """Called when our own server stops. The client finds another one."""
        self._client.close()

    def data_received(self, data: bytes) -> None:
        self._heard_at = self._loop.time()
        if self._server is not None and not self._server.is_closing():
            self._server.write(data)

    def pause_writing(self) -> None:
        if self._server is not None:
            self._server.pause_reading()

    def resume_writing(self) -> None:
        if self._server is not None and not self._server.is_closing():
            self._server.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._idle.cancel()
        if self._opening is not None:
            self._opening.cancel()
        if self._server is not None:
            self._server.abort()
        self._ended()

    def _look(self) -> None:
        left = self._heard_at + IDLE_SECONDS - self._loop.time()
        if left > 0:
            self._idle = self._loop.call_later(left, self._look)
        else:
            self._client.abort()

    # --- for the server's side ---

    def pass_to_client(self, data: bytes) -> None:
        if not self._client.is_closing():
            self._client.write(data)

    def pause_client(self) -> None:
        self._client.pause_reading()

    def resume_client(self) -> None:
        if not self._client.is_closing():
            self._client.resume_reading()

    def server_lost(self) -> None:
        self._client.close()


class _ServerSide(asyncio.Protocol):
    def __init__(self, tunnel: Tunnel) -> None:
        self._tunnel = tunnel
        self.data_received = tunnel.pass_to_client  # type: ignore[method-assign]
        self.pause_writing = tunnel.pause_client  # type: ignore[method-assign]
        self.resume_writing = tunnel.resume_client  # type: ignore[method-assign]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._tunnel.connected(cast("asyncio.Transport", transport))

    def connection_lost(self, exc: Exception | None) -> None:
        self._tunnel.server_lost()
