"""Who records what cannot be recorded: NaN, counters that shrink, names that there are not, more series than there is room for. Pure.

It was refused, and harms nobody; but whoever sends it has a mistake or lies, so that the log says it once and the health for a while.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

#: After the last one.
REMEMBERED: Final = timedelta(minutes=10)
#: Who records has a certificate, so these are few.
_MAX_NODES: Final = 1000
#: Of what was wrong; it may quote what was sent.
_MAX_PROBLEM: Final = 200


@dataclass(frozen=True, slots=True)
class _RejectedRecord:
    samples: int
    problem: str
    at: datetime


class RejectedRecords:
    """By the label of the node that recorded."""

    def __init__(self) -> None:
        self._of: dict[str, _RejectedRecord] = {}

    def note(self, node: str, samples: int, problem: str, now: datetime) -> bool:
        """``samples`` of one call were refused, the first of them for ``problem``. True where that is news."""
        last = self._of.pop(node, None)
        is_news = last is None or now - last.at > REMEMBERED
        before = 0 if last is None or is_news else last.samples
        if len(self._of) >= _MAX_NODES:
            del self._of[next(iter(self._of))]
        self._of[node] = _RejectedRecord(before + samples, problem[:_MAX_PROBLEM], now)
        return is_news

    def complaints(self, now: datetime) -> Mapping[str, str]:
        """node -> what to say of it."""
        return {
            node: f"{_numbers(found.samples)} refused, the last because of {found.problem}"
            for node, found in self._of.items()
            if now - found.at <= REMEMBERED
        }


def _numbers(count: int) -> str:
    return "1 number that it recorded was" if count == 1 else f"{count:,} numbers that it recorded were"
