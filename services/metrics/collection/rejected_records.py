"""Remember which nodes record invalid metrics, for the log and the health. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

REMEMBERED: Final = timedelta(minutes=10)
#: Callers have certificates, so there are few.
_MAX_NODES: Final = 1000
#: Truncates errors, because they can quote what was sent.
_MAX_PROBLEM: Final = 200


@dataclass(frozen=True, slots=True)
class _RejectedRecord:
    samples: int
    problem: str
    at: datetime


class RejectedRecords:
    """Rejections by node label."""

    def __init__(self) -> None:
        self._of: dict[str, _RejectedRecord] = {}

    def note(self, node: str, samples: int, problem: str, now: datetime) -> bool:
        """Note rejected ``samples`` of one call and the first error. Returns whether to log it."""
        last = self._of.pop(node, None)
        is_news = last is None or now - last.at > REMEMBERED
        before = 0 if last is None or is_news else last.samples
        if len(self._of) >= _MAX_NODES:
            del self._of[next(iter(self._of))]
        self._of[node] = _RejectedRecord(before + samples, problem[:_MAX_PROBLEM], now)
        return is_news

    def complaints(self, now: datetime) -> Mapping[str, str]:
        """Return a complaint per node."""
        return {
            node: f"{_numbers(found.samples)} rejected, the last one because: {found.problem}"
            for node, found in self._of.items()
            if now - found.at <= REMEMBERED
        }


def _numbers(count: int) -> str:
    return "1 recorded sample was" if count == 1 else f"{count:,} recorded samples were"
