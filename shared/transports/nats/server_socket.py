"""The socket to a NATS server under nats-py."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from nats.aio.transport import TcpTransport

from shared import errors
from shared.transports.nats.servers import ServerAddress

#: A server that has taken nothing for so long is considered lost.
MAX_STALLED_SECONDS = 10.0
#: What is written beyond this waits in nats-py. It is the default high-water mark of asyncio.
SOCKET_BYTES = 64 * 1024
_CLOSE_SECONDS = 1.0


class ServerSocket(TcpTransport):
    """nats-py's transport, which also knows when the last byte came, waits for no lost server, and sends no login unencrypted to a
    tls:// server."""

    def __init__(self, server: ServerAddress, room_made: Callable[[], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.server = server
        self._room_made = room_made
        #: How long the login waits once the socket is open.
        self.settle_seconds = 0.0
        self.heard_at = asyncio.get_running_loop().time()

    def __bool__(self) -> bool:
        return True  # or nats-py would make its own

    async def connect(self, uri: Any, buffer_size: int, connect_timeout: int) -> None:
        await super().connect(uri, buffer_size, connect_timeout)
        await asyncio.sleep(self.settle_seconds)

    @property
    def is_encrypted(self) -> bool:
        return self._io_writer is not None and self._io_writer.get_extra_info("ssl_object") is not None

    def write(self, payload: bytes) -> None:
        if self.server.tls and not self.is_encrypted:
            raise errors.Unavailable(f"the NATS server at {self.server} offers no TLS", hint="use nats:// in NATS_URL, or enable TLS there")
        self.writelines([payload])

    def writelines(self, payload: list[bytes]) -> None:
        if self._io_writer is not None and not self._io_writer.is_closing():  # uvloop's transports raise
            self._io_writer.write(b"".join(payload))

    async def drain(self) -> None:
        if self._io_writer is not None and self._io_writer.transport.get_write_buffer_size() > SOCKET_BYTES:
            try:
                async with asyncio.timeout(MAX_STALLED_SECONDS):
                    await super().drain()  # type: ignore[no-untyped-call]
            except (OSError, TimeoutError):
                self.cut()
        self._room_made()

    async def read(self, buffer_size: int) -> bytes:
        data: bytes = await super().read(buffer_size)
        self.heard_at = asyncio.get_running_loop().time()
        return data

    async def wait_closed(self) -> None:
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await super().wait_closed()  # type: ignore[no-untyped-call]
        self.cut()

    def cut(self) -> None:
        """Drop the connection. nats-py's tasks end by themselves then."""
        if self._io_writer is not None:
            self._io_writer.transport.abort()
