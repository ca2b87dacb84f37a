"""Limit how many operations run at once, in total and per user."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from shared import errors


@dataclass(slots=True)
class ConcurrencyLimit:
    """The running operations of this process."""

    most: int
    most_of_one: int
    #: The error message and hint above the limit.
    refusal: str
    hint: str
    retry_after_seconds: float
    _of: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def one_more(self, who: str) -> Iterator[None]:
        """Count one operation until the block ends. Raises Overloaded above a limit."""
        if sum(self._of.values()) >= self.most or self._of.get(who, 0) >= self.most_of_one:
            raise errors.Overloaded(self.refusal, hint=self.hint, retry_after_seconds=self.retry_after_seconds)
        self._of[who] = self._of.get(who, 0) + 1
        try:
            yield
        finally:
            self._of[who] -= 1
            if not self._of[who]:
                del self._of[who]
