"""Serves NATS micro: any NATS client with an operator's key can list this service and call its methods.

Bodies are msgpack, or JSON with the header ``content-type: application/json``. A user's credential is in the header ``authorization:
Bearer …``. With the header ``stream: true`` a streaming method answers with many messages: items with the header ``stream: item``, then
the end with ``stream: end``, or an error.

The caller's role is always operator, because nobody else may publish on these subjects.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import Mapping
from datetime import UTC, datetime

import msgspec

from shared import errors
from shared.api.method import Method, StreamMethod
from shared.node.stock_clients import stock_calls
from shared.node.stock_clients.stock_calls import MAX_ANSWER_BYTES, MAX_STREAMS, CallLimits, StockCall
from shared.protocol import topics
from shared.rpc.serving import AnyMethod, Dispatcher, Handler
from shared.transports.nats.nats_client import NatsClient
from shared.transports.nats.server_connection import NatsMessage
from shared.transports.nats_link import NatsTransport
from shared.types import NodeId, Peer, Role

#: NATS guarantees only the operator's role, not its node.
_OPERATOR = Peer(Role.OPERATOR, NodeId("operator"))
_JSON = "application/json"
_MSGPACK = "application/msgpack"
_HEADER_BYTES = 1024
#: The maximum length of a reply subject. The server drops connections that send lines over 4 KiB.
_MAX_INBOX_BYTES = 256

_to_json = msgspec.json.Encoder().encode


class _Stats(msgspec.Struct, omit_defaults=False):
    """The statistics of one endpoint, as defined by the NATS micro specification (ADR-32)."""

    name: str
    subject: str
    queue_group: str
    num_requests: int = 0
    num_errors: int = 0
    last_error: str = ""
    processing_time: int = 0
    average_processing_time: int = 0


def max_streams(role: Role) -> int:
    """Return how many streams of stock clients a node serves at once: each takes one of its connection's subscriptions."""
    return min(MAX_STREAMS, topics.MAX_SUBSCRIPTIONS[role] // 2)


class Micro:
    """Answers ``$SRV`` discovery and calls on ``aimesh.<mesh>.rpc.<role>.<method>``."""

    def __init__(self, transport: NatsTransport, dispatcher: Dispatcher, description: str, version: str) -> None:
        self._transport = transport
        self._me = transport.me
        self._dispatcher = dispatcher
        self._description = description
        self._version = version if version.count(".") == 2 else "0.0.0"
        self._started = datetime.now(UTC)
        #: Both by the method's name without the service.
        self._stats: dict[str, _Stats] = {}
        self._methods: dict[str, AnyMethod] = {}
        self._limits = CallLimits(max_streams(self._me.role))

    async def start(self) -> None:
        """Subscribe, and wait for the server if there is one. Call it once the dispatcher has its handlers."""
        role = self._me.role
        for handler in self._dispatcher.handlers:
            method = handler.method
            name = method.name.partition(".")[2]
            self._methods[name] = method
            if isinstance(method, Method) or Role.OPERATOR in method.callers:
                self._stats[name] = _Stats(name, topics.micro_endpoint(self._me.mesh, role, name), role)
        for subject in topics.micro_subjects(role):
            self._transport.nats.subscribe(subject, self._on_discovery)
        for subject in topics.micro_endpoints(self._me.mesh, role):
            self._transport.nats.subscribe(subject, self._on_call, queue=role)
        # Without this, clients that call as soon as the node is ready might get the error that nobody serves the method.
        with contextlib.suppress(errors.Unavailable):
            await self._transport.nats.flush()

    def _on_discovery(self, message: NatsMessage) -> None:
        _, verb, *rest = message.subject.decode().split(".")
        if len(rest) == 2 and rest[1] != self._me.node:
            return
        self._respond(message, _to_json(self._described(verb)), {})

    def _described(self, verb: str) -> Mapping[str, object]:
        base: dict[str, object] = {
            "type": f"io.nats.micro.v1.{verb.lower()}_response",
            "name": str(self._me.role),
            "id": self._me.node,
            "version": self._version,
            "metadata": {"service": self._description, "mesh": self._me.mesh},
        }
        if verb == "INFO":
            base["description"] = f"aimesh {self._description}"
            base["endpoints"] = [
                {"name": one.name, "subject": one.subject, "queue_group": one.queue_group, "metadata": self._metadata_of(one.name)}
                for one in self._stats.values()
            ]
        if verb == "STATS":
            base["started"] = self._started.isoformat()
            base["endpoints"] = list(self._stats.values())
        return base

    def _metadata_of(self, name: str) -> dict[str, str]:
        method = self._methods[name]
        form = {"format": f"{_MSGPACK}, {_JSON}"}
        if isinstance(method, Method):
            return form
        return {**form, "stream": "optional" if method.whole is not None else "required"}

    def _on_call(self, message: NatsMessage) -> None:
        """Run each call in its own task, so that a slow one delays no other."""
        name = message.subject.decode().rpartition(".")[2]
        try:
            method = self._methods.get(name)
            handler = self._dispatcher.find(name if method is None else method.name, _OPERATOR)
            streams = isinstance(handler.method, StreamMethod)
            if streams and not _has_inbox(message):
                return  # nobody would get the answer
            release = self._limits.take(streams=streams)
        except errors.AimeshError as error:
            self._count(name, time.monotonic_ns(), error)
            self._fail(message, error)
            return
        task = self._dispatcher.background(self._answer(message, handler))
        task.add_done_callback(lambda _: release())

    async def _answer(self, message: NatsMessage, handler: Handler) -> None:
        name = handler.method.name.partition(".")[2]
        headers = _read_headers(message.headers)
        is_json = headers.get("content-type", "").partition(";")[0].strip() == _JSON
        token, trace = headers.get("authorization", "").removeprefix("Bearer ").strip(), headers.get("traceparent", "")
        started = time.monotonic_ns()
        problem: errors.AimeshError | None = None
        try:
            wants_stream = _wants_stream(headers.get("stream", "false"))
            if wants_stream:
                stock_calls.check_streams(handler)
            stock = stock_calls.read(handler, _OPERATOR, message.payload, is_json=is_json, credential=token, traceparent=trace)
            if wants_stream:
                await self._stream(message, stock)
            else:
                # The limit is unknown while there is no server.
                most_bytes = min(MAX_ANSWER_BYTES, (self._transport.nats.max_payload_bytes or 2 * MAX_ANSWER_BYTES) - _HEADER_BYTES)
                body = await stock_calls.answer(self._dispatcher, stock, most_bytes=most_bytes)
                self._respond(message, body, _content_type(is_json))
        except errors.AimeshError as error:
            problem = error
            self._fail(message, error)
        except asyncio.CancelledError:
            if self._dispatcher.draining:
                self._fail(message, errors.Draining("this node had to stop"))
            raise
        finally:
            self._count(name, started, problem)

    async def _stream(self, message: NatsMessage, stock: StockCall) -> None:
        """Send the items with a reply subject that only this call has. The server reports there when nobody listens to the caller's inbox
        any more, and the caller may write to it to end the stream."""
        nats = self._transport.nats
        task = asyncio.current_task()
        assert task is not None
        ending = topics.micro_endpoint(self._me.mesh, self._me.role, secrets.token_hex(16))
        sid = nats.subscribe(ending, lambda _: task.cancel())
        inbox = _Inbox(nats, message.reply.decode(), ending, _content_type(stock.is_json))
        try:
            inbox.send(await stock_calls.stream(self._dispatcher, stock, inbox), "end")
        finally:
            nats.unsubscribe(sid)

    def _count(self, name: str, started: int, error: errors.AimeshError | None) -> None:
        stats = self._stats.get(name)
        if stats is None:
            return
        if error is not None:
            stats.num_errors += 1
            stats.last_error = error.message
        stats.num_requests += 1
        stats.processing_time += time.monotonic_ns() - started
        stats.average_processing_time = stats.processing_time // stats.num_requests

    def _fail(self, message: NatsMessage, error: errors.AimeshError) -> None:
        problem = error.to_problem()
        headers = {"Nats-Service-Error-Code": str(error.status), "Nats-Service-Error": problem.message.replace("\n", " ")[:500]}
        body = _to_json({"error": {"code": problem.code, "message": problem.message, "hint": problem.hint}})
        self._respond(message, body, {**headers, "content-type": _JSON})

    def _respond(self, message: NatsMessage, body: bytes, headers: dict[str, str]) -> None:
        if _has_inbox(message):
            self._transport.nats.publish(message.reply.decode(), body, headers=headers)


class _Inbox:
    """The destination of one stream. NATS has no end-to-end flow control: we wait for room in our own connection, and the server
    disconnects a caller that does not read."""

    def __init__(self, nats: NatsClient, inbox: str, ending: str, headers: dict[str, str]) -> None:
        self._nats = nats
        self._inbox = inbox
        self._ending = ending
        self._headers = headers
        self._sent = 0
        #: To notice a reconnect: messages sent in between are lost.
        self._connection = nats.reconnects

    def accept(self, call_id: int, body: bytes) -> None:
        """Nothing to send before the first item."""

    async def send_item(self, call_id: int, body: bytes) -> None:
        await self._nats.wait_for_room()
        self.send(body, "item")
        self._sent += 1

    def send(self, body: bytes, kind: str) -> None:
        """Raises LinkLost if earlier messages may be lost."""
        if not self._nats.connected or self._nats.reconnects != self._connection:
            raise errors.LinkLost("the connection to the NATS server was lost and part of the stream with it", retry_after_seconds=1)
        self._nats.publish(self._inbox, body, reply=self._ending, headers={**self._headers, "stream": kind})

    def credited_items(self, call_id: int) -> int:
        return self._sent


def _read_headers(block: bytes) -> dict[str, str]:
    """Return the headers with lowercase names. The last of several values counts."""
    lines = (line.partition(":") for line in block.decode(errors="replace").split("\r\n")[1:])
    return {name.strip().lower(): value.strip() for name, colon, value in lines if colon}


def _has_inbox(message: NatsMessage) -> bool:
    """Check the reply subject, which the caller chooses: our NATS user may publish to other subjects than inboxes."""
    return message.reply.startswith(b"_INBOX.") and len(message.reply) <= _MAX_INBOX_BYTES and message.reply.isascii()


def _content_type(is_json: bool) -> dict[str, str]:
    return {"content-type": _JSON if is_json else _MSGPACK}


def _wants_stream(header: str) -> bool:
    if header not in ("true", "false"):
        raise errors.BadRequest(f"the header stream is {header[:20]!r}", hint="use true or false")
    return header == "true"
