"""Runs the calls of one link: passes frames from the link to the waiting callers and back."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Protocol

from shared import errors
from shared.protocol import calls, wire
from shared.protocol.wire import Accepted, Call, Cancel, Credit, End, Error, Frame, Goaway, Grant, Item, Piece, Reply
from shared.rpc.serving import Dispatcher
from shared.timing.token_bucket import TokenBucket
from shared.transports.link import Link
from shared.types import Peer

#: Limits calls that a peer opens and withdraws ("rapid reset"): they cost it nothing, and us a task each. A peer that loses its own
#: callers withdraws all calls of a link at once, which must not close the link.
RESETS_PER_SECOND, RESETS_AT_ONCE = 200, wire.MAX_CALLS + 1000
#: For replies to a peer that keeps calling without reading them.
MAX_UNREAD_BYTES = 8 * 1024 * 1024
#: For the body of a long request: all of it (17 MiB at 1.2 Mbit/s), and each piece.
UPLOAD_SECONDS, PIECE_SECONDS = 120.0, 10.0

_ANSWERS = frozenset({Item, Accepted, Reply, End, Error})
_NOT_THE_LAST = frozenset({Item, Accepted})


class Waiter(Protocol):
    """A caller. Gets all messages of its call in order, and one terminal message or ``failed``."""

    def received(self, message: Accepted | Item | Reply | End) -> None: ...

    def failed(self, error: errors.AimeshError) -> None: ...


class _Serving:
    """One of the peer's calls."""

    __slots__ = ("credit", "task")

    def __init__(self, task: asyncio.Task[None]) -> None:
        self.task = task
        self.credit: asyncio.Future[None] | None = None


class _BodyArrival:
    """A long request whose body is arriving."""

    def __init__(self, loop: asyncio.AbstractEventLoop, limit: asyncio.Timeout) -> None:
        self.whole: asyncio.Future[Call] = loop.create_future()
        self._until = loop.time() + UPLOAD_SECONDS
        self._loop = loop
        self._limit = limit

    def progress(self) -> None:
        if not self.whole.done():
            self._limit.reschedule(min(self._until, self._loop.time() + PIECE_SECONDS))


class RpcConnection:
    """The calls of one link in both directions. Owned by the pool (links that we dialed) or the node (links to us)."""

    def __init__(self, link: Link, dispatcher: Dispatcher | None) -> None:
        self.link = link
        self.going_away = False
        #: Called once, after the link has ended and all calls on it have failed.
        self.on_closed: list[Callable[[RpcConnection], None]] = []
        self._calls = calls.Calls(dialled=link.dialled, max_calls=link.max_calls)
        self._dispatcher = dispatcher
        self._waiters: dict[int, Waiter] = {}
        self._serving: dict[int, _Serving] = {}
        self._arrivals: dict[int, _BodyArrival] = {}
        #: Our calls whose long bodies are being sent.
        self._uploads: dict[int, asyncio.Future[None]] = {}
        self.loop = asyncio.get_running_loop()
        self._now = self.loop.time
        self._resets = TokenBucket(RESETS_PER_SECOND, RESETS_AT_ONCE)
        link.on_frames = self._on_frames
        link.on_closed = self._on_link_closed
        link.on_written = self._send_piece

    @property
    def peer(self) -> Peer:
        return self.link.peer

    @property
    def is_usable(self) -> bool:
        return self.link.closed is None and not self.going_away

    @property
    def in_flight(self) -> int:
        """Return how many of our calls are unanswered."""
        return len(self._waiters)

    def next_id(self) -> int:
        return self._calls.next_id()

    def ask(self, call: Call, waiter: Waiter, *, streaming: bool) -> None:
        """Send a call with ``next_id``. Raises LinkLost, or Overloaded if the link has too many calls."""
        if self.link.closed is not None:
            raise self.link.closed
        frames = self._calls.ask(call, streaming=streaming)
        self._waiters[call.id] = waiter
        self._send_all(frames)

    def withdraw(self, call_id: int) -> None:
        """Cancel one of our calls. The waiter gets nothing more. Safe to call when it is over."""
        self._waiters.pop(call_id, None)
        self._send_all(self._calls.withdraw(call_id))
        self._end_uploads()

    async def uploaded(self, call_id: int) -> None:
        """Wait until a call's long body is sent, or the call is over. The caller needs a deadline."""
        if self._calls.is_uploading(call_id):
            self._uploads[call_id] = self.loop.create_future()
            await self._uploads[call_id]

    async def receive_body(self, call: Call) -> Call:
        """Let the caller send a long body, and return the call with it. Raises DeadlineExceeded if it arrives too slowly."""
        try:
            async with asyncio.timeout(PIECE_SECONDS) as limit:
                arrival = self._arrivals[call.id] = _BodyArrival(self.loop, limit)
                self._send_all(self._calls.grant(call.id))
                return await arrival.whole
        except TimeoutError:
            raise errors.DeadlineExceeded("the body of the request did not arrive in time", hint="send it over a faster line") from None
        finally:
            self._arrivals.pop(call.id, None)

    def took(self, call_id: int, size: int) -> None:
        """Note that the reader has taken an item of this many bytes."""
        for frame in self._calls.take(call_id, size):
            self.link.send(frame)

    def accept(self, call_id: int, body: bytes) -> None:
        self._send_all(self._calls.accept(call_id, body))

    async def send_item(self, call_id: int, body: bytes) -> None:
        if self.link.is_full:
            await self.link.drained()
        while (frames := self._calls.item(call_id, body)) is None:
            serving = self._serving.get(call_id)
            if serving is None or not self._calls.is_open(call_id):
                raise errors.LinkLost("the caller disconnected")
            serving.credit = self.loop.create_future()
            await serving.credit
        for frame in frames:
            self.link.send(frame)

    def credited_items(self, call_id: int) -> int:
        return self._calls.credited_items(call_id)

    def reply(self, call_id: int, body: bytes) -> None:
        if len(body) > wire.MAX_MESSAGE_BYTES:
            self.fail(call_id, errors.TooLarge(f"the answer is {len(body)} bytes, the limit is {wire.MAX_MESSAGE_BYTES}"))
            return
        self._send_all(self._calls.reply(call_id, body))

    def end(self, call_id: int, body: bytes) -> None:
        self._send_all(self._calls.end(call_id, body))

    def fail(self, call_id: int, error: errors.AimeshError) -> None:
        self._send_all(self._calls.fail(call_id, error.to_problem()))

    def send_goodbye(self, reason: str) -> None:
        """Start a drain: the peer sends no new calls and running ones finish."""
        self.link.send(Goaway(reason))

    def _on_frames(self, frames: list[Frame]) -> None:
        if self.link.unsent_bytes > MAX_UNREAD_BYTES and Call in map(type, frames):
            self.link.close(errors.ProtocolViolation("the peer keeps calling without reading the replies"))
            return
        receive = self._calls.receive
        for frame in frames:
            if type(frame) is Goaway:
                self.going_away = True
                continue
            try:
                message = receive(frame)
                if message is not None:
                    self._deliver(message)
                elif type(frame) is Piece:
                    self._grant_more(frame.id)
                elif type(frame) is Grant:
                    self._send_piece()
                elif type(frame) is Cancel:
                    self._count_reset()  # for a call that was refused or is over
            except errors.Overloaded as error:
                self._refuse(frame, error)
            except errors.ProtocolViolation as error:
                self.link.close(error)
                return

    def _refuse(self, frame: Frame, error: errors.Overloaded) -> None:
        """Handle a lack of room for one of the peer's calls, or for an item of one of ours."""
        if isinstance(frame, Call):
            self.link.send(Error(frame.id, error.to_problem()))
        elif isinstance(frame, (Item, Piece)):
            waiter = self._waiters.get(frame.id)
            self.withdraw(frame.id)
            if waiter is not None:
                waiter.failed(error)

    def _deliver(self, message: calls.Message) -> None:
        kind = type(message)
        if kind in _ANSWERS:
            waiter = self._waiters.get(message.id) if kind in _NOT_THE_LAST else self._waiters.pop(message.id, None)
            if self._uploads:
                self._end_uploads()
            if waiter is None:
                return
            if isinstance(message, Error):
                waiter.failed(errors.from_problem(message.problem))
            else:
                waiter.received(message)  # type: ignore[arg-type]  # narrowed by _ANSWERS
        elif isinstance(message, Call):
            arrival = self._arrivals.get(message.id)
            if arrival is None:
                self._start(message)
            elif not arrival.whole.done():
                arrival.whole.set_result(message)
        elif isinstance(message, Cancel):
            self._cancel(message)
        elif isinstance(message, Credit):
            self._grant(message)

    def _start(self, call: Call) -> None:
        try:
            if self._dispatcher is None:
                raise errors.UnknownMethod("this node serves no methods")
            handler = self._dispatcher.find(call.method, self.peer)
        except errors.AimeshError as error:
            self.fail(call.id, error)
            return
        serving = self._serving[call.id] = _Serving(self._dispatcher.start(handler, call, self.peer, self))
        serving.task.add_done_callback(partial(self._over, call.id))

    def _over(self, call_id: int, task: asyncio.Task[None]) -> None:
        del self._serving[call_id]
        if self._dispatcher is not None:
            self._dispatcher.over(task)
        if task.cancelled():
            # If it was canceled before its first step, it could not answer. Otherwise this has no effect.
            self.fail(call_id, errors.Cancelled("the call was cancelled"))

    def _count_reset(self) -> None:
        if not self._resets.spend(self._now()):
            raise errors.ProtocolViolation(f"more than {RESETS_PER_SECOND} calls per second were opened and withdrawn")

    def _cancel(self, cancel: Cancel) -> None:
        self._count_reset()
        serving = self._serving.get(cancel.id)
        if serving is None:
            self.fail(cancel.id, errors.Cancelled("the call was cancelled"))
        else:
            serving.task.cancel()

    def _grant(self, credit: Credit) -> None:
        serving = self._serving.get(credit.id)
        if serving is not None and serving.credit is not None and not serving.credit.done():
            serving.credit.set_result(None)

    def _on_link_closed(self, why: errors.AimeshError) -> None:
        lost = why if isinstance(why, errors.PeerError) else errors.LinkLost(why.message)
        waiters, self._waiters = self._waiters, {}
        for waiter in waiters.values():
            waiter.failed(lost)
        uploads, self._uploads = self._uploads, {}
        for upload in uploads.values():
            if not upload.done():
                upload.set_result(None)
        for serving in list(self._serving.values()):
            serving.task.cancel()
        for callback in self.on_closed:
            callback(self)

    def _grant_more(self, call_id: int) -> None:
        if (arrival := self._arrivals.get(call_id)) is not None:
            arrival.progress()
            self._send_all(self._calls.grant(call_id))

    def _send_piece(self) -> None:
        """Send one piece of a long body, if nothing else waits: other calls' frames go between the pieces."""
        if not self.link.unsent_bytes and (piece := self._calls.next_piece()) is not None:
            self.link.send(piece)
            if not piece.more:
                self._end_uploads()

    def _end_uploads(self) -> None:
        for call_id in [call_id for call_id in self._uploads if not self._calls.is_uploading(call_id)]:
            upload = self._uploads.pop(call_id)
            if not upload.done():
                upload.set_result(None)

    def _send_all(self, frames: list[Frame]) -> None:
        for frame in frames:
            self.link.send(frame)
