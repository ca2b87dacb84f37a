"""Decides when to dial a lost peer, look up a topic, and check for a network. Pure; the swarm brings the clock.

Hyperswarm itself dials a lost peer three times, and looks up a topic every ten minutes: after an outage of a minute no peer came back.
So a peer that announces itself is dialed until it has been gone for hours.
"""

from dataclasses import dataclass, field
from typing import Final

_MINUTE: Final = 60.0
_FIRST_DIALS_SECONDS: Final = (0.25, 0.5, 1.0, 2.0)
#: (gone for less than, dial every). After the last entry the peer is forgotten; when it comes back, it finds us.
_DIALS: Final = ((2 * _MINUTE, 3.0), (10 * _MINUTE, 10.0), (6 * 60 * _MINUTE, _MINUTE))
#: After a wave of losses, dials are spread to avoid flooding the network with lookups.
_DIALS_PER_TICK: Final = 8
_MAX_LOST: Final = 256
#: A lookup is about twenty packets. These are the pauses while no peer of the topic is connected …
_LOOKUPS_ALONE_SECONDS: Final = (1.0, 2.0, 4.0, 8.0, 10.0)
#: … after an hour of that; while a peer is lost; and otherwise.
_LOOKUPS_LONG_ALONE, _LOOKUP_LONG_ALONE_SECONDS = 360, 30.0
_LOOKUP_LOST_SECONDS: Final = 5.0
_LOOKUP_SECONDS: Final = 120.0
#: While a peer is missing, we ask the DHT whether there is a network. Without one nobody is dialed.
PROBE_ONLINE_SECONDS, PROBE_OFFLINE_SECONDS = 3.0, 1.0


@dataclass(frozen=True, slots=True)
class Dial:
    key: bytes
    topic: bytes


@dataclass(frozen=True, slots=True)
class Lookup:
    topic: bytes


@dataclass(slots=True)
class _Topic:
    due_at: float
    lookups: int = 0


@dataclass(slots=True)
class _Lost:
    topic: bytes
    since: float
    due_at: float
    dials: int = 0


@dataclass(slots=True)
class Recovery:
    online: bool = True
    _topics: dict[bytes, _Topic] = field(default_factory=dict)
    _lost: dict[bytes, _Lost] = field(default_factory=dict)
    _open: dict[bytes, tuple[bytes, ...]] = field(default_factory=dict)

    @property
    def lost(self) -> int:
        return len(self._lost)

    @property
    def has_missing_peers(self) -> bool:
        return bool(self._lost) or not self.online or any(self._is_alone(topic) for topic in self._topics)

    def joined(self, topic: bytes, now: float) -> None:
        """Note a topic to look up. Hyperswarm makes the first lookup itself."""
        self._topics.setdefault(topic, _Topic(now + _LOOKUPS_ALONE_SECONDS[0]))

    def left(self, topic: bytes) -> None:
        self._topics.pop(topic, None)
        self._lost = {key: peer for key, peer in self._lost.items() if peer.topic != topic}

    def opened(self, key: bytes, topics: tuple[bytes, ...]) -> None:
        self._open[key] = topics
        self._lost.pop(key, None)

    def closed(self, key: bytes, now: float, *, wanted: bool) -> None:
        """``wanted``: we did not close it. Only a peer that was found by a topic can be dialed; any other is forgotten."""
        topic = next((topic for topic in self._open.pop(key, ()) if topic in self._topics), None)
        if not wanted:
            return
        if topic is None:
            # A peer that dialed us knows one of our topics, and may be found by it.
            for each in self._topics:
                if self._is_alone(each):
                    self._look_up_soon(each, now)
            return
        if len(self._lost) >= _MAX_LOST:
            del self._lost[next(iter(self._lost))]
        self._lost[key] = _Lost(topic, now, now + _FIRST_DIALS_SECONDS[0])
        self._look_up_soon(topic, now)

    def _look_up_soon(self, topic: bytes, now: float) -> None:
        state = self._topics[topic]
        state.lookups = 0
        state.due_at = min(state.due_at, now + _LOOKUPS_ALONE_SECONDS[0])

    def probed(self, online: bool) -> bool:
        """Note the result of a probe. Returns whether the network is back."""
        is_back = online and not self.online
        self.online = online
        return is_back

    def retry_all(self, now: float) -> None:
        """Retry everything now, because the network is back or has changed."""
        self.online = True
        for peer in self._lost.values():
            peer.due_at = now
        self.look_up_all(now)

    def look_up_all(self, now: float) -> None:
        for state in self._topics.values():
            state.due_at, state.lookups = now, 0

    def restarted(self, now: float) -> None:
        """Handle a restart of the swarm with the same topics."""
        self._open.clear()
        self.retry_all(now)

    def due(self, now: float) -> list[Dial | Lookup]:
        """Return what to do now."""
        if not self.online:
            return []
        steps: list[Dial | Lookup] = []
        overdue = sorted((peer.due_at, key) for key, peer in self._lost.items() if peer.due_at <= now)
        for _, key in overdue[:_DIALS_PER_TICK]:
            peer = self._lost[key]
            wait = _wait_for_dial(peer.dials + 1, now - peer.since)
            if wait is None:
                del self._lost[key]
                continue
            peer.dials += 1
            peer.due_at = now + wait
            steps.append(Dial(key, peer.topic))
        for topic, state in self._topics.items():
            if state.due_at <= now:
                state.lookups += 1
                state.due_at = now + self._wait_for_lookup(topic, state.lookups)
                steps.append(Lookup(topic))
        return steps

    def _is_alone(self, topic: bytes) -> bool:
        return not any(topic in topics for topics in self._open.values())

    def _wait_for_lookup(self, topic: bytes, lookups: int) -> float:
        if self._is_alone(topic):
            last = len(_LOOKUPS_ALONE_SECONDS) - 1
            return _LOOKUP_LONG_ALONE_SECONDS if lookups > _LOOKUPS_LONG_ALONE else _LOOKUPS_ALONE_SECONDS[min(lookups, last)]
        return _LOOKUP_LOST_SECONDS if any(peer.topic == topic for peer in self._lost.values()) else _LOOKUP_SECONDS


def _wait_for_dial(dials: int, away: float) -> float | None:
    """Return the pause after the ``dials``-th dial of a peer that has been gone this long; None to give up."""
    every = next((every for longest, every in _DIALS if away < longest), None)
    return _FIRST_DIALS_SECONDS[dials] if every is not None and dials < len(_FIRST_DIALS_SECONDS) else every
