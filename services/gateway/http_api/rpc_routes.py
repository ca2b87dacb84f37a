"""Serves POST /rpc/{service}.{method}: every method of the contract that people may call, as JSON over HTTP.

The gateway runs its own methods in this process. It forwards the others over the mesh with the caller's credential. Streams are
server-sent events: items without a name, then one `end`, or one `error`.
"""

import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Annotated, Any

import msgspec

from services.gateway.facts.bad_field import BadField
from services.gateway.http_api import http_app, request_bodies, response_formats
from services.gateway.http_api.http_app import HttpRoute
from services.gateway.http_api.http_call import HttpCall
from services.gateway.http_api.response_formats import ServerSentEvent
from shared import access_table, context, errors
from shared.api import auth, declared, embedding, gateway
from shared.api.embedding import RequestEmbeddings
from shared.api.gateway import InferenceChunk, ProcessInferenceRequest
from shared.api.method import Method, StreamMethod
from shared.node.stock_clients import stock_calls
from shared.protocol import wire
from shared.rpc import Handler, RpcCall, RpcClient, StreamCall, authorization
from shared.rpc.serving import AnyMethod
from shared.timing.bounded_waits import BoundedWait
from shared.types import NodeId, Peer, RequestId, Role

_CALL_SECONDS, _STREAM_SECONDS = 10.0, 300.0
_RUN_MODELS = frozenset({gateway.process_inference_request.name, embedding.request_embeddings.name, embedding.request_ranking.name})

_encode = msgspec.json.Encoder().encode

#: Runs a handler with a request.
Run = Callable[[RpcCall], Awaitable[msgspec.Struct]]
#: May change the reply of a handler, as ``Dispatcher.finish``.
Finish = Callable[[Any], Awaitable[Any]]


class RpcQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    #: The node to ask, for methods of other services. Default: the least loaded one.
    to: NodeId | None = None
    #: How long the caller waits.
    deadline_ms: Annotated[int, msgspec.Meta(ge=1, le=wire.MAX_DEADLINE_MS)] | None = None


def methods() -> Iterator[AnyMethod]:
    """Return the methods for people. Workers don't act for users, so a method for them is about the calling node itself."""
    return (method for method in declared.methods() if Role.CLIENT in method.callers and Role.WORKER not in method.callers)


class RpcRoutes:
    def __init__(self, rpc: RpcClient, own: Callable[[str, Peer], Handler], node: NodeId, finish: Finish) -> None:
        """``own`` finds the handlers of ``node``, this gateway. It raises Draining. ``finish`` follows each of them."""
        self._rpc = rpc
        self._own = own
        self._finish = finish
        #: People reach the gateway as clients, whatever the connection.
        self._peer = Peer(Role.CLIENT, node)

    def routes(self) -> tuple[HttpRoute, ...]:
        return tuple(
            HttpRoute(
                verb="POST",
                path=access_table.RPC_PATH + method.name,
                handler=partial(self._stream, method) if isinstance(method, StreamMethod) else partial(self._answer, method),
                method=method.name.partition(".")[2],
                summary=method.name,
                body=method.request,
                runs_a_model=method.name in _RUN_MODELS,
                watches=isinstance(method, Method),
            )
            for method in methods()
        )

    async def _answer(self, method: Method[Any, Any], call: HttpCall) -> None:
        run, rpc_call = await self._read(method, call, _CALL_SECONDS)

        async def answering() -> None:
            await call.answer(await run(rpc_call))

        # Watching for a disconnect costs as much as the rest of this, so a call that ends soon anyway goes without.
        is_short = rpc_call.remaining_seconds() <= _CALL_SECONDS
        await (answering() if is_short else http_app.until_disconnect(call, answering()))

    async def _stream(self, method: StreamMethod[Any, Any, Any], call: HttpCall) -> None:
        run, rpc_call = await self._read(method, call, _STREAM_SECONDS)
        call.expect_events(lambda error: (ServerSentEvent(error, "error"),))
        sink = _EventSink(call)
        stream = StreamCall[Any](rpc_call, sink, 0, encode=sink.encode)
        stream.found = call.principal
        end = await run(stream)
        await call.send_events((ServerSentEvent(end, "end"),))
        await call.end_events()

    async def _read(self, method: AnyMethod, call: HttpCall, default_seconds: float) -> tuple[Run, RpcCall]:
        """Return what runs the call, and the call. Raises BadRequest, which names a wrong field, and Draining."""
        query = request_bodies.read_query(call.query, RpcQuery)
        seconds = default_seconds if query.deadline_ms is None else query.deadline_ms / 1000
        if call.principal is None:
            seconds = min(seconds, default_seconds)  # there are few places for callers without a credential
        request = _with_facts(await call.parse(partial(_parse_request, method)), call)
        until = time.monotonic() + seconds
        context.deadline.set(until)
        rpc_call = RpcCall(self._peer, deadline=until, credential=call.credential, idempotency_key=call.idempotency_key)
        rpc_call.found = call.principal
        if method.served_by is not Role.GATEWAY:
            return partial(self._forward, method, query.to, request), rpc_call
        if query.to not in (None, self._peer.node):
            raise BadField("to", "is not this gateway; omit it for methods of the gateway")
        return partial(_run_here, self._own(method.name, self._peer), self._finish, request), rpc_call

    async def _forward(self, method: AnyMethod, to: NodeId | None, request: msgspec.Struct, call: RpcCall) -> msgspec.Struct:
        seconds = call.remaining_seconds()
        if isinstance(method, Method):
            reply: msgspec.Struct = await self._rpc.call(method, request, to=to, deadline_seconds=seconds, credential=call.credential)
            return reply
        assert isinstance(call, StreamCall)
        async with self._rpc.stream(method, request, to=to, deadline_seconds=seconds, credential=call.credential) as answer:
            async for item in answer:
                await call.send(item)
            end: msgspec.Struct = answer.end
            return end


async def _run_here(handler: Handler, finish: Finish, request: msgspec.Struct, call: RpcCall) -> msgspec.Struct:
    """Raises DeadlineExceeded, and what the handler raises. A forwarded call has its deadline in the client."""
    try:
        with BoundedWait(call.remaining_seconds()):
            reply: msgspec.Struct = await finish(await handler.function(request, call))
            return reply
    except TimeoutError as error:
        raise errors.DeadlineExceeded(f"{handler.method.name} ran out of time", hint="give it longer with deadline_ms") from error


def _parse_request(method: AnyMethod, body: bytes) -> msgspec.Struct:
    found = request_bodies.read_object(body or b"{}")
    if unknown := stock_calls.find_unknown_field(method.request, found):
        raise BadField(unknown[:80], "is not a supported field", known="")
    request: msgspec.Struct = request_bodies.convert(found, method.request)
    return request


def _with_facts(request: msgspec.Struct, call: HttpCall) -> msgspec.Struct:
    authorization.credential_of(request, call.credential)
    if "client" in request.__struct_fields__:
        # The services believe the gateway, so callers must not choose their own address.
        request = msgspec.structs.replace(request, client=auth.ClientFacts(call.address or "", call.agent))
    if isinstance(request, ProcessInferenceRequest | RequestEmbeddings) and request.idempotency_key is None:
        request = msgspec.structs.replace(request, idempotency_key=call.idempotency_key)
    if isinstance(request, ProcessInferenceRequest) and call.last_event_id is not None:
        request = msgspec.structs.replace(request, rest=response_formats.read_event_id(call.last_event_id))
    return request


class _EventSink:
    """Sends a stream's items as events. The chunks of an answer have ids, with which a reader resumes it."""

    def __init__(self, call: HttpCall) -> None:
        self._call = call
        self._sent = 0
        self._request_id: RequestId | None = None
        self._ids = ""
        self._event_id: str | None = None

    def encode(self, item: msgspec.Struct) -> bytes:
        if isinstance(item, InferenceChunk):
            if item.request_id is not None and item.request_id != self._request_id:
                self._request_id, self._ids = item.request_id, response_formats.event_id_start(item.request_id)
            self._event_id = f"{self._ids}{item.sequence}" if item.sequence and self._ids else None
        return _encode(item)

    def accept(self, call_id: int, body: bytes) -> None:
        """Do nothing: there is nothing to send before the first item."""

    async def send_item(self, call_id: int, body: bytes) -> None:
        await self._call.send_events((ServerSentEvent(body),), self._event_id)
        self._sent += 1

    def credited_items(self, call_id: int) -> int:
        return self._sent
