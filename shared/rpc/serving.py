"""Serves RPC calls: finds the handler by method name, runs each call in its own task and sends exactly one outcome.

This is one of the three places that catch Exception: a bug in a handler must end only its own call.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, overload
from uuid import UUID

import msgspec

from shared import context, errors
from shared.api.auth import Principal
from shared.api.method import End, Item, Method, Nothing, Reply, Request, StreamMethod
from shared.protocol import wire
from shared.protocol.request_memory import HeldRequest, RequestMemory
from shared.rpc import bodies
from shared.timing.bounded_waits import BoundedWait
from shared.types import Credential, Peer, RequestId, Role

if TYPE_CHECKING:
    from shared.telemetry.tracing import ServingSpan, Traces

S = TypeVar("S")
AnyMethod = Method[Any, Any] | StreamMethod[Any, Any, Any]

_RPC = {"rpc.system": "aimesh"}
#: They check what comes from elsewhere.
_SERVICES = {Role.AUTH, Role.GATEWAY, Role.METRICS, Role.BACKUP}


def most_request_bytes(method: AnyMethod) -> int:
    is_long = isinstance(method, StreamMethod) and method.takes_long_requests
    return wire.MAX_REQUEST_BYTES if is_long else wire.MAX_MESSAGE_BYTES


class RpcCall:
    """What a handler knows about its call."""

    def __init__(self, caller: Peer, *, deadline: float, credential: Credential | None, idempotency_key: str | None) -> None:
        #: The calling node. Its role was checked against the method's callers.
        self.caller = caller
        self.credential = credential
        self.idempotency_key = idempotency_key
        #: The calling user, once authorized; None if the method needs no user.
        self.found: Principal | None = None
        #: The handler counts it in the metrics, under what it serves.
        self.is_counted = False
        self._deadline = deadline

    @property
    def principal(self) -> Principal:
        """Return the calling user, for a method that needs one."""
        assert self.found is not None, "only for methods that need a user"
        return self.found

    @property
    def caller_role(self) -> Role:
        return self.caller.role

    def remaining_seconds(self) -> float:
        """Return the time until the caller's deadline, when the task is canceled."""
        return max(0.0, self._deadline - time.monotonic())


class ReplySink(Protocol):
    """Receives a stream's items."""

    async def send_item(self, call_id: int, body: bytes) -> None: ...

    def accept(self, call_id: int, body: bytes) -> None: ...

    def credited_items(self, call_id: int) -> int: ...


class StreamCall(RpcCall, Generic[Item]):
    """A call whose handler sends items and returns the end."""

    def __init__(
        self,
        call: RpcCall,
        outlet: ReplySink,
        call_id: int,
        *,
        encode: Callable[[msgspec.Struct], bytes] = bodies.encode,
        is_whole: bool = False,
    ) -> None:
        super().__init__(call.caller, deadline=call._deadline, credential=call.credential, idempotency_key=call.idempotency_key)
        self._outlet = outlet
        self._id = call_id
        self._encode = encode
        #: The caller gets all items and the end in one reply, or only an error.
        self.is_whole = is_whole

    def accept(self, accepted: msgspec.Struct | None = None) -> None:
        """Tell the caller that the call was accepted. Optional: the first item implies it."""
        self._outlet.accept(self._id, b"" if accepted is None else bodies.encode(accepted))

    async def send(self, item: Item) -> None:
        """Send an item. Waits for a slow reader. The task is canceled when the caller cancels or the link is lost."""
        await self._outlet.send_item(self._id, self._encode(item))

    @property
    def credited_items(self) -> int:
        """Return how many items the reader has acknowledged."""
        return self._outlet.credited_items(self._id)


@overload
def serves(
    method: Method[Request, Reply],
) -> Callable[[Callable[[S, Request, RpcCall], Awaitable[Reply]]], Callable[[S, Request, RpcCall], Awaitable[Reply]]]: ...
@overload
def serves(
    method: StreamMethod[Request, Item, End],
) -> Callable[[Callable[[S, Request, StreamCall[Item]], Awaitable[End]]], Callable[[S, Request, StreamCall[Item]], Awaitable[End]]]: ...
def serves(method: Any) -> Any:
    """Mark a method of a service class as the handler of an RPC method."""

    def mark(function: Any) -> Any:
        function.serves = method
        return function

    return mark


@dataclass(frozen=True, slots=True)
class Handler:
    method: AnyMethod
    function: Callable[[Any, Any], Awaitable[msgspec.Struct]]


Encode = Callable[[msgspec.Struct], bytes]
Observer = Callable[[AnyMethod, str, float], None]
OnBug = Callable[[AnyMethod, Exception], None]


class Gate(Protocol):
    async def admit(self, method: AnyMethod, request: msgspec.Struct, caller: RpcCall, /) -> Principal | None:
        """Return the caller; None if the method needs no user. Raises an error of the caller, such as NotAllowed."""
        ...


class Dispatcher:
    """The handlers of a node. Its tasks belong to the node's TaskGroup."""

    def __init__(self, tasks: asyncio.TaskGroup, observe: Observer, on_bug: OnBug) -> None:
        self._tasks = tasks
        #: Kept, because get_running_loop() in Python 3.11 calls getpid(), which took 10 % of a call's time.
        self._loop = asyncio.get_running_loop()
        self._observe = observe
        self._on_bug = on_bug
        self._handlers: dict[str, Handler] = {}
        self._running: set[asyncio.Task[Any]] = set()
        #: For the long requests of all links.
        self.memory = RequestMemory()
        #: None in a service that cannot identify users.
        self.gate: Gate | None = None
        #: What follows each handler, before its caller is answered; may change the reply.
        self.finish: Callable[[Any], Awaitable[Any]] | None = None
        self.traces: Traces | None = None
        #: Set when a shutdown starts: running calls finish, new ones are refused, endless streams end.
        self.drain_started = asyncio.Event()

    def add(self, service: object) -> None:
        """Register all methods of ``service`` marked with ``serves``."""
        for name in dir(type(service)):
            method = getattr(getattr(type(service), name), "serves", None)
            if not isinstance(method, (Method, StreamMethod)):
                continue
            if method.name in self._handlers:
                raise ValueError(f"{method.name} has two handlers")
            self._handlers[method.name] = Handler(method, getattr(service, name))

    @property
    def draining(self) -> bool:
        return self.drain_started.is_set()

    @property
    def handlers(self) -> list[Handler]:
        return list(self._handlers.values())

    @property
    def methods(self) -> list[AnyMethod]:
        return [handler.method for handler in self.handlers]

    @property
    def running(self) -> int:
        return len(self._running)

    def find(self, name: str, caller: Peer) -> Handler:
        """Return the handler for a call by this peer. Raises Draining, UnknownMethod or WrongRole."""
        if self.draining:
            raise errors.Draining("this node is shutting down", hint="another node will take the call", retry_after_seconds=0.2)
        handler = self._handlers.get(name)
        if handler is None:
            raise errors.UnknownMethod(f"there is no method {name[:80]!r} here", hint="docs/reference/rpc.md lists them")
        if caller.role not in handler.method.callers:
            allowed = ", ".join(sorted(handler.method.callers))
            raise errors.WrongRole(f"a {caller.role} may not call {name}", hint=f"these may: {allowed}")
        return handler

    def start(self, handler: Handler, frame: wire.Call, caller: Peer, connection: "Replies") -> asyncio.Task[None]:
        """Run a call from a link. The reply goes to ``connection``, which calls ``over`` at the end."""
        task = self._tasks.create_task(self._serve(handler, frame, caller, connection))
        self._running.add(task)
        return task

    def over(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)

    def background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run ``work``, which answers a call from elsewhere (NATS micro), and count it as a running call."""
        task = self._tasks.create_task(work)
        self._running.add(task)
        task.add_done_callback(self.over)
        return task

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count the current task, which belongs to another owner, as a running call."""
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        try:
            yield
        finally:
            self._running.discard(task)

    async def drained(self, grace_seconds: float) -> None:
        """Wait for all running calls, and cancel those that are left after the grace period."""
        if self._running:
            await asyncio.wait(set(self._running), timeout=grace_seconds)
        for task in set(self._running):
            task.cancel()

    async def answer(self, handler: Handler, request: Any, call: RpcCall, encode: Encode = bodies.encode) -> bytes:
        """Run a handler within its deadline and encode its reply. Raises only AimeshError."""
        started = time.monotonic()
        status = "internal"
        deadline = BoundedWait(call.remaining_seconds(), self._loop)
        try:
            with deadline:
                if self.gate is not None:
                    call.found = await self.gate.admit(handler.method, request, call)
                made = await handler.function(request, call)
                reply = encode(made if self.finish is None else await self.finish(made))
            status = "success"
            return reply
        except asyncio.CancelledError:
            status = "cancelled"
            raise
        except errors.AimeshError as error:
            status = errors.code_of(error)
            raise
        except Exception as error:
            if deadline.expired:
                status = errors.DeadlineExceeded.code
                raise errors.DeadlineExceeded(f"{handler.method.name} ran out of time") from error
            self._on_bug(handler.method, error)
            raise errors.Internal("a bug in the service", hint="its log has the details under the request id") from error
        finally:
            if not call.is_counted:
                self._observe(handler.method, status, time.monotonic() - started)

    async def _serve(self, handler: Handler, frame: wire.Call, caller: Peer, connection: "Replies") -> None:
        serving = self._traced(handler.method.name, frame, caller)
        if serving is None:
            await self._settle(handler, frame, caller, connection)
            return
        with serving as span:
            span.attributes = _RPC
            span.error = await self._settle(handler, frame, caller, connection)

    def _traced(self, method: str, frame: wire.Call, caller: Peer) -> "ServingSpan | None":
        """Set the request context. A service's request id continues here, so that the logs of all hops share it. A client's request gets
        a new id: ids become keys of rows, so clients must not choose them."""
        is_from_outside = caller.role is Role.CLIENT
        if self.traces is not None and is_from_outside:
            return self.traces.enter(method, frame.traceparent)
        if is_from_outside:
            context.current.set(context.begin(frame.traceparent))
        elif len(frame.request_id) == 16:
            request_id = RequestId(UUID(bytes=frame.request_id))
            serving = None if self.traces is None else self.traces.join(method, frame.traceparent, request_id)
            if serving is not None:
                return serving
            context.current.set(context.RequestContext(request_id, frame.traceparent))
        return None

    async def _hold_long(self, method: AnyMethod, frame: wire.Call, call: RpcCall) -> HeldRequest:
        """Return the memory of a request longer than a message, once its caller may send it. Its credential must be outside of the body."""
        most_bytes = most_request_bytes(method)
        if frame.body_bytes > most_bytes:
            raise errors.TooLarge(f"the request is {frame.body_bytes} bytes, the limit is {most_bytes}", hint="send less at once")
        caller = None if self.gate is None else await self.gate.admit(method, Nothing(), call)
        return self.memory.hold(frame.body_bytes, None if caller is None else caller.limited_as)

    async def _run(self, handler: Handler, frame: wire.Call, call: RpcCall, connection: "Replies") -> None:
        method = handler.method
        request = bodies.decode_request(method.request, frame.body, method.name)
        if call.caller_role not in _SERVICES:
            bodies.ensure_without_null(request, frame.body, method.name)
        if isinstance(method, StreamMethod):
            connection.end(frame.id, await self.answer(handler, request, StreamCall[Any](call, connection, frame.id)))
        else:
            connection.reply(frame.id, await self.answer(handler, request, call))

    async def _settle(self, handler: Handler, frame: wire.Call, caller: Peer, connection: "Replies") -> str:
        """Run and answer a call. Returns its error code, or an empty string."""
        method = handler.method
        try:
            if frame.deadline_ms <= 0:
                raise errors.DeadlineExceeded(f"the deadline of {method.name} had passed when it arrived")
            until = time.monotonic() + min(frame.deadline_ms, wire.MAX_DEADLINE_MS) / 1000
            context.deadline.set(until)
            call = RpcCall(
                caller,
                deadline=until,
                credential=Credential(frame.credential) if frame.credential else None,
                idempotency_key=frame.idempotency_key or None,
            )
            if frame.more:
                with await self._hold_long(method, frame, call):
                    await self._run(handler, await connection.receive_body(frame), call, connection)
            else:
                await self._run(handler, frame, call, connection)
        except errors.AimeshError as error:
            errors.drop_tracebacks(error)
            connection.fail(frame.id, error)
            return errors.code_of(error)
        except asyncio.CancelledError:
            # If the caller withdrew the call, it ignores this. If we are shutting down, it may retry elsewhere.
            why = errors.Draining("this node had to stop") if self.draining else errors.Cancelled("the call was cancelled")
            connection.fail(frame.id, why)
            raise
        return ""


class Replies(ReplySink, Protocol):
    """Sends outcomes to the caller. Does nothing for a call that is over."""

    async def receive_body(self, call: wire.Call) -> wire.Call:
        """Return a long call with its body."""
        ...

    def reply(self, call_id: int, body: bytes) -> None: ...

    def end(self, call_id: int, body: bytes) -> None: ...

    def fail(self, call_id: int, error: errors.AimeshError) -> None: ...
