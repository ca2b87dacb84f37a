"""Streams for stock @hyperswarm/rpc clients, which pull them: protomux-rpc allows one answer per request, so each has the next items.

A stream belongs to its connection, runs in a task of the dispatcher and waits for a slow reader. It ends with its connection, or when
its next items are not requested for a while.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from shared import errors
from shared.rpc.serving import Dispatcher, ReplySink
from shared.timing.bounded_waits import wait_until_set

#: The most that waits for the reader, and the most per answer. A single item may be larger.
MAX_ITEMS, MAX_BYTES = 64, 64 * 1024
#: A reader that is silent for so long is gone, even if its connection is not.
SILENCE_SECONDS = 30.0
LAST_READ_SECONDS = 2.0
#: As many as the concurrent requests of one connection.
MAX_STREAMS_OF_ONE = 32

Work = Callable[[ReplySink], Awaitable[bytes]]


class Started(msgspec.Struct, frozen=True):
    #: For `stream.next` and `stream.stop` on the same connection.
    handle: int


class Pulled(msgspec.Struct, frozen=True):
    items: list[msgspec.Raw]
    end: msgspec.Raw | None = None


class PulledStream:
    """One stream; the ``ReplySink`` of its call."""

    def __init__(self, encode: Callable[[Any], bytes], free_place: Callable[[], None], forget: Callable[[], None]) -> None:
        self._encode = encode
        self._free_place = free_place
        self._forget = forget
        self._items: deque[bytes] = deque()
        self._bytes = 0
        self._sent = 0
        self._end: bytes | None = None
        self._failure: errors.AimeshError | None = None
        #: Set when there is something to read; when there is room; when the reader has everything.
        self._changed, self._room, self._read = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._is_being_read = False
        self._task: asyncio.Task[None] | None = None
        self._silence: asyncio.TimerHandle | None = None

    def accept(self, call_id: int, body: bytes) -> None:
        """Nothing to send before the first item."""

    async def send_item(self, call_id: int, body: bytes) -> None:
        while len(self._items) >= MAX_ITEMS or self._bytes >= MAX_BYTES:
            self._room.clear()
            await self._room.wait()
        self._items.append(body)
        self._bytes += len(body)
        self._sent += 1
        self._changed.set()

    def credited_items(self, call_id: int) -> int:
        return self._sent - len(self._items)

    async def run(self, work: Work) -> None:
        try:
            self._end = await work(self)
        except errors.AimeshError as error:
            self._failure = error
        self._release_place()
        self._changed.set()
        # A shutdown waits for running tasks, and so for the reader to fetch the rest.
        await wait_until_set(self._read, LAST_READ_SECONDS)

    def runs_in(self, task: asyncio.Task[None]) -> None:
        self._task = task
        self._await_reader()

    def over(self, why: errors.AimeshError) -> None:
        """Handle the end of the task. ``why`` applies if it did not finish. The reader may still fetch the rest."""
        self._release_place()
        if self._end is None and self._failure is None:
            self._failure = why
        self._changed.set()

    def stop(self) -> None:
        """End the stream: it will not be read any more."""
        assert self._task is not None
        self._forget_silence()
        self._task.cancel()
        self._read.set()
        self._forget()

    async def next(self) -> bytes:
        """Wait for items. Raises the error that ended the stream, or BadRequest while another call waits."""
        if self._is_being_read:
            raise errors.BadRequest("another `stream.next` of this handle is waiting", hint="wait for its answer")
        self._is_being_read = True
        self._forget_silence()
        try:
            await self._changed.wait()
        finally:
            self._is_being_read = False
            self._await_reader()
        items = self._take()
        if self._failure is not None and not items:
            self._was_read()
            raise self._failure
        end = None if self._items or self._end is None else msgspec.Raw(self._end)
        if end is not None:
            self._was_read()
        elif not self._items and self._failure is None:
            self._changed.clear()
        return self._encode(Pulled([msgspec.Raw(item) for item in items], end))

    def _take(self) -> list[bytes]:
        taken: list[bytes] = []
        size = 0
        while self._items and (not taken or size + len(self._items[0]) <= MAX_BYTES):
            taken.append(self._items.popleft())
            size += len(taken[-1])
        self._bytes -= size
        self._room.set()
        return taken

    def _was_read(self) -> None:
        if not self._read.is_set():
            self._forget_silence()
            self._read.set()
            self._forget()

    def _release_place(self) -> None:
        free_place, self._free_place = self._free_place, lambda: None
        free_place()

    def _await_reader(self) -> None:
        self._forget_silence()
        if not self._read.is_set():
            self._silence = asyncio.get_running_loop().call_later(SILENCE_SECONDS, self.stop)

    def _forget_silence(self) -> None:
        if self._silence is not None:
            self._silence.cancel()
            self._silence = None


class PulledStreams:
    """The streams of one node, by connection and handle."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._streams: dict[bytes, dict[int, PulledStream]] = {}
        self._last_handle = 0

    def start(self, channel: bytes, encode: Callable[[Any], bytes], work: Work, free_place: Callable[[], None]) -> bytes:
        """Start a stream for this connection. ``free_place`` is called at its end, unless this raises Overloaded."""
        of_one = self._streams.setdefault(channel, {})
        if len(of_one) >= MAX_STREAMS_OF_ONE:
            raise errors.Overloaded(f"{MAX_STREAMS_OF_ONE} streams of this connection are running", retry_after_seconds=1)
        self._last_handle += 1
        handle = self._last_handle
        stream = of_one[handle] = PulledStream(encode, free_place, lambda: self._drop(channel, handle))

        def over(_: asyncio.Task[None]) -> None:
            draining = self._dispatcher.draining
            stream.over(errors.Draining("this node had to stop") if draining else errors.Cancelled("the stream was stopped"))

        task = self._dispatcher.background(stream.run(work))
        task.add_done_callback(over)
        stream.runs_in(task)
        return encode(Started(handle))

    def find(self, channel: bytes, handle: int) -> PulledStream:
        """Raises NotFound."""
        stream = self._streams.get(channel, {}).get(handle)
        if stream is None:
            hint = f"it has ended, or its next items were not requested for {SILENCE_SECONDS:g} s; start it again"
            raise errors.NotFound(f"this connection has no stream {handle}", hint=hint)
        return stream

    def stop_all(self, channel: bytes) -> None:
        """Stop the streams of a closed connection."""
        for stream in list(self._streams.get(channel, {}).values()):
            stream.stop()

    def _drop(self, channel: bytes, handle: int) -> None:
        of_one = self._streams[channel]
        del of_one[handle]
        if not of_one:
            del self._streams[channel]
