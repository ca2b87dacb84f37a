"""What is written to a socket in one turn of the event loop goes to it at once: each write by itself would be a system call."""

import asyncio
from collections.abc import Callable

#: So much is not held back.
MOST_BYTES = 64 * 1024


class JoinedWrites:
    """Belongs to one transport, whose ``write`` it is given."""

    __slots__ = ("_held", "_held_bytes", "_loop", "_write")

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._loop = asyncio.get_running_loop()
        self._write = write
        self._held: list[bytes] = []
        self._held_bytes = 0

    def write(self, data: bytes) -> None:
        if not self._held:
            self._loop.call_soon(self.flush)
        self._held.append(data)
        self._held_bytes += len(data)
        if self._held_bytes >= MOST_BYTES:
            self.flush()

    def flush(self) -> None:
        """Before the transport is closed: what is held would be lost."""
        if self._held:
            held, self._held, self._held_bytes = self._held, [], 0
            self._write(held[0] if len(held) == 1 else b"".join(held))
