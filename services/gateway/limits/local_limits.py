"""The limits, counted in this process while Valkey is away. Pure; the caller brings the time.

Number for number what ``admit_request.lua`` and ``settle_request.lua`` do; change both.
"""

import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from services.gateway.limits.limit_rules import HELD, ConcurrencySlot, Count, LimitKind, LimitVerdict, RequestLimit
from shared.types import RequestId

_MINUTE_SECONDS = 60
#: A window is the running minute and the 60 before it.
_WINDOW_MINUTES = 60
#: And a hundredth of one unit at most: what is lost where numbers are rounded must not refuse the last one.
_LOST_SECONDS = 0.001
#: When a place among those that run at once gets free is not known.
_TRY_AGAIN_SECONDS = 1
#: A place among those that run at once is held for so long without word of the request's gateway, as ``admit_request.lua`` has it.
PLACE_SECONDS = 30.0
#: Counters and open requests that are remembered: a counter takes 0.3 KB, one of a busy hour 4 KB. Those that were not used for
#: longest go first, and begin anew.
_MOST_REMEMBERED = 10_000


@dataclass(slots=True)
class _LocalCounter:
    """One limit's state; of each kind one field is used."""

    #: minute -> requests.
    minutes: dict[int, int] = field(default_factory=dict)
    #: When all that was taken has come back.
    back_at: float = -math.inf
    #: request -> the end of its lease.
    leases: dict[RequestId, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Hold:
    """What one request took of the tokens."""

    tokens: int
    #: counter -> the seconds that one token takes, and the counter's ``back_at`` when the request was let in.
    taken: dict[str, tuple[float, float]]


class LocalLimits:
    """One for a gateway. Times are seconds of any clock, always the same one."""

    def __init__(self, *, most: int = _MOST_REMEMBERED) -> None:
        self._most = most
        self._counters: OrderedDict[str, _LocalCounter] = OrderedDict()
        self._holds: OrderedDict[RequestId, _Hold] = OrderedDict()

    def __len__(self) -> int:
        return len(self._counters)

    def look(self, limits: Sequence[RequestLimit], *, tokens: int, now: float) -> LimitVerdict:
        """Whether such a request would be let in; counts nothing."""
        counts = tuple(_look(self._counters.get(limit.counter, _LocalCounter()), limit, tokens, now) for limit in limits)
        return LimitVerdict(not any(count.retry_after_seconds > 0 for count in counts), counts)

    def admit(
        self, limits: Sequence[RequestLimit], request_id: RequestId, *, tokens: int, lease_seconds: float, now: float
    ) -> LimitVerdict:
        """Count it against all of them or, where one has no room, against none."""
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
        """Give back what the request did not use; False where it had nothing to give back, as the second time. The numbers of the
        limits do not matter: what was taken counts."""
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
                # What has come back by time is not given back a second time.
                unused = min((hold.tokens - tokens) * each, max(back_at - now, 0))
                ahead = max(counter.back_at - now, 0) - unused
                counter.back_at = now + ahead if ahead > 0 else -math.inf
        return gave

    def extend(self, places: Iterable[ConcurrencySlot], *, now: float) -> None:
        """The requests of these places still run."""
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
    # A clock that stepped back, or far more tokens than were reserved: it costs a minute and not more.
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
    """In whole milliseconds and never too short: whoever has to wait at all waits one."""
    return max(1, math.ceil(seconds * 1000)) / 1000 if seconds > 0 else 0


def _milliseconds(seconds: float) -> float:
    """Rounded up to whole milliseconds, as the script answers; but a microsecond of it is what was lost in the numbers."""
    return max(0, math.ceil(seconds * 1000 - 0.001)) / 1000
