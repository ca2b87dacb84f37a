"""Calls by NATS clients with an operator's key and by stock @hyperswarm/rpc clients.

Bodies are msgpack or JSON, and answers use the same format. A streaming method returns one whole answer if the contract defines one, or
the caller asks for the stream.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import msgspec
from msgspec import inspect

from shared import context, errors
from shared.api.method import Method, StreamMethod
from shared.rpc import bodies
from shared.rpc.serving import Dispatcher, Handler, ReplySink, RpcCall, StreamCall
from shared.timing.concurrency_limit import ConcurrencyLimit
from shared.types import Credential, Peer


@dataclass(slots=True)
class _Shape:
    """The fields of a type. Types without fields have no shape, because checking a million strings would block the loop for seconds."""

    fields: "dict[str, _Shape | None] | None" = None
    tag: str | None = None
    item: "_Shape | None" = None
    #: The members of a union. The contract has no union of two structs.
    others: "list[_Shape]" = field(default_factory=list)


def find_unknown_field(kind: type[msgspec.Struct], value: object) -> str | None:
    """Return the path of the first field of ``value`` (decoded without a type) that ``kind`` does not have."""
    shape = _shape_of(kind)
    return None if shape is None else _find(shape, value, "")


def _find(shape: _Shape, value: Any, path: str) -> str | None:
    if shape.fields is not None and isinstance(value, dict):
        for name, inner in value.items():
            if name == shape.tag:
                continue
            inner_path = f"{path}.{name}" if path else str(name)
            if name not in shape.fields:
                return inner_path
            if (inner_shape := shape.fields[name]) is not None and (found := _find(inner_shape, inner, inner_path)):
                return found
    if shape.item is not None and isinstance(value, list):
        for position, inner in enumerate(value):
            if found := _find(shape.item, inner, f"{path}.{position}"):
                return found
    return next((found for other in shape.others if (found := _find(other, value, path))), None)


@lru_cache(maxsize=512)
def _shape_of(kind: type[msgspec.Struct]) -> _Shape | None:
    return _compile(inspect.type_info(kind), {})


def _compile(kind: inspect.Type, known: dict[type, _Shape]) -> _Shape | None:
    match kind:
        case inspect.StructType():
            if kind.cls not in known:
                shape = known[kind.cls] = _Shape(fields={}, tag=kind.tag_field)
                shape.fields = {one.encode_name: _compile(one.type, known) for one in kind.fields}
            return known[kind.cls]
        case inspect.UnionType():
            others = [found for each in kind.types if (found := _compile(each, known)) is not None]
            return _Shape(others=others) if others else None
        case inspect.VarTupleType() | inspect.ListType():
            item = _compile(kind.item_type, known)
            return None if item is None else _Shape(item=item)
        case _:
            return None


MAX_RUNNING = 64
DEADLINE_SECONDS = 10.0
#: Concurrent calls of streaming methods. They have a limit of their own, because each may take minutes.
MAX_STREAMS = 256
#: The longest REQUEST_TIMEOUT_SECONDS: the gateway has its own timeout for inference.
STREAM_DEADLINE_SECONDS = 3600.0
MAX_BODY_BYTES = 1024 * 1024
#: By default, NATS servers accept messages of 1 MiB, headers included.
MAX_ANSWER_BYTES = 1_000_000
#: The share of it for the end of the stream.
_END_BYTES = 4096

_to_json = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class StockCall:
    """A call with a valid body."""

    handler: Handler
    peer: Peer
    request: Any
    is_json: bool
    credential: str
    traceparent: str

    @property
    def encode(self) -> Callable[[Any], bytes]:
        return encoder(is_json=self.is_json)


def encoder(*, is_json: bool) -> Callable[[Any], bytes]:
    return _to_json if is_json else bodies.encode


class CallLimits:
    """Limits concurrent calls."""

    def __init__(self, max_streams: int = MAX_STREAMS) -> None:
        self._max_streams = max_streams
        self._limits = {False: ConcurrencyLimit(MAX_RUNNING), True: ConcurrencyLimit(max_streams)}

    def take(self, *, streams: bool) -> Callable[[], None]:
        """Count a call. Returns the function that ends the count. Raises Overloaded."""
        limit = self._limits[streams]
        if limit.is_full:
            what, most = ("streams", self._max_streams) if streams else ("calls", MAX_RUNNING)
            raise errors.Overloaded(f"{most} {what} of stock clients are running", hint="try another node", retry_after_seconds=1)
        limit.enter()
        return limit.leave


def read(handler: Handler, peer: Peer, body: bytes, *, is_json: bool, credential: str = "", traceparent: str = "") -> StockCall:
    """Decode a call for a handler from ``dispatcher.find``. Raises BadRequest, TooLarge."""
    method = handler.method
    if len(body) > MAX_BODY_BYTES:
        raise errors.TooLarge(f"the request has {len(body)} bytes; the limit is {MAX_BODY_BYTES}", hint="shorten or split it")
    body = body or (b"{}" if is_json else b"\x80")
    try:
        # The typed decoder ignores unknown fields, so a second decoding checks the names.
        request: Any = msgspec.json.decode(body, type=method.request) if is_json else bodies.decoder(method.request)(body)
        bodies.ensure_without_null(request, b"\0", method.name)
        value = msgspec.json.decode(body) if is_json else msgspec.msgpack.decode(body)
    except (msgspec.MsgspecError, RecursionError, ValueError, TypeError, OverflowError) as error:
        raise bodies.bad_request(error, method.request, method.name) from error
    if unknown := find_unknown_field(method.request, value):
        raise errors.BadRequest(
            f"{method.name}: there is no field {unknown[:80]!r}", hint="docs/reference/rpc.md has the fields of every method"
        )
    return StockCall(handler, peer, request, is_json, credential, traceparent)


async def answer(dispatcher: Dispatcher, stock: StockCall, *, most_bytes: int = MAX_ANSWER_BYTES) -> bytes:
    """Run the call and return its one answer. Raises only AimeshError. An answer over ``most_bytes`` ends its stream with TooLarge."""
    method = stock.handler.method
    if isinstance(method, Method):
        return await dispatcher.answer(stock.handler, stock.request, _call(stock, DEADLINE_SECONDS), stock.encode)
    whole = method.whole
    if whole is None:
        raise errors.BadRequest(f"{method.name} only streams its answer", hint="request the stream; see docs/protocol.md")
    gathered = _GatheredItems(method, stock.encode, most_bytes - _END_BYTES)
    call = StreamCall[Any](_call(stock, STREAM_DEADLINE_SECONDS), gathered, 0, is_whole=True)
    return await dispatcher.answer(stock.handler, stock.request, call, lambda end: stock.encode(whole.of(gathered.items, end)))


async def stream(dispatcher: Dispatcher, stock: StockCall, outlet: ReplySink) -> bytes:
    """Run the call, send its items to ``outlet``, and return the end. Raises only AimeshError."""
    call = StreamCall[Any](_call(stock, STREAM_DEADLINE_SECONDS), outlet, 0, encode=stock.encode)
    return await dispatcher.answer(stock.handler, stock.request, call, stock.encode)


def check_streams(handler: Handler) -> None:
    """Raises BadRequest for a method that does not stream."""
    if not isinstance(handler.method, StreamMethod):
        raise errors.BadRequest(f"{handler.method.name} does not stream", hint="call it without asking for a stream")


class _GatheredItems:
    """Collects a stream's items for one answer."""

    def __init__(self, method: StreamMethod[Any, Any, Any], encode: Callable[[Any], bytes], most_bytes: int) -> None:
        assert method.whole is not None
        self.items: list[Any] = []
        self._whole = method.whole
        self._decode = bodies.decoder(method.item)
        self._encode = encode
        self._most_bytes = most_bytes
        self._bytes = 0

    def accept(self, call_id: int, body: bytes) -> None:
        """Nothing to send before the answer."""

    async def send_item(self, call_id: int, body: bytes) -> None:
        item = self._decode(body)
        parts = [part for part in self._whole.parts_of(item) if part]
        # Joining texts or lists drops at least one of the two delimiters of each.
        size = sum(len(self._encode(part)) - 1 for part in parts)
        if self._bytes + size > self._most_bytes:
            raise errors.TooLarge(
                f"the answer has more than {self._most_bytes} bytes, the limit of one message",
                hint="ask for fewer tokens, or for the stream; see docs/protocol.md",
            )
        if parts:
            self.items.append(item)
            self._bytes += size

    def credited_items(self, call_id: int) -> int:
        return len(self.items)


def _call(stock: StockCall, seconds: float) -> RpcCall:
    context.start(stock.traceparent)
    until = time.monotonic() + seconds
    context.deadline.set(until)
    credential = Credential(stock.credential) if stock.credential else None
    return RpcCall(stock.peer, deadline=until, credential=credential, idempotency_key=None)
