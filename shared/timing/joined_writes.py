"""Joins what is written to a socket within one turn of the event loop, to save system calls."""

import asyncio
from typing import Any, Protocol

MAX_BYTES = 64 * 1024


class Transport(Protocol):
    def write(self, data: bytes, /) -> None: ...

    def is_closing(self) -> bool: ...


class JoinedWrites:
    """Belongs to one transport. Writes after the transport is closed are lost."""

    __slots__ = ("_held", "_held_bytes", "_loop", "_transport")

    def __init__(self, transport: Transport) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport = transport
        self._held: list[bytes] = []
        self._held_bytes = 0

    def write(self, data: bytes) -> None:
        if not self._held:
            self._loop.call_soon(self.flush)
        self._held.append(data)
        self._held_bytes += len(data)
        if self._held_bytes >= MAX_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what is buffered. Call it before closing the transport, and after the last write of a turn."""
        if self._held:
            held, self._held, self._held_bytes = self._held, [], 0
            # uvloop's transports raise if closed in the meantime.
            if not self._transport.is_closing():
                self._transport.write(held[0] if len(held) == 1 else b"".join(held))


class JoinedTransport:
    """A transport that joins the head and body of an answer, and stream chunks that arrive together, into one write."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._writes = JoinedWrites(transport)
        self.write = self._writes.write

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def close(self) -> None:
        self._writes.flush()
        self._transport.close()

    def get_write_buffer_size(self) -> int:
        self._writes.flush()
        return self._transport.get_write_buffer_size()
