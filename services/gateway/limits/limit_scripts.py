"""Counts limits with Lua scripts, in Valkey or in this process. Only this module knows their arguments."""

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lupa import lua51  # the version of Lua that Valkey runs

from services.gateway.limits import limit_rules
from services.gateway.limits.limit_rules import ConcurrencySlot, Count, LimitVerdict, RequestLimit
from shared.stores.cache import Cache
from shared.types import RequestId

#: A call takes 0.2 ms, but a busy machine sometimes doesn't schedule Valkey for 60 ms. This allows for four such pauses, because counting
#: in the gateway instead would let requests exceed the limit.
ANSWER_SECONDS = 0.25
#: Lease of a concurrency slot without an extension, as in ``admit_request.lua``.
SLOT_SECONDS = 30.0
_SCRIPTS = _ADMIT, _SETTLE, _EXTEND, _EXTEND_TOKENS = "admit_request", "settle_request", "extend_slots", "extend_tokens"

Argument = str | int | float | bytes


class LimitScripts:
    """Runs the scripts, by the clock of their server. Every method raises Unavailable if Valkey does not answer within 250 ms, but it may
    have counted. ``now`` is for tests."""

    def __init__(self, counters: "Cache | LocalCounters") -> None:
        self._counters = counters
        head, *scripts = (Path(__file__).with_name(f"{name}.lua").read_text(encoding="utf-8") for name in ("counters", *_SCRIPTS))
        for name, script in zip(_SCRIPTS, scripts, strict=True):
            counters.script(name, head + script, urgent=True)

    async def connect(self) -> None:
        """Connect in advance, because connecting may take longer than 250 ms. Raises Unavailable after a second or two."""
        await self._counters.connect()

    async def read(self, found: Sequence[RequestLimit], *, tokens: int, now: float | None = None) -> LimitVerdict:
        args = [_time(now), 0, "", 0, *_arguments(found, tokens=tokens)]
        # The script needs a key for the hold, but doesn't use it here.
        return await self._ask(limit_rules.hold("none"), found, args)

    async def admit(
        self,
        found: Sequence[RequestLimit],
        request_id: RequestId,
        *,
        tokens: int,
        images: int = 0,
        lease_seconds: float,
        now: float | None = None,
    ) -> LimitVerdict:
        written = str(request_id)
        args = [_time(now), 1, written, lease_seconds, *_arguments(found, tokens=tokens, images=images)]
        return await self._ask(limit_rules.hold(written), found, args)

    async def settle(self, held: Sequence[RequestLimit], request_id: RequestId, *, tokens: int, now: float | None = None) -> bool:
        written = str(request_id)
        keys = [limit_rules.hold(written), *(limit.counter for limit in held)]
        args = [_time(now), tokens, written, *_arguments(held)]
        return bool(await self._counters.run(_SETTLE, keys, args, seconds=ANSWER_SECONDS))

    async def extend(self, slots: Sequence[ConcurrencySlot], *, now: float | None = None) -> None:
        """Extend the leases of running requests."""
        args: list[Argument] = [_time(now), SLOT_SECONDS, *(str(request_id) for _, request_id in slots)]
        await self._counters.run(_EXTEND, [counter for counter, _ in slots], args, seconds=ANSWER_SECONDS)

    async def extend_tokens(self, held: Sequence[RequestLimit], request_id: RequestId, *, tokens: int, now: float | None = None) -> bool:
        """Reserve so many tokens in all; return whether the token limits ``held`` have them. Safe to repeat."""
        keys = [limit_rules.hold(f"{request_id}"), *(limit.counter for limit in held)]
        args = [_time(now), tokens, *_arguments(held)]
        return bool(await self._counters.run(_EXTEND_TOKENS, keys, args, seconds=ANSWER_SECONDS))

    async def _ask(self, hold: str, found: Sequence[RequestLimit], args: Sequence[Argument]) -> LimitVerdict:
        keys = [hold, *(limit.counter for limit in found)]
        admitted, *numbers = await self._counters.run(_ADMIT, keys, args, seconds=ANSWER_SECONDS)
        triples = zip(numbers[0::3], numbers[1::3], numbers[2::3], strict=True)
        return LimitVerdict(admitted == 1, tuple(Count(left, retry_ms / 1000, resets_ms / 1000) for left, retry_ms, resets_ms in triples))


def _time(now: float | None) -> str:
    return "" if now is None else repr(now)


def _arguments(found: Sequence[RequestLimit], *, tokens: int = 0, images: int = 0) -> list[Argument]:
    """Return the five arguments of each limit, as ``counters.lua`` reads them."""
    return [
        part
        for limit in found
        for part in (
            limit.kind.counter,
            limit.kind.seconds,
            limit.most,
            limit_rules.cost(limit.kind, tokens=tokens, images=images),
            int(limit.kind.is_held),
        )
    ]


#: A counter takes 0.3 KB, or 4 KB after a busy hour. The least recently used ones are dropped.
_MAX_KEYS = 20_000


@dataclass(slots=True)
class _Entry:
    #: A string, or the fields of a hash, or the scores of a sorted set.
    value: Any
    expires_at: float


class LocalCounters:
    """Counts in this process while Valkey is down: runs Valkey's scripts on a dict, with only the commands that they use.

    ``clock`` is any clock in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, most: int = _MAX_KEYS) -> None:
        self._clock = clock
        self._most = most
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._lua = lua51.LuaRuntime(register_eval=False, register_builtins=False)
        self._globals = self._lua.globals()
        self._globals.redis = self._lua.table(call=self._call)
        self._scripts: dict[str, Any] = {}

    async def connect(self) -> None: ...

    def script(self, name: str, lua: str, *, urgent: bool = False) -> None:
        self._scripts[name] = self._lua.compile(lua)

    async def run(self, script: str, keys: Sequence[str], args: Sequence[Argument], *, seconds: float | None = None) -> Any:
        self._globals.KEYS, self._globals.ARGV = self._lua.table_from(keys), self._lua.table_from([_text(each) for each in args])
        answer = self._scripts[script]()
        return int(answer) if isinstance(answer, (int, float)) else [int(answer[at]) for at in range(1, len(answer) + 1)]

    def _call(self, command: str, *arguments: Any) -> Any:
        """Run one command. Replies as Valkey does, with None for a missing value."""
        run = getattr(self, f"_{command.lower()}", None)
        if run is None:
            raise NotImplementedError(f"the command {command} is not implemented")
        return run(*arguments)

    def _time(self) -> Any:
        now = self._clock()
        return self._lua.table(str(int(now)), str(int(now % 1 * 1_000_000)))

    def _get(self, key: str) -> Any:
        return self._find(key)

    def _getdel(self, key: str) -> Any:
        value = self._find(key)
        self._del(key)
        return value

    def _set(self, key: str, value: str, _px: str, milliseconds: float) -> None:
        self._del(key)
        self._find_or_make(key, value)
        self._pexpire(key, milliseconds)

    def _del(self, key: str) -> None:
        self._entries.pop(key, None)

    def _pexpire(self, key: str, milliseconds: float) -> None:
        self._entries[key].expires_at = self._clock() + milliseconds / 1000

    def _pttl(self, key: str) -> int:
        expires_at = self._entries[key].expires_at
        return -1 if expires_at == math.inf else int((expires_at - self._clock()) * 1000)

    def _hgetall(self, key: str) -> Any:
        return self._lua.table_from([str(part) for pair in self._find(key, {}).items() for part in pair])

    def _hget(self, key: str, name: int) -> Any:
        return self._find(key, {}).get(str(name))

    def _hincrby(self, key: str, name: int, more: int) -> None:
        counts = self._find_or_make(key, {})
        counts[str(name)] = counts.get(str(name), 0) + more

    def _hdel(self, key: str, *names: str) -> None:
        for name in names:
            del self._find(key)[str(name)]

    def _zadd(self, key: str, score: str, member: str) -> None:
        self._find_or_make(key, {})[member] = float(score)

    def _zrem(self, key: str, member: str) -> int:
        return int(self._find(key, {}).pop(member, None) is not None)

    def _zcount(self, key: str, over: str, _most: str) -> int:
        return sum(score > float(over.removeprefix("(")) for score in self._find(key, {}).values())

    def _zrange(self, key: str, _first: int, _last: int, _with_scores: str) -> Any:
        """Return the last member and its score, the only range that the scripts ask for."""
        member, score = max(self._find(key).items(), key=lambda member_and_score: member_and_score[1])
        return self._lua.table(member, repr(score))

    def _zremrangebyscore(self, key: str, _least: str, most: str) -> None:
        scores = self._find(key, {})
        for member in [member for member, score in scores.items() if score <= float(most)]:
            del scores[member]

    def _find(self, key: str, default: Any = None) -> Any:
        entry = self._entries.get(key)
        if entry is None or entry.expires_at <= self._clock():
            self._entries.pop(key, None)
            return default
        self._entries.move_to_end(key)
        return entry.value

    def _find_or_make(self, key: str, value: Any) -> Any:
        if (found := self._find(key)) is not None:
            return found
        self._entries[key] = _Entry(value, math.inf)
        if len(self._entries) > self._most:
            self._entries.popitem(last=False)
        return value


def _text(value: Argument) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
