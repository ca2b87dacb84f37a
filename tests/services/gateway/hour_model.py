"""What hourly_limit.lua must do, written again in Python; also stands in for Valkey where no test is about it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

WINDOW_MINUTES = 60


@dataclass
class Hours:
    """bucket -> the minutes of the requests counted there."""

    counted: dict[str, list[int]] = field(default_factory=dict)

    def spend(self, buckets: Sequence[str], limits: Sequence[int], requests: int, now: float) -> tuple[bool, list[tuple[int, int, int]]]:
        """Counted or not, and for each bucket: used, ms until it fits, ms until the oldest minute leaves."""
        minute = math.floor(now / 60)
        windows = [sorted(at for at in self.counted.get(bucket, []) if at >= minute - WINDOW_MINUTES) for bucket in buckets]
        fits = all(len(window) + requests <= limit for window, limit in zip(windows, limits, strict=True))
        retries = [self._retry_ms(window, limit, requests, now) for window, limit in zip(windows, limits, strict=True)]
        if fits and requests:
            windows = [sorted([*window, *[minute] * requests]) for window in windows]
            self.counted |= dict(zip(buckets, windows, strict=True))
        leaves = [_leaves_ms(window[0], now) if window else 0 for window in windows]
        return fits, [(len(window), retry, leave) for window, retry, leave in zip(windows, retries, leaves, strict=True)]

    @staticmethod
    def _retry_ms(minutes: list[int], limit: int, requests: int, now: float) -> int:
        excess = len(minutes) + requests - limit
        if excess <= 0:
            return 0
        if excess > len(minutes):
            return _leaves_ms(math.floor(now / 60), now)
        return _leaves_ms(minutes[excess - 1], now)


def _leaves_ms(minute: int, now: float) -> int:
    return max(1, math.ceil(((minute + WINDOW_MINUTES + 1) * 60 - now) * 1000))


class FakeCounters:
    """The script runner of shared.cache, with the model instead of Valkey."""

    def __init__(self) -> None:
        self.hours = Hours()
        self.now = 1_000_000.0

    def script(self, name: str, lua: str) -> None:
        assert lua

    async def run(self, script: str, keys: Sequence[str], args: Sequence[str | int | float | bytes]) -> list[int]:
        counted, rows = self.hours.spend(keys, [int(limit) for limit in args[2:]], int(args[0]), self.now)
        return [int(counted), *(number for row in rows for number in row)]
