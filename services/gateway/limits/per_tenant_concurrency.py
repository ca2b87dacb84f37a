"""Refuses requests of callers far above their concurrency limit, before reading the bodies. Pure.

The limits would refuse these requests, too, but only after reading each body and asking Valkey.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from services.gateway.limits.limit_rules import LimitKind, RequestLimit
from shared import errors

#: Requests allowed beyond the limit, because some are just ending. The limits decide about these.
SLACK = 16


class PerTenantConcurrency:
    """Counts the requests that this gateway is handling."""

    def __init__(self) -> None:
        self._here: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._here)

    @contextmanager
    def count_request(self, limits: Sequence[RequestLimit]) -> Iterator[None]:
        """Count a request for the duration of the block, against its caller's ``limits``. Raises Limited."""
        counted = [limit for limit in limits if limit.kind is LimitKind.CONCURRENCY]
        for limit in counted:
            if self._here[limit.counter] >= limit.most + SLACK:
                raise errors.Limited(
                    f"{self._here[limit.counter]} of your requests are already in progress; your limit is {limit.most} concurrent requests",
                    hint="send fewer requests at the same time",
                    retry_after_seconds=1,
                )
        for limit in counted:
            self._here[limit.counter] += 1
        try:
            yield
        finally:
            for limit in counted:
                self._here[limit.counter] -= 1
                if not self._here[limit.counter]:
                    del self._here[limit.counter]
