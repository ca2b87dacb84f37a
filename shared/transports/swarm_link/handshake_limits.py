"""Whom of those that connect we look at: strangers are few at a time, and whoever was just refused is not looked at again. Pure.

A topic is a rendezvous and no secret, so anybody may connect. What a stranger can cost is bounded here; a key that has shown a
good certificate before is no stranger, however many strangers stand in the door.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import TypeVar

from shared.timing.concurrency_limit import ConcurrencyLimit

Value = TypeVar("Value")

#: Connections of strangers that have not shown a HELLO yet. Each is gone after HELLO_SECONDS, so a real newcomer gets in too.
MAX_PENDING = 20
#: A refused key comes back by itself, three times within a few seconds; nothing will have changed.
REFUSED_SECONDS = 5.0
#: Keys cost nothing to make, so what is remembered of them is bounded, the oldest first.
MAX_KNOWN = MAX_REFUSED = 4096


@dataclass(slots=True, eq=False)
class HandshakeAttempt:
    """A connection that has not shown a HELLO yet."""

    key: bytes
    is_stranger: bool


class HandshakeLimits:
    """Owned by one transport, which tells it how each visit ended: exactly one of ``welcome``, ``refuse`` and ``leave``."""

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, None] = OrderedDict()
        self._refused_until: OrderedDict[bytes, float] = OrderedDict()
        self._pending = ConcurrencyLimit(MAX_PENDING)

    def arrive(self, key: bytes, now: float) -> HandshakeAttempt | None:
        """None: close it at once, before anything is computed for it."""
        if now < self._refused_until.get(key, now):
            return None
        visit = HandshakeAttempt(key, key not in self._known)
        if visit.is_stranger:
            if self._pending.is_full:
                return None
            self._pending.enter()
        return visit

    def welcome(self, visit: HandshakeAttempt) -> None:
        """It has shown a good certificate."""
        self.leave(visit)
        _remember(self._known, visit.key, None, MAX_KNOWN)

    def refuse(self, visit: HandshakeAttempt, now: float) -> None:
        """What it has shown was no good."""
        self.leave(visit)
        _remember(self._refused_until, visit.key, now + REFUSED_SECONDS, MAX_REFUSED)

    def leave(self, visit: HandshakeAttempt) -> None:
        """It has gone, or shown nothing in time: a network may do that, so it may come back at once."""
        if visit.is_stranger:
            visit.is_stranger = False
            self._pending.leave()


def _remember(memory: OrderedDict[bytes, Value], key: bytes, value: Value, most: int) -> None:
    memory[key] = value
    memory.move_to_end(key)
    if len(memory) > most:
        memory.popitem(last=False)
