"""Moves from one server to another without losing or repeating messages, while both connections are subscribed."""

from collections import Counter
from collections.abc import Callable

from shared.transports.nats.nats_protocol import NatsMessage


class Handover:
    """Delivers messages of the old connection at once and holds those of the new one. At the end it returns the held messages that the old
    connection did not deliver."""

    def __init__(self, deliver: Callable[[NatsMessage], None]) -> None:
        self._deliver = deliver
        self._delivered: Counter[NatsMessage] = Counter()
        self._held: list[NatsMessage] = []

    def from_old(self, message: NatsMessage) -> None:
        self._delivered[message] += 1
        self._deliver(message)

    def from_new(self, message: NatsMessage) -> None:
        self._held.append(message)

    def remaining(self) -> list[NatsMessage]:
        """Return what is left to deliver, once the old connection is drained."""
        left = []
        for message in self._held:
            if self._delivered[message]:
                self._delivered[message] -= 1
            else:
                left.append(message)
        return left
