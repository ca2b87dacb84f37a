"""Tells a crowd off at the door: who has more requests here than may run at once is refused before anything of them is read.

The limits refuse them too, one by one, and that costs a body that is read and a question to Valkey for each. Pure.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from services.gateway.limits.limit_rules import LimitKind, RequestLimit
from shared import errors

#: Here beside those that may run: some are just ending, and the limits have the last word.
SLACK = 16


class PerTenantConcurrency:
    """One for the gateway."""

    def __init__(self) -> None:
        self._here: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._here)

    @contextmanager
    def one_more(self, limits: Sequence[RequestLimit]) -> Iterator[None]:
        """For as long as the block. ``limits``: those of its caller. Raises Limited."""
        counted = [limit for limit in limits if limit.kind is LimitKind.CONCURRENCY]
        for limit in counted:
            if self._here[limit.counter] >= limit.most + SLACK:
                raise errors.Limited(
                    f"{self._here[limit.counter]} of your requests are here already, and {limit.most} may run at once",
                    hint="send fewer at once",
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
