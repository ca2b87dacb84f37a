"""Bounds the memory of requests: of HTTP bodies, and of requests on links that are longer than a message."""

from collections import Counter
from contextvars import ContextVar
from types import TracebackType

from shared import errors
from shared.types import TenantId

#: Over all links and callers of a process.
MAX_HELD_BYTES = 256 * 1024 * 1024
#: Four tenants have to work together to keep all others out. One has room for three of the longest requests.
MAX_TENANT_BYTES = MAX_HELD_BYTES // 4
_RETRY_SECONDS = 2.0


class HeldRequest:
    """The bytes of one request. Enter it for as long as they are used; it may have several users."""

    def __init__(self, memory: "RequestMemory", size: int, tenant: TenantId | None) -> None:
        self._memory = memory
        self._tenant = tenant
        self._users = 0
        self.size = size

    def __enter__(self) -> "HeldRequest":
        self._users += 1
        if self._users == 1:
            self._memory.add(self.size, self._tenant)
        current.set(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._users -= 1
        if not self._users:
            self._memory.add(-self.size, self._tenant)

    def resize(self, size: int) -> None:
        """Hold ``size`` bytes instead. Raises as ``RequestMemory.hold`` if that is more."""
        more = size - self.size
        if self._users:
            self._memory.ensure_room(more, self._tenant)
            self._memory.add(more, self._tenant)
        self.size = size


class RequestMemory:
    """Owned by one process."""

    def __init__(self, most_bytes: int = MAX_HELD_BYTES, most_tenant_bytes: int = MAX_TENANT_BYTES) -> None:
        self._most_bytes, self._most_tenant_bytes = most_bytes, most_tenant_bytes
        self._by_tenant: Counter[TenantId] = Counter()
        self.held_bytes = 0

    def hold(self, size: int, tenant: TenantId | None = None) -> HeldRequest:
        """Return the memory of a request; enter it before the next await. Raises Limited if its tenant, if known, holds too much, and
        Overloaded if all do."""
        self.ensure_room(size, tenant)
        return HeldRequest(self, size, tenant)

    def ensure_room(self, more: int, tenant: TenantId | None) -> None:
        if more <= 0:
            return
        if tenant is not None and self._by_tenant[tenant] + more > self._most_tenant_bytes:
            raise errors.Limited(
                f"your requests in progress have {self._by_tenant[tenant] >> 20} MiB; the limit is {self._most_tenant_bytes >> 20} MiB",
                hint="send fewer large requests at the same time",
                retry_after_seconds=_RETRY_SECONDS,
            )
        if self.held_bytes + more > self._most_bytes:
            raise errors.Overloaded(
                f"{self.held_bytes >> 20} MiB of long requests are in progress; the limit is {self._most_bytes >> 20} MiB",
                hint="retry soon, or send less at once",
                retry_after_seconds=_RETRY_SECONDS,
            )

    def add(self, more: int, tenant: TenantId | None) -> None:
        self.held_bytes += more
        if tenant is not None:
            self._by_tenant[tenant] += more
            if not self._by_tenant[tenant]:
                del self._by_tenant[tenant]


#: The request that this task works for, if its memory is counted.
current: ContextVar[HeldRequest | None] = ContextVar("held_request", default=None)
