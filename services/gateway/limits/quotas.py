"""Counts requests against the limits in Valkey. While Valkey is down, the settings choose: count here, don't count, or refuse requests."""

import asyncio
import contextlib
import math
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import TypeVar
from uuid import uuid4

from services.gateway.facts.tiers import LimitRules, WithoutValkey
from services.gateway.facts.tightest_limit import TightestLimit
from services.gateway.limits import limit_rules
from services.gateway.limits.limit_rules import (
    ConcurrencySlot,
    Count,
    CountedRequest,
    LimitReached,
    LimitScope,
    LimitUsage,
    LimitVerdict,
    RequestLimit,
)
from services.gateway.limits.limit_scripts import ANSWER_SECONDS, LimitScripts, LocalCounters
from shared import errors
from shared.api.auth import Principal
from shared.api.gateway import NO_LIMIT, LimitState
from shared.limits import LimitKind
from shared.stores.cache import Cache, CacheRefuses
from shared.telemetry import Metrics, logs
from shared.timing.circuit_breaker import FAILURES, Breaker
from shared.types import ModelName, PlanName, RequestId

#: How long the tokens of an unsettled request stay recorded after its deadline.
_LEASE_SLACK_SECONDS = 10.0
#: Concurrent calls to Valkey. It handles one after another, so 1,000 at once would exceed the answer timeout; others wait here, where
#: waiting doesn't count as a failure of Valkey.
_AT_ONCE = 128
PROBE_SECONDS = 1.0
#: For ``Quotas.extend_slots``: two may get lost before the 30 s lease of a slot ends.
SLOT_HEARTBEAT_SECONDS = 9.0
#: Slots per call, about 0.5 ms of Valkey's time.
_SLOTS_AT_ONCE = 256
#: Requests that ended while Valkey was down and are settled later, about 300 KB. Beyond that, their slots and tokens expire.
_MAX_UNSETTLED = 1_000
#: About 200 bytes each. Without its entry, the next body of a caller is read before it is refused.
_MAX_USED_UP = 10_000
#: The probe writes, because a read-only Valkey is of no use.
_PROBE = RequestLimit(LimitScope.USER, LimitKind("probe", "slots", "request"), limit_rules.hold("probe"), NO_LIMIT)
_PROBE_LEASE_SECONDS = 1.0

T = TypeVar("T")

_log = logs.get(part="quotas")


class Quotas:
    """Counts requests. ``gateways`` returns how many are alive, this one included. Run ``watch`` while it is used."""

    def __init__(
        self,
        counters: Cache,
        read_rules: Callable[[], LimitRules],
        metrics: Metrics,
        gateways: Callable[[], int] = lambda: 1,
        clock: Callable[[], float] = time.monotonic,
        *,
        without_valkey: WithoutValkey = "degrade",
    ) -> None:
        self._valkey = LimitScripts(counters)
        self._read_rules = read_rules
        self._without_valkey = without_valkey
        self._degraded = metrics.rate_limit_degraded
        self._admitted = metrics.ratelimit_decisions.labels(decision="admitted")
        self._refused = metrics.ratelimit_decisions.labels(decision="refused")
        self._uncounted = metrics.ratelimit_decisions.labels(decision="uncounted")
        self._gateways = gateways
        self._clock = clock
        self._local = LimitScripts(LocalCounters(clock))
        self._breaker = Breaker()
        self._answered_at = -math.inf
        self._calls = asyncio.Semaphore(_AT_ONCE)
        self._unsettled: deque[tuple[LimitUsage, int]] = deque(maxlen=_MAX_UNSETTLED)
        #: Requests that hold a concurrency slot, and their deadlines.
        self._slots: dict[RequestId, tuple[LimitUsage, float]] = {}
        #: Limits that refused requests have used up, by their counters, and until when. The oldest first.
        self._used_up: OrderedDict[str, float] = OrderedDict()
        #: Set while Valkey is down or settlements wait.
        self._needs_watch = asyncio.Event()
        self._degraded.set(0)

    async def spend(
        self, found: Sequence[RequestLimit], request_id: RequestId, *, tier: PlanName, tokens: int, images: int = 0, seconds: float
    ) -> LimitUsage:
        """Count a request of at most ``tokens`` and ``seconds`` against the limits ``found``. Pass the result to ``settle``. Raises
        LimitReached, or for what can never fit TokensTooLarge or BadRequest, without counting; Unavailable if Valkey is down and the
        setting is "closed"."""
        try:
            limit_rules.ensure_fits(found, tokens=tokens, images=images)
        except errors.BadRequest:
            self._refused.inc()
            raise
        if not found:
            self._admitted.inc()
            return LimitUsage(CountedRequest.NOWHERE, request_id, (), TightestLimit())
        lease_seconds = seconds + _LEASE_SLACK_SECONDS
        held = tuple(limit for limit in found if limit.kind.is_held)
        admit = partial(self._valkey.admit, found, request_id, tokens=tokens, images=images, lease_seconds=lease_seconds)
        try:
            verdict = await self._ask(admit)
        except asyncio.CancelledError:
            # Valkey may have counted it, so settle it.
            self._settle_later(LimitUsage(CountedRequest.VALKEY, request_id, held, TightestLimit()), 0)
            raise
        if verdict is not None:
            return self._admit(CountedRequest.VALKEY, request_id, found, verdict, tier, lease_seconds=lease_seconds)
        match self._without_valkey:
            case "degrade":
                found = limit_rules.shares(found, self._gateways())
                # A request larger than this gateway's share uses all of it, because other gateways may be idle.
                tokens, images = limit_rules.within(found, "token", tokens), limit_rules.within(found, "image", images)
                verdict = await self._local.admit(found, request_id, tokens=tokens, images=images, lease_seconds=lease_seconds)
                return self._admit(CountedRequest.HERE, request_id, found, verdict, tier, lease_seconds=lease_seconds)
            case "open":
                self._uncounted.inc()
                return LimitUsage(CountedRequest.NOWHERE, request_id, held, TightestLimit())
            case "closed":
                self._refused.inc()
                self._settle_later(LimitUsage(CountedRequest.NOWHERE, request_id, held, TightestLimit()), 0)
                raise errors.Unavailable("requests can't be counted: Valkey is down", hint="retry soon", retry_after_seconds=1)

    def ensure_left(self, found: Sequence[RequestLimit], tier: PlanName) -> None:
        """Raise LimitReached if ``count_refused`` has raised it here and the wait is not over. Call it before reading a body, whose reading
        takes the gateway's time."""
        now = self._clock()
        for limit in found:
            if (left_seconds := self._used_up.get(limit.counter, now) - now) > 0:
                self._refused.inc()
                raise LimitReached((limit,), (Count(0, left_seconds, left_seconds),), tier)

    async def count_refused(self, principal: Principal, error: errors.AimeshError) -> None:
        """Count a request that was refused with ``error`` after its body was read as one per minute, unless it was counted. Raises as
        ``spend``."""
        if limit_rules.attached_limits(error) is not None:
            return
        found = [limit for limit in self.limits(principal) if (limit.kind.counter, limit.kind.cost) == ("rate", "request")]
        try:
            usage = await self.spend(found, RequestId(uuid4()), tier=principal.tier, tokens=0, seconds=0)
        except LimitReached as reached:
            self._used_up[reached.counter] = self._clock() + (reached.retry_after_seconds or 0.0)
            self._used_up.move_to_end(reached.counter)
            if len(self._used_up) > _MAX_USED_UP:
                self._used_up.popitem(last=False)
            raise
        limit_rules.attach_limits(error, usage.tightest)

    async def may_leave_row(self, principal: Principal) -> bool:
        """Count a refused request; return whether it may leave a row in the request log."""
        found: Sequence[RequestLimit] = (limit_rules.refused_rows(principal),)
        request_id = RequestId(uuid4())
        verdict = await self._ask(partial(self._valkey.admit, found, request_id, tokens=0, lease_seconds=_LEASE_SLACK_SECONDS))
        if verdict is None:
            found = limit_rules.shares(found, self._gateways())
            verdict = await self._local.admit(found, request_id, tokens=0, lease_seconds=_LEASE_SLACK_SECONDS)
        return verdict.admitted

    async def extend(self, usage: LimitUsage, *, tokens: int) -> bool:
        """Count the running request with so many tokens in all; return whether its limits have them. Safe to repeat. While Valkey is down,
        a request that it has counted is refused only if the setting is "closed"; ``settle`` counts what it used."""
        held = tuple(limit for limit in usage.held if limit.kind.counter != "slots")
        if not held or usage.counted is CountedRequest.NOWHERE:
            return True
        if usage.counted is CountedRequest.HERE:
            return await self._local.extend_tokens(held, usage.request_id, tokens=tokens)
        granted = await self._ask(partial(self._valkey.extend_tokens, held, usage.request_id, tokens=tokens))
        return self._without_valkey != "closed" if granted is None else granted

    async def settle(self, usage: LimitUsage, *, tokens: int) -> None:
        """Return what the request did not use. Never raises; safe to call twice. If Valkey is down, it is settled later."""
        if not usage.held:
            return
        self._slots.pop(usage.request_id, None)
        if usage.counted is CountedRequest.HERE:
            await self._local.settle(usage.held, usage.request_id, tokens=tokens)
        settled: bool | None = None
        try:
            # Even if counted here: Valkey may have counted it, too, and answered too late.
            settled = await self._ask(partial(self._valkey.settle, usage.held, usage.request_id, tokens=tokens))
        finally:
            if settled is None:
                self._settle_later(usage, tokens)

    async def extend_slots(self) -> None:
        """Extend the slots of running requests, so that those of a killed gateway expire soon. Never raises; while Valkey is down, only the
        local counts are extended."""
        now = self._clock()
        # An unsettled request ends with its deadline.
        self._slots = {request_id: (usage, until) for request_id, (usage, until) in self._slots.items() if now < until}
        await self._local.extend(_slots_of(usage for usage, _ in self._slots.values() if usage.counted is CountedRequest.HERE))
        waiting = deque(self._slots)
        while waiting:
            batch = [waiting.popleft() for _ in range(min(_SLOTS_AT_ONCE, len(waiting)))]

            async def extend(request_ids: Sequence[RequestId] = batch) -> bool:
                # Checked when the call is sent: a request settled meanwhile must not get its slot back.
                running = [self._slots[request_id][0] for request_id in request_ids if request_id in self._slots]
                if slots := _slots_of(running):
                    await self._valkey.extend(slots)
                return True

            if await self._ask(extend) is None:
                return

    async def read(self, principal: Principal) -> tuple[LimitState, ...]:
        """Return what is left of this caller's limits, without counting. Raises ConfigUnreadable for the caller's plan."""
        return (await self.look(principal))[0]

    async def look(
        self, principal: Principal, is_open: Callable[[ModelName], bool] = lambda _model: False
    ) -> tuple[tuple[LimitState, ...], LimitReached | None]:
        """Also of each limited model that ``is_open`` to the caller. Return, too, which limit refuses the caller's next request.

        Raises ConfigUnreadable for the caller's plan; a model whose limits can't be read is left out."""
        limited = {model: plan for model, plan in self._read_rules().models.items() if plan.unreadable is None}
        found = self.limits(principal, *(model for model in limited if is_open(model)))
        verdict = await self._ask(partial(self._valkey.read, found, tokens=0)) if found else LimitVerdict(admitted=True, counts=())
        if verdict is None:
            found = limit_rules.shares(found, self._gateways())
            verdict = await self._local.read(found, tokens=0)
        return limit_rules.states(found, verdict.counts), limit_rules.find_reached(found, verdict.counts, principal.tier)

    def limits(self, principal: Principal, *models: ModelName) -> tuple[RequestLimit, ...]:
        """Return every limit that a request of this caller to these models counts against. Raises ConfigUnreadable."""
        rules = self._read_rules()
        limits = limit_rules.caller_limits(principal, rules.plan_of(principal.tier))
        for model in models:
            if model in rules.models:
                limits += limit_rules.model_limits(model, rules.models)
        return limits

    async def connect(self) -> None:
        """Connect before the first request, so that a burst doesn't wait for it. Never raises."""
        with contextlib.suppress(errors.Unavailable):
            await self._valkey.connect()

    async def watch(self) -> None:
        """Connect to Valkey, probe it every second while it is down, and settle what waits when it is back. Runs forever."""
        await self.connect()
        while True:
            await self._needs_watch.wait()
            await asyncio.sleep(PROBE_SECONDS)
            if self._breaker.is_open:
                await self._probe()
            await self._settle_pending()

    def _admit(
        self,
        counted: CountedRequest,
        request_id: RequestId,
        found: Sequence[RequestLimit],
        verdict: LimitVerdict,
        tier: PlanName,
        *,
        lease_seconds: float,
    ) -> LimitUsage:
        if not verdict.admitted:
            self._refused.inc()
            raise LimitReached(found, verdict.counts, tier)
        self._admitted.inc()
        held = tuple(limit for limit in found if limit.kind.is_held)
        usage = LimitUsage(counted, request_id, held, limit_rules.tightest(found, verdict.counts))
        if any(limit.kind.counter == "slots" for limit in held):
            self._slots[request_id] = usage, self._clock() + lease_seconds
        return usage

    async def _ask(self, call: Callable[[], Awaitable[T]]) -> T | None:
        async with self._calls:
            # The breaker may have opened during the wait.
            if self._breaker.is_open:
                return None
            began = self._clock()
            try:
                answer = await call()
            except errors.Unavailable as error:
                self._failed(error, began)
                return None
        self._answered_at = self._clock()
        if self._breaker.failed_at and not self._breaker.is_open:
            self._breaker.succeeded()
        return answer

    def _failed(self, error: errors.Unavailable, began: float) -> None:
        now = self._clock()
        # If no call was answered in this time, Valkey is down; it isn't just one slow call.
        is_silent = now - began >= ANSWER_SECONDS and self._answered_at < began
        # A refusal applies to all calls.
        if self._breaker.failed(now, times=FAILURES if is_silent or isinstance(error, CacheRefuses) else 1):
            self._degraded.set(1)
            self._needs_watch.set()
            _log.error("valkey is not counting limits", mode=self._without_valkey, reason=f"{error.message}: {error.__cause__!r}")

    async def _probe(self) -> None:
        try:
            await self._valkey.connect()
            await self._valkey.admit((_PROBE,), RequestId(uuid4()), tokens=0, lease_seconds=_PROBE_LEASE_SECONDS)
        except errors.Unavailable:
            return
        if self._breaker.succeeded():
            self._degraded.set(0)
            _log.info("valkey is counting limits again")

    def _settle_later(self, usage: LimitUsage, tokens: int) -> None:
        self._unsettled.append((usage, tokens))
        self._needs_watch.set()

    async def _settle_pending(self) -> None:
        while self._unsettled:
            usage, tokens = self._unsettled.popleft()
            if await self._ask(partial(self._valkey.settle, usage.held, usage.request_id, tokens=tokens)) is None:
                self._unsettled.appendleft((usage, tokens))
                return
        if not self._breaker.is_open:
            self._needs_watch.clear()


def _slots_of(running: Iterable[LimitUsage]) -> list[ConcurrencySlot]:
    return [(limit.counter, usage.request_id) for usage in running for limit in usage.held if limit.kind.counter == "slots"]
