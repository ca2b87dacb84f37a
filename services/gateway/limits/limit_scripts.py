"""Counts limits with three Lua scripts, in Valkey or in this process (``local_counters``). Only this module knows their arguments."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from services.gateway.limits import limit_rules
from services.gateway.limits.limit_rules import ConcurrencySlot, Count, LimitVerdict, RequestLimit
from shared.types import RequestId

#: A call takes 0.2 ms, but a busy machine sometimes doesn't schedule Valkey for 20 ms. This allows for four such pauses, because counting
#: in the gateway instead would let requests exceed the limit.
ANSWER_SECONDS = 0.08
#: Lease of a concurrency slot without an extension, as in ``admit_request.lua``.
SLOT_SECONDS = 30.0
_ADMIT, _SETTLE, _EXTEND = "admit_request", "settle_request", "extend_slots"

Argument = str | int | float | bytes


class Counters(Protocol):
    """See ``shared.stores.cache``."""

    async def connect(self) -> None: ...

    def script(self, name: str, lua: str, *, urgent: bool = False) -> None: ...

    async def run(self, script: str, keys: Sequence[str], args: Sequence[Argument], *, seconds: float | None = None) -> Any: ...


class LimitScripts:
    """Runs the scripts, by the clock of their server. Every method raises Unavailable if Valkey does not answer within 80 ms, but it may
    have counted. ``now`` is for tests."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        for name in (_ADMIT, _SETTLE, _EXTEND):
            counters.script(name, Path(__file__).with_name(f"{name}.lua").read_text(encoding="utf-8"), urgent=True)

    async def connect(self) -> None:
        """Connect in advance, because connecting may take longer than 80 ms. Raises Unavailable after a second or two."""
        await self._counters.connect()

    async def look(self, found: Sequence[RequestLimit], *, tokens: int, now: float | None = None) -> LimitVerdict:
        args = [_time(now), 0, tokens, "", 0, *_numbers(found)]
        # The script needs a key for the hold, but doesn't use it here.
        return await self._ask(limit_rules.hold("none"), found, args)

    async def admit(
        self, found: Sequence[RequestLimit], request_id: RequestId, *, tokens: int, lease_seconds: float, now: float | None = None
    ) -> LimitVerdict:
        args = [_time(now), 1, tokens, str(request_id), lease_seconds, *_numbers(found)]
        return await self._ask(limit_rules.hold(f"{request_id}"), found, args)

    async def settle(self, held: Sequence[RequestLimit], request_id: RequestId, *, tokens: int, now: float | None = None) -> bool:
        keys = [limit_rules.hold(f"{request_id}"), *(limit.counter for limit in held)]
        args = [_time(now), tokens, str(request_id), *_numbers(held)]
        return bool(await self._counters.run(_SETTLE, keys, args, seconds=ANSWER_SECONDS))

    async def extend(self, slots: Sequence[ConcurrencySlot], *, now: float | None = None) -> None:
        """Extend the leases of running requests."""
        args: list[Argument] = [_time(now), SLOT_SECONDS, *(str(slot.request_id) for slot in slots)]
        await self._counters.run(_EXTEND, [slot.counter for slot in slots], args, seconds=ANSWER_SECONDS)

    async def _ask(self, hold: str, found: Sequence[RequestLimit], args: Sequence[Argument]) -> LimitVerdict:
        keys = [hold, *(limit.counter for limit in found)]
        admitted, *numbers = await self._counters.run(_ADMIT, keys, args, seconds=ANSWER_SECONDS)
        triples = zip(numbers[0::3], numbers[1::3], numbers[2::3], strict=True)
        return LimitVerdict(admitted == 1, tuple(Count(left, retry_ms / 1000, resets_ms / 1000) for left, retry_ms, resets_ms in triples))


def _time(now: float | None) -> str:
    return "" if now is None else repr(now)


def _numbers(found: Sequence[RequestLimit]) -> list[Argument]:
    return [part for limit in found for part in (limit.kind.value, limit.most)]
