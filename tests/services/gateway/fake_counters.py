"""Valkey's scripts run in this process, for tests that aren't about Valkey."""

from collections.abc import Sequence
from typing import Any

from services.gateway.limits.limit_scripts import Argument, LocalCounters
from shared import errors
from shared.stores.cache import Cache


class FakeCounters:
    """Replaces the script runner of shared.stores.cache, with a stopped clock; can be unavailable."""

    def __init__(self) -> None:
        self.now = 1_000_000.0
        self.away = False
        self.calls = 0
        self._counters = LocalCounters(lambda: self.now)

    async def connect(self) -> None:
        if self.away:
            raise errors.Unavailable("Valkey does not answer")

    def script(self, name: str, lua: str, *, urgent: bool = False) -> None:
        assert urgent, "a request must not wait for other clients' large values"
        self._counters.script(name, lua)

    async def run(self, script: str, keys: Sequence[str], args: Sequence[Argument], *, seconds: float | None = None) -> Any:
        assert seconds is not None, "a request must not wait without a limit"
        self.calls += 1
        if self.away:
            raise errors.Unavailable("Valkey does not answer")
        return await self._counters.run(script, keys, args)


class AbsentCache(Cache):
    """A Valkey that doesn't answer."""

    def __init__(self) -> None:
        """Without connections."""

    def script(self, name: str, lua: str, *, urgent: bool = False) -> None:
        """Not needed: none can run."""

    async def run(self, *_script: object, **_limits: object) -> Any:
        raise errors.Unavailable("Valkey does not answer")
