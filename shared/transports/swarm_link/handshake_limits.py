"""Limits unauthenticated connections: few unknown keys at a time, and none that was refused a moment ago. Pure.

Topics are not secret, so anyone may connect. This limits what unauthenticated peers can cost. A key that has shown a valid certificate
before is known.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import TypeVar

from shared.timing.concurrency_limit import ConcurrencyLimit

Value = TypeVar("Value")

#: Unknown peers without a HELLO. Each is gone after HELLO_SECONDS, so a real newcomer gets its chance.
MAX_PENDING = 20
#: Refused keys reconnect three times within a few seconds, with the same result.
REFUSED_SECONDS = 5.0
#: Keys are cheap, so only so many are remembered. The oldest are dropped.
MAX_KNOWN = MAX_REFUSED = 4096


@dataclass(slots=True, eq=False)
class HandshakeAttempt:
    """A connection without a HELLO yet."""

    key: bytes
    is_unknown: bool


class HandshakeLimits:
    """Owned by one transport, which reports how each attempt ended: exactly one of ``welcome``, ``refuse`` and ``leave``."""

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, None] = OrderedDict()
        self._refused_until: OrderedDict[bytes, float] = OrderedDict()
        self._pending = ConcurrencyLimit(MAX_PENDING)

    def arrive(self, key: bytes, now: float) -> HandshakeAttempt | None:
        """Return None if the connection must be closed at once, before anything is computed for it."""
        if now < self._refused_until.get(key, now):
            return None
        attempt = HandshakeAttempt(key, key not in self._known)
        if attempt.is_unknown:
            if self._pending.is_full:
                return None
            self._pending.enter()
        return attempt

    def welcome(self, attempt: HandshakeAttempt) -> None:
        """Handle a valid certificate."""
        self.leave(attempt)
        _remember(self._known, attempt.key, None, MAX_KNOWN)

    def refuse(self, attempt: HandshakeAttempt, now: float) -> None:
        """Handle an invalid HELLO."""
        self.leave(attempt)
        _remember(self._refused_until, attempt.key, now + REFUSED_SECONDS, MAX_REFUSED)

    def leave(self, attempt: HandshakeAttempt) -> None:
        """Handle a peer that left or timed out. It may come back at once, because the network may be the reason."""
        if attempt.is_unknown:
            attempt.is_unknown = False
            self._pending.leave()


def _remember(memory: OrderedDict[bytes, Value], key: bytes, value: Value, most: int) -> None:
    memory[key] = value
    memory.move_to_end(key)
    if len(memory) > most:
        memory.popitem(last=False)
