"""Sends domain events through a bounded queue that never blocks the caller, and receives them as an async iterator."""

import asyncio
from collections.abc import AsyncIterator

import msgspec

from shared import errors
from shared.api import events
from shared.api.events import Event
from shared.protocol import topics
from shared.transports.link import LocalNode
from shared.transports.nats.server_connection import NatsMessage
from shared.transports.nats_link import NatsTransport

#: Above this the oldest are dropped: events are only hints.
MAX_WAITING = 4096
#: Events within this time share a message. One message per request would cost the reader more than the request.
GATHER_SECONDS = 0.02
#: Per message; 100 KiB.
MAX_TOGETHER = 500

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Event]).decode


class _Bounded:
    """A queue that drops its oldest entry instead of growing."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Event] = asyncio.Queue(MAX_WAITING)
        self.dropped = 0

    def put(self, event: Event) -> None:
        if self.queue.full():
            self.queue.get_nowait()
            self.dropped += 1
        self.queue.put_nowait(event)


class DomainEvents:
    def __init__(self, me: LocalNode, transport: NatsTransport | None) -> None:
        self._me = me
        #: None on a node without NATS, which neither sends nor receives events.
        self._transport = transport
        self._out = _Bounded()
        self._inbound: list[_Bounded] = []

    @property
    def dropped(self) -> int:
        return self._out.dropped + sum(bounded.dropped for bounded in self._inbound)

    def publish(self, event: Event) -> None:
        """Never waits and never fails, because events are hints."""
        self._out.put(event)

    async def listen(self) -> AsyncIterator[Event]:
        """Yield every event of the mesh from now on. NATS allows this only for the metrics service."""
        inbound = _Bounded()
        self._inbound.append(inbound)

        def arrived(message: NatsMessage) -> None:
            try:
                found = _decode(message.payload)
                sender = topics.event_sender(message.subject.decode())
            except (msgspec.MsgspecError, RecursionError, ValueError):
                return  # from a newer version; events only inform
            for event in found:
                if events.PUBLISHED_BY[type(event)] is sender:
                    inbound.put(event)

        if self._transport is None:
            raise errors.BadSettings("events need NATS", hint="set NATS_URL")
        sid = self._transport.nats.subscribe(topics.events(self._me.mesh), arrived)
        try:
            while True:
                yield await inbound.queue.get()
        finally:
            self._inbound.remove(inbound)
            self._transport.nats.unsubscribe(sid)

    async def run(self) -> None:
        """Send published events. Ends by cancellation."""
        while True:
            together = [await self._out.queue.get()]
            await asyncio.sleep(GATHER_SECONDS)
            while not self._out.queue.empty() and len(together) < MAX_TOGETHER:
                together.append(self._out.queue.get_nowait())
            self._send(together)

    def _send(self, together: list[Event]) -> None:
        if self._transport is None or not self._transport.connected:
            return
        by_name: dict[str, list[Event]] = {}
        for event in together:
            by_name.setdefault(str(event.__struct_config__.tag), []).append(event)
        me = self._me
        for name, of_name in by_name.items():
            try:
                self._transport.nats.publish(topics.event(me.mesh, me.role, me.node, name), _encode(of_name))
            except errors.TooLarge:
                self._out.dropped += len(of_name)
