"""Bounds the memory of requests that are longer than a message, over all links and callers of a process."""

from contextvars import ContextVar
from types import TracebackType

from shared import errors

MAX_HELD_BYTES = 256 * 1024 * 1024
_RETRY_SECONDS = 2.0


class HeldRequest:
    """The bytes of one request. Enter it for as long as they are used; it may have several users."""

    def __init__(self, memory: "RequestMemory", size: int) -> None:
        self._memory = memory
        self._size = size
        self._users = 0

    def __enter__(self) -> "HeldRequest":
        self._users += 1
        if self._users == 1:
            self._memory.held_bytes += self._size
        current.set(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._users -= 1
        if not self._users:
            self._memory.held_bytes -= self._size

    def shrink(self, size: int) -> None:
        """Note that only ``size`` bytes are still used."""
        size = min(size, self._size)
        if self._users:
            self._memory.held_bytes -= self._size - size
        self._size = size


class RequestMemory:
    """Owned by one process."""

    def __init__(self, most_bytes: int = MAX_HELD_BYTES) -> None:
        self._most_bytes = most_bytes
        self.held_bytes = 0

    def hold(self, size: int) -> HeldRequest:
        """Return the memory of a request; enter it before the next await. Raises Overloaded if there is too little left."""
        if self.held_bytes + size > self._most_bytes:
            raise errors.Overloaded(
                f"{self.held_bytes >> 20} MiB of long requests are in progress; the limit is {self._most_bytes >> 20} MiB",
                hint="retry soon, or send smaller images",
                retry_after_seconds=_RETRY_SECONDS,
            )
        return HeldRequest(self, size)


#: The request that this task works for, if it is a long one.
current: ContextVar[HeldRequest | None] = ContextVar("held_request", default=None)
