"""Serves stock @hyperswarm/rpc clients (JavaScript), in JSON or msgpack.

Noise has proved the client's key. Its first request is `hello`, with the certificate for that key and, if needed, the user's credential; a
key on the allow-list needs no certificate. `METHOD.stream` starts a method's stream, `stream.next` gets its next items, and `stream.stop`
ends it.
"""

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Annotated, TypeVar

import msgspec
from pyhyperswarm import Request, RequestRefused

from shared import errors
from shared.api.method import Method, Nothing, StreamMethod
from shared.identity import certificates, node_keys
from shared.identity.trust import Trust
from shared.node.stock_clients import stock_calls
from shared.node.stock_clients.pulled_streams import PulledStream, PulledStreams
from shared.node.stock_clients.stock_calls import CallLimits
from shared.protocol import topics
from shared.rpc.serving import Dispatcher
from shared.types import NodeId, Peer, Role

#: Connections to remember. A forgotten client must send `hello` again.
MAX_CLIENTS = 1024
HELLO, NEXT, STOP = "hello", "stream.next", "stream.stop"
#: The suffix of a method's name that asks for its stream.
STREAM = ".stream"


class Introduction(msgspec.Struct, frozen=True):
    #: As printed by `aicli mesh export`; empty for a key on the allow-list.
    certificate: bytes = b""
    credential: Annotated[str, msgspec.Meta(max_length=1024)] = ""


class Welcome(msgspec.Struct, frozen=True):
    node: NodeId
    role: Role
    methods: tuple[str, ...]


class _Handle(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    handle: int


@dataclass(frozen=True, slots=True)
class _StockClient:
    peer: Peer
    #: When its certificate expires, in seconds since 1970.
    until: float
    credential: str


T = TypeVar("T")


class StockRpcClients:
    def __init__(
        self, trust: Trust, dispatcher: Dispatcher, allowed: Collection[bytes] = (), clock: Callable[[], float] = time.time
    ) -> None:
        self._trust = trust
        self._dispatcher = dispatcher
        self._allowed = frozenset(allowed)
        self._clock = clock
        self._clients: OrderedDict[bytes, _StockClient] = OrderedDict()
        self._limits = CallLimits()
        self._streams = PulledStreams(dispatcher)

    async def answer(self, request: Request) -> bytes:
        """Raises only RequestRefused."""
        try:
            with self._dispatcher.counting():
                return await self._answer(request)
        except errors.AimeshError as error:
            problem = error.to_problem()
            raise RequestRefused(problem.code, f"{problem.message} – {problem.hint}" if problem.hint else problem.message) from error

    def gone(self, channel: bytes) -> None:
        self._clients.pop(channel, None)
        self._streams.stop_all(channel)

    async def _answer(self, request: Request) -> bytes:
        # A msgpack map never begins with a brace.
        is_json = request.value[:1] in (b"{", b"")
        self._trust.check_not_revoked(node_keys.node_of(request.key))
        if not topics.may_call(self._trust.role, Role.CLIENT):
            raise errors.WrongRole(f"a {self._trust.role} does not serve clients", hint="call a gateway or auth")
        if request.method == HELLO:
            client = self._introduce(request, is_json=is_json)
            return stock_calls.encoder(is_json=is_json)(Welcome(client.peer.node, client.peer.role, self._methods()))
        client = self._find(request)
        if request.method == NEXT:
            return await self._find_stream(request, is_json=is_json).next()
        if request.method == STOP:
            self._find_stream(request, is_json=is_json).stop()
            return stock_calls.encoder(is_json=is_json)(Nothing())
        return await self._call(client, request, is_json=is_json)

    async def _call(self, client: _StockClient, request: Request, *, is_json: bool) -> bytes:
        handler = self._dispatcher.find(request.method.removesuffix(STREAM), client.peer)
        release = self._limits.take(streams=isinstance(handler.method, StreamMethod))
        is_stream_wanted = request.method.endswith(STREAM)
        is_started = False
        try:
            if is_stream_wanted:
                stock_calls.check_streams(handler)
            stock = stock_calls.read(handler, client.peer, request.value, is_json=is_json, credential=client.credential)
            if not is_stream_wanted:
                return await stock_calls.answer(self._dispatcher, stock)
            started = self._streams.start(
                request.channel, stock.encode, lambda outlet: stock_calls.stream(self._dispatcher, stock, outlet), release
            )
            is_started = True
            return started
        finally:
            if not is_started:
                release()

    def _find_stream(self, request: Request, *, is_json: bool) -> PulledStream:
        handle = _decode(request, _Handle, "it needs the field handle", is_json=is_json).handle
        return self._streams.find(request.channel, handle)

    def _introduce(self, request: Request, *, is_json: bool) -> _StockClient:
        introduction = _decode(request, Introduction, "it needs the fields certificate and credential", is_json=is_json)
        if introduction.certificate or request.key not in self._allowed:
            client = self._certified(request, introduction)
        else:
            client = self._allow_listed(request, introduction.credential)
        self._clients[request.channel] = client
        self._clients.move_to_end(request.channel)
        if len(self._clients) > MAX_CLIENTS:
            self._clients.popitem(last=False)
        return client

    def _certified(self, request: Request, introduction: Introduction) -> _StockClient:
        node = node_keys.node_of(request.key)
        found = certificates.check(introduction.certificate, self._trust.authorities, self._clock())
        if found.node != node:
            raise errors.NotCertified("the certificate is for another key than the connection's")
        if found.role is not Role.CLIENT:
            raise errors.WrongRole(f"a {found.role} must call over a link", hint="use the key of a client's ticket here")
        peer = Peer(Role.CLIENT, node, node, found.owner, found.labels, request.channel)
        return _StockClient(peer, found.not_after, introduction.credential)

    def _allow_listed(self, request: Request, credential: str = "") -> _StockClient:
        node = node_keys.node_of(request.key)
        return _StockClient(Peer(Role.CLIENT, node, node, channel=request.channel), math.inf, credential)

    def _find(self, request: Request) -> _StockClient:
        client = self._clients.get(request.channel)
        if client is None:
            if request.key not in self._allowed:
                raise errors.NotCertified("no certificate was sent on this connection", hint="call `hello` with your certificate first")
            return self._allow_listed(request)
        if self._clock() > client.until + certificates.LEEWAY_SECONDS:
            raise errors.CertificateExpired("your certificate has expired", hint="call `hello` with a new one from `aicli mesh export`")
        self._clients.move_to_end(request.channel)
        return client

    def _methods(self) -> tuple[str, ...]:
        found = [handler.method for handler in self._dispatcher.handlers if Role.CLIENT in handler.method.callers]
        streams = [method for method in found if isinstance(method, StreamMethod)]
        whole = [method.name for method in found if isinstance(method, Method) or method.whole is not None]
        return tuple(sorted(whole + [method.name + STREAM for method in streams]))


def _decode(request: Request, kind: type[T], hint: str, *, is_json: bool) -> T:
    decode = msgspec.json.decode if is_json else msgspec.msgpack.decode
    try:
        return decode(request.value or b"{}", type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise errors.BadRequest(f"{request.method}: {error}", hint=hint) from error
