"""How many do something at once, and how many of them are one person's: what there is room for, and no more."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from shared import errors


@dataclass(slots=True)
class Crowd:
    """Those of one process."""

    most: int
    most_of_one: int
    #: What somebody is told who finds no room, and what to do.
    refusal: str
    hint: str
    retry_after_seconds: float
    _of: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def one_more(self, who: str) -> Iterator[None]:
        """Raises Overloaded."""
        if sum(self._of.values()) >= self.most or self._of.get(who, 0) >= self.most_of_one:
            raise errors.Overloaded(self.refusal, hint=self.hint, retry_after_seconds=self.retry_after_seconds)
        self._of[who] = self._of.get(who, 0) + 1
        try:
            yield
        finally:
            self._of[who] -= 1
            if not self._of[who]:
                del self._of[who]
