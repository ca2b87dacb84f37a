"""NATS micro: any NATS client with an operator's key can list this service and call its unary methods.

Bodies are msgpack, or JSON with the header ``content-type: application/json``. A user's credential comes in the header
``authorization: Bearer …``. The caller's role is always operator: nobody else may publish on these subjects, and the names
in the answers are self-asserted, so the mesh itself uses none of this.
"""

import asyncio
import time
from collections.abc import Mapping
from datetime import UTC, datetime

import msgspec

from shared import errors, topics
from shared.api.method import Method
from shared.nats import protocol
from shared.nats.protocol import Message
from shared.nats_link import NatsTransport
from shared.node import single_calls
from shared.rpc.serving import Dispatcher
from shared.types import NodeId, Peer, Role

#: Calls of operators that may run at once here.
MAX_RUNNING = 64
#: An operator's node is not told by NATS; only its role is.
_OPERATOR = Peer(Role.OPERATOR, NodeId("operator"))
_JSON = "application/json"
_MSGPACK = "application/msgpack"

_to_json = msgspec.json.Encoder().encode


class _Stats(msgspec.Struct, omit_defaults=False):
    """One endpoint's numbers, as the NATS micro specification (ADR-32) names them."""

    name: str
    subject: str
    queue_group: str
    num_requests: int = 0
    num_errors: int = 0
    last_error: str = ""
    #: Nanoseconds.
    processing_time: int = 0
    average_processing_time: int = 0


class Micro:
    """Answers ``$SRV`` discovery and calls on ``aimesh.<mesh>.rpc.<role>.<method>``."""

    def __init__(self, transport: NatsTransport, dispatcher: Dispatcher, description: str, version: str) -> None:
        self._transport = transport
        self._me = transport.me
        self._dispatcher = dispatcher
        self._description = description
        #: ADR-32 wants semantic versions.
        self._version = version if version.count(".") == 2 else "0.0.0"
        self._started = datetime.now(UTC)
        self._stats: dict[str, _Stats] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Subscribe, once the dispatcher has its handlers."""
        role = self._me.role
        for handler in self._dispatcher.handlers:
            if isinstance(handler.method, Method):
                subject = topics.micro_endpoint(self._me.mesh, role, handler.method.name)
                self._stats[subject] = _Stats(handler.method.name.partition(".")[2], subject, role)
        for subject in topics.micro_subjects(role):
            self._transport.nats.subscribe(subject, self._on_discovery)
        self._transport.nats.subscribe(f"aimesh.{self._me.mesh}.rpc.{role}.*", self._on_call, queue=role)

    # --- discovery --------------------------------------------------------------------------------------------------

    def _on_discovery(self, message: Message) -> None:
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
                {"name": one.name, "subject": one.subject, "queue_group": one.queue_group, "metadata": {"format": f"{_MSGPACK}, {_JSON}"}}
                for one in self._stats.values()
            ]
        if verb == "STATS":
            base["started"] = self._started.isoformat()
            base["endpoints"] = list(self._stats.values())
        return base

    # --- calls ------------------------------------------------------------------------------------------------------

    def _on_call(self, message: Message) -> None:
        """Hand the call to a task of the dispatcher's group, so that a slow one holds nobody up."""
        if len(self._tasks) >= MAX_RUNNING:
            self._fail(message, errors.Overloaded(f"{MAX_RUNNING} operator calls are running", retry_after_seconds=1))
            return
        task = self._dispatcher.background(self._answer(message))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, message: Message) -> None:
        subject = message.subject.decode()
        stats = self._stats.get(subject)
        headers = protocol.decode_headers(message.headers)
        started = time.monotonic_ns()
        try:
            name = stats.name if stats else subject.rpartition(".")[2]
            handler = self._dispatcher.find(self._full_name(name), _OPERATOR)
            is_json = headers.get("content-type", "").partition(";")[0].strip() == _JSON
            token, trace = headers.get("authorization", "").removeprefix("Bearer ").strip(), headers.get("traceparent", "")
            body = await single_calls.answer(
                self._dispatcher, handler, _OPERATOR, message.payload, is_json=is_json, credential=token, traceparent=trace
            )
            self._respond(message, body, {"content-type": _JSON if is_json else _MSGPACK})
        except errors.AimeshError as error:
            if stats:
                stats.num_errors += 1
                stats.last_error = error.message
            self._fail(message, error)
        finally:
            if stats:
                stats.num_requests += 1
                stats.processing_time += time.monotonic_ns() - started
                stats.average_processing_time = stats.processing_time // stats.num_requests

    def _full_name(self, name: str) -> str:
        for handler in self._dispatcher.handlers:
            if handler.method.name.partition(".")[2] == name and isinstance(handler.method, Method):
                return handler.method.name
        return name

    def _fail(self, message: Message, error: errors.AimeshError) -> None:
        problem = error.to_problem()
        headers = {"Nats-Service-Error-Code": str(error.status), "Nats-Service-Error": problem.message.replace("\n", " ")[:500]}
        body = _to_json({"error": {"code": problem.code, "message": problem.message, "hint": problem.hint}})
        self._respond(message, body, {**headers, "content-type": _JSON})

    def _respond(self, message: Message, body: bytes, headers: dict[str, str]) -> None:
        # The reply subject is the caller's to choose, and our user may publish to more than inboxes.
        if message.reply.startswith(b"_INBOX."):
            self._transport.nats.publish(message.reply.decode(), body, headers=headers)
