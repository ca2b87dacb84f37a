"""Calls other nodes: ``call`` for one reply, ``stream`` for many items. The peer's errors are raised as they were there."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, Generic

import msgspec

from shared import context, errors, features
from shared.api.method import End, Item, Method, Reply, Request, StreamMethod
from shared.protocol import wire
from shared.rpc import bodies
from shared.rpc.connection import RpcConnection
from shared.rpc.connection_pool import ConnectionPool
from shared.rpc.serving import AnyMethod, most_request_bytes
from shared.types import Credential, NodeId

#: How long the first node may take before another is asked as well. A killed node is only noticed after three seconds of silence.
_ASK_ANOTHER_SECONDS = 0.5
#: Requests longer than a message.
_UPLOADS_AT_ONCE = 4


class _PendingCall:
    """A unary call waiting for its reply."""

    __slots__ = ("_method", "answer", "timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, method: str, until: float) -> None:
        self.answer: asyncio.Future[bytes] = loop.create_future()
        self.timer = loop.call_later(until - time.monotonic(), self._too_late)
        self._method = method

    def _too_late(self) -> None:
        self.failed(_too_late(self._method))

    def received(self, message: wire.Accepted | wire.Item | wire.Reply | wire.End) -> None:
        if isinstance(message, wire.Reply) and not self.answer.done():
            self.answer.set_result(message.body)

    def failed(self, error: errors.AimeshError) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class RpcReply(Generic[Item, End]):
    """A running stream: iterate it to its end, then read ``end``. For one reader."""

    def __init__(self, method: StreamMethod[Request, Item, End], connection: RpcConnection) -> None:
        self._method = method
        self._connection = connection
        self._decode = bodies.decoder(method.item)
        self._bodies: deque[bytes] = deque()
        self._arrival: asyncio.Future[None] | None = None
        self._failure: errors.AimeshError | None = None
        self._end_body: bytes | None = None
        self._end: End | None = None
        self.call_id = 0
        self._accepted: wire.Accepted | None = None
        self._acceptance: msgspec.Struct | None = None

    def ask(self, call: wire.Call, *, long: bool = False) -> bool:
        """Send the call, whose number must be the connection's next. Returns False if it is ``long`` and should not be."""
        if len(call.body) > wire.MAX_MESSAGE_BYTES and not long:
            return False
        self._connection.ask(call, self, streaming=True)
        self.call_id = call.id
        return True

    async def uploaded(self) -> None:
        await self._connection.uploaded(self.call_id)

    @property
    def node(self) -> NodeId:
        return self._connection.peer.node

    @property
    def accepted(self) -> msgspec.Struct | None:
        """Return what the callee sent when it accepted the call; None if it sent nothing (yet)."""
        if self._acceptance is None and self._accepted is not None and self._accepted.body:
            self._acceptance = bodies.decode_reply(self._method.accepted, self._accepted.body, self._method.name)
        return self._acceptance

    @property
    def end(self) -> End:
        """Return how the stream ended; only after the iteration."""
        if self._end is None:
            raise RuntimeError(f"the stream of {self._method.name} has not ended yet")
        return self._end

    def __aiter__(self) -> "RpcReply[Item, End]":
        return self

    async def __anext__(self) -> Item:
        while not self._bodies:
            if self._end_body is not None:
                self._end = bodies.decode_reply(self._method.end, self._end_body, self._method.name)
                raise StopAsyncIteration
            if self._failure is not None:
                raise self._failure
            self._arrival = self._connection.loop.create_future()
            await self._arrival
        body = self._bodies.popleft()
        self._connection.took(self.call_id, len(body))
        try:
            return self._decode(body)
        except ValueError as error:  # msgspec's errors are ValueErrors
            raise errors.ProtocolViolation(f"an item of {self._method.name} does not fit the contract: {error}") from error

    def received(self, message: wire.Accepted | wire.Item | wire.Reply | wire.End) -> None:
        if isinstance(message, wire.Item):
            self._bodies.append(message.body)
        elif isinstance(message, wire.End):
            self._end_body = message.body
        else:
            if isinstance(message, wire.Accepted):
                self._accepted = message
            return
        self._wake()

    def failed(self, error: errors.AimeshError) -> None:
        self._failure = error
        self._wake()

    def cancel(self, error: errors.AimeshError) -> None:
        """Cancel the call on the peer now. The reader gets the items that are already here, then ``error``."""
        self.failed(error)
        self._connection.withdraw(self.call_id)

    def expire(self) -> None:
        self.failed(_too_late(self._method.name))

    def _wake(self) -> None:
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)


class RpcClient:
    """Calls other nodes. ``to`` names a node; without it the least loaded node that serves the method is called."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool
        self._uploads = asyncio.Semaphore(_UPLOADS_AT_ONCE)

    async def call(
        self,
        method: Method[Request, Reply],
        request: Request,
        *,
        to: NodeId | None = None,
        deadline_seconds: float = 10,
        credential: Credential | None = None,
    ) -> Reply:
        """Call once. Raises AimeshError: the peer's, or NotReachable, LinkLost, DeadlineExceeded. Cancellation reaches the peer."""
        until = _until(deadline_seconds)
        connection = self._pool.ready(method.served_by, to) or await self._pool.connection(method.served_by, to, until)
        if method.asks_another and to is None:
            return await self._ask_two(connection, method, request, until, credential)
        try:
            return await _ask(connection, method, request, until, credential)
        except errors.UnknownMethod:
            # Replicas may differ in their features. The handlers of features pass on no such error of another service.
            if to is not None or (feature := features.owner_of(method.request, method.reply)) is None:
                raise
        for other in self._pool.list_others_with(feature, connection.peer):
            another = await self._pool.connection(method.served_by, other, until)
            with suppress(errors.UnknownMethod):
                return await _ask(another, method, request, until, credential)
        raise errors.Unavailable(f"no {method.served_by} has the feature {feature} now", hint="`aicli doctor` names replicas that differ")

    async def _ask_two(
        self, connection: RpcConnection, method: Method[Request, Reply], request: Request, until: float, credential: Credential | None
    ) -> Reply:
        """Ask another node too if the first is slow or fails. Return the first answer; without one, raise the first node's failure."""

        async def ask_another() -> Reply:
            another = await self._pool.connection(method.served_by, None, until, without=connection.peer.node)
            return await _ask(another, method, request, until, credential)

        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(_outcome(_ask(connection, method, request, until, credential)))]
            await asyncio.wait(asked, timeout=_ASK_ANOTHER_SECONDS)
            if not _is_answered(asked[0]) and self._pool.has_another(connection.peer):
                asked.append(tasks.create_task(_outcome(ask_another())))
            while not any(map(_is_answered, asked)) and (waiting := [task for task in asked if not task.done()]):
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            outcome = next(filter(_is_answered, asked), asked[0]).result()
            for task in asked:
                task.cancel()
        if isinstance(outcome, errors.AimeshError):
            raise outcome
        return outcome

    @asynccontextmanager
    async def stream(
        self,
        method: StreamMethod[Request, Item, End],
        request: Request,
        *,
        to: NodeId | None = None,
        deadline_seconds: float = 300,
        credential: Credential | None = None,
    ) -> AsyncIterator[RpcReply[Item, End]]:
        """Open a stream. Leaving the block early cancels it on the peer. The iteration raises what ``call`` raises."""
        until = _until(deadline_seconds)
        connection = self._pool.ready(method.served_by, to) or await self._pool.connection(method.served_by, to, until)
        answer: RpcReply[Item, End] = RpcReply(method, connection)
        make_frame = partial(_frame, connection, method, request, until, credential)
        is_sent = answer.ask(make_frame())
        timer = connection.loop.call_later(until - time.monotonic(), answer.expire)
        try:
            if not is_sent:
                await self._upload(answer, make_frame, method.name, until)
            yield answer
        finally:
            timer.cancel()
            connection.withdraw(answer.call_id)

    async def _upload(self, answer: RpcReply[Any, Any], make_frame: Callable[[], wire.Call], method: str, until: float) -> None:
        """Send a request longer than a message. Only few at once, because each is encoded meanwhile."""
        try:
            async with asyncio.timeout(until - time.monotonic()), self._uploads:
                answer.ask(make_frame(), long=True)
                await answer.uploaded()
        except TimeoutError:
            raise _too_late(method) from None


async def ask(connection: RpcConnection, method: Method[Request, Reply], request: Request, *, deadline_seconds: float = 10) -> Reply:
    """Call once on this connection, without a pool. Raises what ``RpcClient.call`` raises."""
    return await _ask(connection, method, request, _until(deadline_seconds), None)


async def _ask(
    connection: RpcConnection, method: Method[Request, Reply], request: Request, until: float, credential: Credential | None
) -> Reply:
    frame = _frame(connection, method, request, until, credential)
    call_id = frame.id
    pending = _PendingCall(connection.loop, method.name, until)
    try:
        connection.ask(frame, pending, streaming=False)
        body = await pending.answer
    except BaseException:
        connection.withdraw(call_id)  # nothing happens where the error came from the peer
        raise
    finally:
        pending.timer.cancel()
    return bodies.decode_reply(method.reply, body, method.name)


async def _outcome(answer: Awaitable[Reply]) -> Reply | errors.AimeshError:
    try:
        return await answer
    except errors.AimeshError as error:
        return error


def _is_answered(task: asyncio.Task[Reply | errors.AimeshError]) -> bool:
    return task.done() and not isinstance(task.result(), errors.PeerError)


def _until(deadline_seconds: float) -> float:
    until = time.monotonic() + deadline_seconds
    outer = context.deadline.get()
    return until if outer is None else min(until, outer)


def _too_late(method: str) -> errors.DeadlineExceeded:
    return errors.DeadlineExceeded(f"{method} did not answer in time", hint="try again, or give it longer")


def _frame(connection: RpcConnection, method: AnyMethod, request: object, until: float, credential: Credential | None) -> wire.Call:
    """Return the connection's next call."""
    body = bodies.encode(request)
    if len(body) > (most_bytes := most_request_bytes(method)):
        raise errors.TooLarge(f"the request is {len(body)} bytes, the limit is {most_bytes}", hint="send less at once")
    remaining = until - time.monotonic()
    if remaining <= 0:
        raise _too_late(method.name)
    now = context.current.get()
    return wire.Call(
        connection.next_id(),
        method.name,
        bodies.milliseconds(remaining),
        body,
        request_id=now.request_id.bytes if now else b"",
        traceparent=now.traceparent if now else "",
        credential=credential or "",
    )
