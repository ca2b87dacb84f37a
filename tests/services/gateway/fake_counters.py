"""Valkey, where no test is about it: the scripts' calls, answered by their model in Python."""

from collections.abc import Sequence
from uuid import UUID

from services.gateway.limits.limit_rules import ConcurrencySlot, LimitKind, LimitScope, LimitVerdict, RequestLimit
from services.gateway.limits.local_limits import LocalLimits
from services.gateway.limits.valkey_limits import Argument
from shared import errors
from shared.types import RequestId


class FakeCounters:
    """The script runner of shared.stores.cache. Its clock stands still, and it may be away."""

    def __init__(self) -> None:
        self.limits = LocalLimits()
        self.now = 1_000_000.0
        self.away = False
        self.calls = 0

    async def connect(self) -> None:
        if self.away:
            raise errors.Unavailable("Valkey does not answer")

    def script(self, name: str, lua: str, *, urgent: bool = False) -> None:
        assert lua
        assert urgent, "a request does not wait until others have their large values"

    async def run(self, script: str, keys: Sequence[str], args: Sequence[Argument], *, seconds: float | None = None) -> list[int]:
        assert seconds is not None, "a request does not wait for long"
        self.calls += 1
        if self.away:
            raise errors.Unavailable("Valkey does not answer")
        if script == "extend_places":
            ids = [RequestId(UUID(str(one))) for one in args[2:]]
            self.limits.extend([ConcurrencySlot(*one) for one in zip(keys, ids, strict=True)], now=self.now)
            return [len(keys)]
        if script == "settle_request":
            tokens, request_id = int(args[1]), RequestId(UUID(str(args[2])))
            return [int(self.limits.settle(_limits(keys, args[3:]), request_id, tokens=tokens, now=self.now))]
        counting, tokens, asked_by, lease = bool(int(args[1])), int(args[2]), str(args[3]), float(args[4])
        found = _limits(keys, args[5:])
        if not counting:
            return _reply(self.limits.look(found, tokens=tokens, now=self.now))
        return _reply(self.limits.admit(found, RequestId(UUID(asked_by)), tokens=tokens, lease_seconds=lease, now=self.now))


def _limits(keys: Sequence[str], numbers: Sequence[Argument]) -> list[RequestLimit]:
    kinds, most = [LimitKind(str(kind)) for kind in numbers[0::2]], [int(number) for number in numbers[1::2]]
    return [RequestLimit(LimitScope.USER, *one) for one in zip(kinds, keys[1:], most, strict=True)]


def _reply(verdict: LimitVerdict) -> list[int]:
    numbers = [(count.left, count.retry_after_seconds * 1000, count.resets_in_seconds * 1000) for count in verdict.counts]
    return [int(verdict.admitted), *(round(number) for triple in numbers for number in triple)]
