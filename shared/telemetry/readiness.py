"""Decides whether a node is ready for traffic, and remembers the state of everything that it depends on. Pure; the caller brings the time.

A node becomes ready when everything that it needs has answered once. After that only reasons of this process count: if a dependency that
all replicas share is down, a load balancer without replicas would help nobody.
"""

from datetime import datetime
from typing import Literal

from shared.api.gateway import Check
from shared.api.method import Body
from shared.types import Moment

#: The event loop is too slow for traffic if it is late by more than this, for so long.
LAG_SECONDS = 2.0
LAGGING_SECONDS = 10.0


_State = Literal["ok", "failing"]
_STATES: dict[bool, _State] = {True: "ok", False: "failing"}


class OwnCheck(Check, frozen=True):
    """The state of something that only this process has. If it fails and is needed, the node is not ready."""


class Dependency(Body, frozen=True, omit_defaults=False):
    name: str
    state: _State
    #: The first check with this state.
    since: Moment
    #: Why it fails; if ok, empty or how much is in use.
    reason: str
    last_success: Moment | None


class Readiness:
    def __init__(self) -> None:
        self._was_ready = False
        self._known: dict[str, Dependency] = {}
        self._last_names: tuple[str, ...] = ()

    @property
    def dependencies(self) -> tuple[Dependency, ...]:
        """Return the things that were checked last."""
        return tuple(self._known[name] for name in self._last_names)

    def decide(self, transports: tuple[Check, ...], checks: tuple[Check, ...], now: datetime) -> bool:
        """Return whether the node is ready. One working transport is enough; checks that are not needed don't count."""
        for check in (*transports, *checks):
            self._note(check, now)
        self._last_names = tuple(dict.fromkeys(check.name for check in (*transports, *checks)))
        needed = [check for check in checks if check.needed]
        if not self._was_ready:
            self._was_ready = any(map(self._has_answered, transports)) and all(map(self._has_answered, needed))
        is_cut_off = not any(check.ok for check in transports) and any(isinstance(check, OwnCheck) for check in transports)
        return self._was_ready and not is_cut_off and all(check.ok for check in needed if isinstance(check, OwnCheck))

    def _has_answered(self, check: Check) -> bool:
        return self._known[check.name].last_success is not None

    def _note(self, check: Check, now: datetime) -> None:
        before, state = self._known.get(check.name), _STATES[check.ok]
        since = before.since if before is not None and before.state == state else now
        last_success = now if check.ok else None if before is None else before.last_success
        self._known[check.name] = Dependency(check.name, state, since, check.detail, last_success)


class LoopLag:
    """Finds an event loop that is too slow for traffic."""

    def __init__(self) -> None:
        self._late_since: float | None = None

    def note(self, lag_seconds: float, now: float) -> None:
        """Record how late the event loop was at ``now``."""
        if lag_seconds <= LAG_SECONDS:
            self._late_since = None
        elif self._late_since is None:
            self._late_since = now - lag_seconds

    def check(self, now: float) -> OwnCheck:
        late_seconds = 0.0 if self._late_since is None else now - self._late_since
        if late_seconds < LAGGING_SECONDS:
            return OwnCheck("event loop", ok=True)
        return OwnCheck("event loop", False, f"more than {LAG_SECONDS:.0f} s late for {late_seconds:.0f} s; this machine is overloaded")
