"""Counts the limits in this process while Valkey is down. Pure.

Gives the same numbers as ``admit_request.lua`` and ``settle_request.lua``; change them together.
"""

import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from services.gateway.limits.limit_rules import HELD, ConcurrencySlot, Count, LimitKind, LimitVerdict, RequestLimit
from shared.types import RequestId

_MINUTE_SECONDS = 60
#: A window has the current minute and the 60 before it.
_WINDOW_MINUTES = 60
#: Rounding tolerance, at most a hundredth of one unit: rounding must not refuse the last unit.
_LOST_SECONDS = 0.001
#: Retry time for a concurrency limit, because nobody knows when a slot becomes free.
_TRY_AGAIN_SECONDS = 1
#: Lease of a concurrency slot without an extension, as in ``admit_request.lua``.
PLACE_SECONDS = 30.0
#: Counters and open requests kept: a counter takes 0.3 KB, or 4 KB after a busy hour. The least recently used are dropped.
_MOST_REMEMBERED = 10_000


@dataclass(slots=True)
class _LocalCounter:
    """One limit's state; each kind uses one field."""

    #: Requests by minute.
    minutes: dict[int, int] = field(default_factory=dict)
    #: When all used tokens or requests are available again (GCRA).
    back_at: float = -math.inf
    #: End of each request's lease.
    leases: dict[RequestId, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Hold:
    """The tokens that one request has reserved."""

    tokens: int
    #: For each counter: the seconds per token, and its ``back_at`` when the request was admitted.
    taken: dict[str, tuple[float, float]]


class LocalLimits:
    """Counts limits in memory. Times are seconds of any one clock."""

    def __init__(self, *, most: int = _MOST_REMEMBERED) -> None:
        self._most = most
        self._counters: OrderedDict[str, _LocalCounter] = OrderedDict()
        self._holds: OrderedDict[RequestId, _Hold] = OrderedDict()

    def __len__(self) -> int:
        return len(self._counters)

    def look(self, limits: Sequence[RequestLimit], *, tokens: int, now: float) -> LimitVerdict:
        """Return whether such a request would be admitted, without counting it."""
        counts = tuple(_look(self._counters.get(limit.counter, _LocalCounter()), limit, tokens, now) for limit in limits)
        return LimitVerdict(not any(count.retry_after_seconds > 0 for count in counts), counts)

    def admit(
        self, limits: Sequence[RequestLimit], request_id: RequestId, *, tokens: int, lease_seconds: float, now: float
    ) -> LimitVerdict:
        """Count the request against all limits, or against none if one has no room."""
        verdict = self.look(limits, tokens=tokens, now=now)
        if not verdict.admitted:
            return verdict
        counters = [self._counter(limit.counter) for limit in limits]
        for counter, limit in zip(counters, limits, strict=True):
            _take(counter, limit, request_id, tokens, lease_seconds=lease_seconds, now=now)
        of_tokens = {
            limit.counter: (_MINUTE_SECONDS / limit.most, max(counter.back_at, now))
            for counter, limit in zip(counters, limits, strict=True)
            if limit.kind is LimitKind.TOKENS_PER_MINUTE
        }
        if of_tokens:
            self._holds[request_id] = _Hold(tokens, of_tokens)
            if len(self._holds) > self._most:
                self._holds.popitem(last=False)
        counts = tuple(_look(counter, limit, 0, now) for counter, limit in zip(counters, limits, strict=True))
        return LimitVerdict(admitted=True, counts=tuple(Count(count.left, 0, count.resets_in_seconds) for count in counts))

    def settle(self, held: Sequence[RequestLimit], request_id: RequestId, *, tokens: int, now: float) -> bool:
        """Return what the request did not use; False if it holds nothing, as on a second call. Uses what was reserved, whatever the
        limits are now."""
        hold = self._holds.pop(request_id, None)
        gave = hold is not None
        for limit in held:
            assert limit.kind in HELD
            counter = self._counters.get(limit.counter)
            if counter is None:
                continue
            if limit.kind is LimitKind.CONCURRENCY:
                gave |= counter.leases.pop(request_id, None) is not None
            elif hold is not None and limit.counter in hold.taken:
                each, back_at = hold.taken[limit.counter]
                # What the passing time has restored is not returned again.
                unused = min((hold.tokens - tokens) * each, max(back_at - now, 0))
                ahead = max(counter.back_at - now, 0) - unused
                counter.back_at = now + ahead if ahead > 0 else -math.inf
        return gave

    def extend(self, places: Iterable[ConcurrencySlot], *, now: float) -> None:
        """Extend the leases of running requests."""
        for place in places:
            self._counter(place.counter).leases[place.request_id] = now + PLACE_SECONDS

    def _counter(self, name: str) -> _LocalCounter:
        counter = self._counters.setdefault(name, _LocalCounter())
        self._counters.move_to_end(name)
        if len(self._counters) > self._most:
            self._counters.popitem(last=False)
        return counter


def _look(counter: _LocalCounter, limit: RequestLimit, tokens: int, now: float) -> Count:
    match limit.kind:
        case LimitKind.REQUESTS_PER_HOUR:
            return _look_at_hour(counter, limit.most, now)
        case LimitKind.REQUESTS_PER_MINUTE:
            return _look_at_minute(counter, limit.most, 1, now)
        case LimitKind.TOKENS_PER_MINUTE:
            return _look_at_minute(counter, limit.most, tokens, now)
        case LimitKind.CONCURRENCY:
            return _look_at_leases(counter, limit.most, now)


def _look_at_hour(counter: _LocalCounter, most: int, now: float) -> Count:
    running = math.floor(now / 60)
    minutes = sorted(minute for minute in counter.minutes if minute >= running - _WINDOW_MINUTES)
    used = sum(counter.minutes[minute] for minute in minutes)
    retry: float = 0
    if used + 1 > most:
        left, retry = used, _leaves_in(running, now)
        for minute in minutes:
            left -= counter.minutes[minute]
            if left + 1 <= most:
                retry = _leaves_in(minute, now)
                break
    return Count(most - used, _wait(retry), _milliseconds(_leaves_in(minutes[0], now) if minutes else 0))


def _look_at_minute(counter: _LocalCounter, most: int, cost: int, now: float) -> Count:
    each = _MINUTE_SECONDS / most
    lost = min(_LOST_SECONDS, each / 100)
    # After a clock step, or with far more tokens than reserved, wait at most a minute.
    counter.back_at = min(counter.back_at, now + _MINUTE_SECONDS)
    ahead = max(counter.back_at - now, 0)
    retry = ahead + cost * each - _MINUTE_SECONDS if ahead + cost * each > _MINUTE_SECONDS + lost else 0
    return Count(math.floor((_MINUTE_SECONDS - ahead + lost) / each), _wait(retry), _milliseconds(ahead))


def _look_at_leases(counter: _LocalCounter, most: int, now: float) -> Count:
    ends = [end for end in counter.leases.values() if end > now]
    retry = _TRY_AGAIN_SECONDS if len(ends) + 1 > most else 0
    return Count(most - len(ends), retry, _milliseconds(max(ends, default=now) - now))


def _take(counter: _LocalCounter, limit: RequestLimit, request_id: RequestId, tokens: int, *, lease_seconds: float, now: float) -> None:
    match limit.kind:
        case LimitKind.REQUESTS_PER_HOUR:
            running = math.floor(now / 60)
            for minute in [minute for minute in counter.minutes if minute < running - _WINDOW_MINUTES]:
                del counter.minutes[minute]
            counter.minutes[running] = counter.minutes.get(running, 0) + 1
        case LimitKind.REQUESTS_PER_MINUTE | LimitKind.TOKENS_PER_MINUTE:
            cost = 1 if limit.kind is LimitKind.REQUESTS_PER_MINUTE else tokens
            ahead = max(counter.back_at - now, 0)
            if (ahead := ahead + cost * (_MINUTE_SECONDS / limit.most)) > 0:
                counter.back_at = min(now + ahead, now + _MINUTE_SECONDS)
        case LimitKind.CONCURRENCY:
            for ended in [request for request, end in counter.leases.items() if end <= now]:
                del counter.leases[ended]
            counter.leases[request_id] = now + min(lease_seconds, PLACE_SECONDS)


def _leaves_in(minute: int, now: float) -> float:
    return (minute + _WINDOW_MINUTES + 1) * 60 - now


def _wait(seconds: float) -> float:
    """Round up to whole milliseconds, at least one if there is a wait."""
    return max(1, math.ceil(seconds * 1000)) / 1000 if seconds > 0 else 0


def _milliseconds(seconds: float) -> float:
    """Round up to whole milliseconds like the script, after subtracting a microsecond of rounding error."""
    return max(0, math.ceil(seconds * 1000 - 0.001)) / 1000
