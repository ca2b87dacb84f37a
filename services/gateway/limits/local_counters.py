"""Counts limits in this process while Valkey is down: runs Valkey's scripts on a dict. Implements only the commands that they use."""

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lupa import lua51  # the version of Lua that Valkey runs

from services.gateway.limits.limit_scripts import Argument

#: A counter takes 0.3 KB, or 4 KB after a busy hour. The least recently used ones are dropped.
_MOST_KEYS = 20_000


@dataclass(slots=True)
class _Entry:
    #: A string, or the fields of a hash, or the scores of a sorted set.
    value: Any
    expires_at: float


class LocalCounters:
    """Runs scripts like ``shared.stores.cache``. ``clock`` is any clock in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, most: int = _MOST_KEYS) -> None:
        self._clock = clock
        self._most = most
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._lua = lua51.LuaRuntime(register_eval=False, register_builtins=False)
        self._globals = self._lua.globals()
        self._globals.redis = self._lua.table(call=self._call)
        self._scripts: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self._entries)

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

    def _hincrby(self, key: str, name: int, more: int) -> None:
        counts = self._find_or_make(key, {})
        counts[str(name)] = counts.get(str(name), 0) + more

    def _hdel(self, key: str, *names: str) -> None:
        for name in names:
            del self._find(key)[name]

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
