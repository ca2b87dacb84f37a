"""What is written to a socket in one turn of the event loop goes to it at once: each write by itself would be a system call."""

import asyncio
from typing import Protocol

#: More than this leaves at once: the other side reads it while this one goes on.
MOST_BYTES = 64 * 1024


class Transport(Protocol):
    """A part of ``asyncio.Transport``."""

    def write(self, data: bytes, /) -> None: ...

    def is_closing(self) -> bool: ...


class JoinedWrites:
    """Belongs to one transport. What is written to one that is closed is lost, as ever."""

    __slots__ = ("_held", "_held_bytes", "_loop", "_most_bytes", "_transport")

    def __init__(self, transport: Transport, most_bytes: int = MOST_BYTES) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport = transport
        self._most_bytes = most_bytes
        self._held: list[bytes] = []
        self._held_bytes = 0

    def write(self, data: bytes) -> None:
        if not self._held:
            self._loop.call_soon(self.flush)
        self._held.append(data)
        self._held_bytes += len(data)
        if self._held_bytes >= self._most_bytes:
            self.flush()

    def flush(self) -> None:
        """Write what is held. Call it before the transport is closed, and when nothing more will come in this turn."""
        if self._held:
            held, self._held, self._held_bytes = self._held, [], 0
            # It may have been closed since: uvloop's transports raise then.
            if not self._transport.is_closing():
                self._transport.write(held[0] if len(held) == 1 else b"".join(held))
