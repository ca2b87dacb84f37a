"""Calls by stock @hyperswarm/rpc clients in JavaScript: unary methods, in JSON or msgpack, by who has shown a client certificate.

Noise has proved the caller's key. The first request is `hello` with the certificate for that key, and with the user's
credential if the methods to follow need one; a key that is on the allow-list needs no certificate.
"""

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Annotated

import msgspec

from shared import certificates, errors, identity, topics
from shared.api.method import Method
from shared.hyperswarm import Request, RequestRefused
from shared.node import single_calls
from shared.rpc.serving import Dispatcher
from shared.trust import Trust
from shared.types import NodeId, Peer, Role

#: Connections whose introduction is remembered; whoever was forgotten introduces itself again.
MAX_VISITORS = 1024
#: Calls of outsiders that may run at once here.
MAX_RUNNING = 64
HELLO = "hello"


class Introduction(msgspec.Struct, frozen=True):
    #: As `aicli mesh export` prints it; empty for a key on the allow-list.
    certificate: bytes = b""
    #: The user's key or token.
    credential: Annotated[str, msgspec.Meta(max_length=1024)] = ""


class Welcome(msgspec.Struct, frozen=True):
    node: NodeId
    role: Role
    #: What may be called here; a stream may not, because there is one answer alone.
    methods: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Visitor:
    peer: Peer
    #: Seconds since 1970: when its certificate ends.
    until: float
    credential: str


_to_json = msgspec.json.Encoder().encode
_to_msgpack = msgspec.msgpack.Encoder().encode


class Outsiders:
    def __init__(
        self, trust: Trust, dispatcher: Dispatcher, allowed: Collection[bytes] = (), clock: Callable[[], float] = time.time
    ) -> None:
        self._trust = trust
        self._dispatcher = dispatcher
        self._allowed = frozenset(allowed)
        self._clock = clock
        #: By the hash of the connection's handshake.
        self._visitors: OrderedDict[bytes, _Visitor] = OrderedDict()
        self._running = 0

    async def answer(self, request: Request) -> bytes:
        """Raises RequestRefused alone."""
        try:
            if self._running >= MAX_RUNNING:
                raise errors.Overloaded(f"{MAX_RUNNING} calls of outsiders are running", retry_after_seconds=1)
            self._running += 1
            try:
                with self._dispatcher.counting():
                    return await self._answer(request)
            finally:
                self._running -= 1
        except errors.AimeshError as error:
            problem = error.to_problem()
            raise RequestRefused(problem.code, f"{problem.message} – {problem.hint}" if problem.hint else problem.message) from error

    async def _answer(self, request: Request) -> bytes:
        # A msgpack map never begins with the brace.
        is_json = request.value[:1] in (b"{", b"")
        self._trust.check_not_revoked(identity.node_of(request.key))
        if not topics.may_link(self._trust.role, Role.CLIENT):
            raise errors.WrongRole(f"a {self._trust.role} takes no calls of clients", hint="call a gateway or auth")
        if request.method == HELLO:
            visitor = self._introduce(request, is_json=is_json)
            return (_to_json if is_json else _to_msgpack)(Welcome(visitor.peer.node, visitor.peer.role, self._methods()))
        visitor = self._find(request)
        handler = self._dispatcher.find(request.method, visitor.peer)
        return await single_calls.answer(
            self._dispatcher, handler, visitor.peer, request.value, is_json=is_json, credential=visitor.credential
        )

    def _introduce(self, request: Request, *, is_json: bool) -> _Visitor:
        decode = msgspec.json.decode if is_json else msgspec.msgpack.decode
        try:
            said = decode(request.value or b"{}", type=Introduction)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise errors.BadRequest(f"hello: {error}", hint="it has the fields certificate and credential") from error
        if said.certificate or request.key not in self._allowed:
            visitor = self._certified(request, said)
        else:
            visitor = self._allow_listed(request, said.credential)
        self._visitors[request.channel] = visitor
        self._visitors.move_to_end(request.channel)
        if len(self._visitors) > MAX_VISITORS:
            self._visitors.popitem(last=False)
        return visitor

    def _certified(self, request: Request, said: Introduction) -> _Visitor:
        node = identity.node_of(request.key)
        found = certificates.check(said.certificate, self._trust.authorities, self._clock())
        if found.node != node:
            raise errors.NotCertified("the certificate is for another key than the one that was proved")
        if found.role is not Role.CLIENT:
            raise errors.WrongRole(f"a {found.role} calls over a link, not this way", hint="a ticket for a client makes a key for this")
        peer = Peer(Role.CLIENT, node, node, found.owner, found.labels, request.channel)
        return _Visitor(peer, found.not_after, said.credential)

    def _allow_listed(self, request: Request, credential: str = "") -> _Visitor:
        node = identity.node_of(request.key)
        return _Visitor(Peer(Role.CLIENT, node, node, channel=request.channel), math.inf, credential)

    def _find(self, request: Request) -> _Visitor:
        visitor = self._visitors.get(request.channel)
        if visitor is None:
            if request.key not in self._allowed:
                raise errors.NotCertified("you have not introduced yourself", hint="call `hello` with your certificate first")
            return self._allow_listed(request)
        if self._clock() > visitor.until + certificates.LEEWAY_SECONDS:
            raise errors.CertificateExpired("your certificate has ended", hint="call `hello` with a new one: `aicli mesh export` has it")
        self._visitors.move_to_end(request.channel)
        return visitor

    def _methods(self) -> tuple[str, ...]:
        found = (handler.method for handler in self._dispatcher.handlers)
        return tuple(sorted(method.name for method in found if isinstance(method, Method) and Role.CLIENT in method.callers))
