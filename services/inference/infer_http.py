"""Serves POST /infer: runs prompts and computes embeddings over plain HTTP for programs on this machine that have the service token.

It is bare ASGI, because a framework for one route would cost memory in every worker.
"""

import asyncio
import hmac
import ipaddress
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec

from services.inference.backend_interface import CollectedChunks, Sink, UncountedSink, VectorSink
from shared import context, errors
from shared.api import embedding
from shared.api.embedding import Embedded, GivenInput, Vectors
from shared.api.generation import ChatMessage, GenerationEnd, MaxTokens, ReasoningEffort, Sampling, Seed, Temperature, TopK, TopP, Usage
from shared.api.inference import Chunk
from shared.api.method import field_name
from shared.node import http_server, lifecycle
from shared.node.http_server import Receive, Scope, Send
from shared.protocol import field_errors
from shared.types import FinishReason, ModelName

#: The size of the mesh's largest message.
MAX_BODY_BYTES = 1024 * 1024
#: The deadline of a call over the mesh.
DEADLINE_SECONDS = 300.0

Outcome = TypeVar("Outcome")
GenerateCall = Callable[[ModelName, str | tuple[ChatMessage, ...], Sampling, Sink], Awaitable[GenerationEnd]]
EmbedCall = Callable[[embedding.Embed, VectorSink], Awaitable[Embedded]]


class InferMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    role: str
    content: str


class WorkerInferBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Has ``prompt``, ``messages`` or, for embeddings, ``input``."""

    model: ModelName
    prompt: str | None = None
    messages: tuple[InferMessage, ...] = ()
    max_tokens: MaxTokens | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    stop: str | tuple[str, ...] = ()
    seed: Seed | None = None
    reasoning_effort: ReasoningEffort | None = None
    stream: bool = False
    input: GivenInput | None = None
    dimensions: embedding.Dimensions | None = None

    def embedding_request(self) -> embedding.Embed:
        """Raises BadRequest if there are fields for answers."""
        if self != WorkerInferBody(model=self.model, input=self.input, dimensions=self.dimensions) or self.input is None:
            raise errors.BadRequest("input and dimensions ask for embeddings; send only model and dimensions with input")
        try:
            inputs = embedding.separate_inputs(self.input)
        except ValueError as error:
            raise errors.BadRequest(f"input {error}") from error
        return embedding.Embed(self.model, inputs, context.new_request_id(), self.dimensions)

    def words(self) -> str | tuple[ChatMessage, ...]:
        """Return the prompt or the messages. Raises BadRequest unless exactly one of the two is given."""
        if (self.prompt is None) == (not self.messages):
            raise errors.BadRequest("give either prompt or messages, or input for embeddings")
        return self.prompt if self.prompt is not None else tuple(ChatMessage(one.role, one.content) for one in self.messages)

    def sampling(self) -> Sampling:
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        numbers = self.max_tokens, self.temperature, self.top_p, self.top_k
        return Sampling(*numbers, stop, self.seed, reasoning_effort=self.reasoning_effort)


class InferUsage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class InferAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer, or a piece of a stream, whose last one has the reason and the usage."""

    text: str
    finish_reason: FinishReason | None = None
    usage: InferUsage | None = None
    #: The model's thoughts.
    reasoning: str = ""


class EmbedAnswer(msgspec.Struct, frozen=True):
    #: The vectors in the order of the inputs, each encoded when it arrived.
    embeddings: tuple[msgspec.Raw, ...]
    usage: InferUsage


class InferHttp:
    """The ASGI application. Answers 404 for every other path."""

    def __init__(self, generate: GenerateCall, embed: EmbedCall, token: str | None) -> None:
        self._generate = generate
        self._embed = embed
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            self._admit(scope)
            body = _parse(await _read(receive))
            if body.input is not None or body.dimensions is not None:
                await self._answer_embeddings(body, receive, send)
            elif body.stream:
                await self._stream(body, receive, send)
            else:
                await self._answer(body, receive, send)
        except errors.AimeshError as error:
            await _send_error(send, error)
        except _ClientGone:
            return

    def _admit(self, scope: Scope) -> None:
        """Raises the AimeshError that says why the request is refused."""
        if scope["path"] != "/infer":
            raise errors.NotFound(
                "this worker only serves POST /infer, /healthz, /readyz, /dependencies and /metrics",
                hint="the public API is on the gateway",
            )
        client = scope.get("client")
        if client is None or not ipaddress.ip_address(client[0]).is_loopback:
            raise errors.NotAllowed("/infer is only for programs on this machine", hint="call the gateway instead")
        if self._token is None:
            raise errors.NotFound("/infer is disabled: no service token is set", hint="set SERVICE_TOKEN_FILE and restart the worker")
        if scope["method"] != "POST":
            raise errors.MethodNotAllowed("/infer only accepts POST")
        headers = dict(scope["headers"])
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(token.strip(), self._token.encode()):
            raise errors.NotAuthenticated("the service token is missing or wrong", hint="send Authorization: Bearer <service token>")
        kind = headers.get(b"content-type", b"application/json").partition(b";")[0].strip().lower()
        if kind != b"application/json":
            raise errors.UnsupportedMedia("/infer only accepts application/json")

    async def _answer(self, body: WorkerInferBody, receive: Receive, send: Send) -> None:
        collected = CollectedChunks()
        generation = await _while_connected(self._run(body, collected), receive)
        text, thoughts = "".join(chunk.text for chunk in collected.chunks), "".join(chunk.reasoning for chunk in collected.chunks)
        answer = InferAnswer(text, generation.finish_reason, _usage(generation.usage), thoughts)
        await http_server.respond(send, 200, msgspec.json.encode(answer))

    async def _answer_embeddings(self, body: WorkerInferBody, receive: Receive, send: Send) -> None:
        collected = _CollectedVectors()
        embedded = await _while_connected(self._embed(body.embedding_request(), collected), receive)
        answer = EmbedAnswer(tuple(collected.vectors), _usage(Usage(embedded.prompt_tokens, 0)))
        await http_server.respond(send, 200, msgspec.json.encode(answer))

    async def _stream(self, body: WorkerInferBody, receive: Receive, send: Send) -> None:
        events = _Events(send)
        try:
            generation = await _while_connected(self._run(body, events), receive)
        except errors.AimeshError as error:
            if not events.begun:
                raise
            # The status was sent already, so the error is the stream's last event.
            await events.write(_error_body(error))
        else:
            await events.begin()
            await events.write(msgspec.json.encode(InferAnswer("", generation.finish_reason, _usage(generation.usage))))
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    def _run(self, body: WorkerInferBody, sink: Sink) -> Awaitable[GenerationEnd]:
        return self._generate(body.model, body.words(), body.sampling(), sink)


class _ClientGone(Exception):
    """The client closed the connection."""


class _CollectedVectors(UncountedSink):
    """Collects vectors; the limits on inputs and dimensions bound their size."""

    def __init__(self) -> None:
        self.vectors: list[msgspec.Raw] = []

    async def send(self, item: Vectors) -> None:
        self.vectors += [msgspec.Raw(msgspec.json.encode(embedding.decode_vector(vector))) for vector in item.vectors]


class _Events(UncountedSink):
    """Sends an answer as server-sent events."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.begun = False

    async def send(self, item: Chunk) -> None:
        if item.text or item.reasoning:
            await self.begin()
            await self.write(msgspec.json.encode(InferAnswer(item.text, reasoning=item.reasoning)))

    async def begin(self) -> None:
        """Send the status, once."""
        if self.begun:
            return
        self.begun = True
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def write(self, event: bytes) -> None:
        await self._send({"type": "http.response.body", "body": b"data: " + event + b"\n\n", "more_body": True})


async def _while_connected(run: Awaitable[Outcome], receive: Receive) -> Outcome:
    """Await ``run``, and cancel it after DEADLINE_SECONDS, or with _ClientGone when the client disconnects."""
    is_gone = False

    async def watch() -> None:
        nonlocal is_gone
        while (await receive())["type"] != "http.disconnect":
            pass
        is_gone = True
        if not deadline.expired():
            deadline.reschedule(0.0)

    try:
        async with asyncio.timeout(DEADLINE_SECONDS) as deadline, lifecycle.background() as tasks:
            tasks.create_task(watch())
            return await run
    except TimeoutError:
        if is_gone:
            raise _ClientGone from None
        raise errors.DeadlineExceeded(f"the answer took more than {DEADLINE_SECONDS:g} s", hint="request less at once") from None


async def _read(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _ClientGone
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            raise errors.TooLarge(f"the body is larger than {MAX_BODY_BYTES} bytes")
        if not message.get("more_body", False):
            return bytes(body)


def _parse(body: bytes) -> WorkerInferBody:
    """Take the fields beside the model or in ``payload``, in snake_case or camelCase. Raises BadRequest."""
    try:
        found = _snake_names(msgspec.json.decode(body, type=dict[str, object]))
        if "payload" in found:
            found = _without_payload(found)
        return msgspec.convert(found, WorkerInferBody)
    except msgspec.ValidationError as error:
        raise errors.BadRequest(
            field_errors.sentence(error, WorkerInferBody), hint="see services/inference/README.md for the fields"
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise errors.BadRequest(f"the body is not valid JSON: {error}") from error


def _snake_names(found: dict[str, object]) -> dict[str, object]:
    renamed = {field_name(name): value for name, value in found.items()}
    if len(renamed) != len(found):
        raise errors.BadRequest("a field occurs in both spellings", hint="send it once")
    return renamed


def _without_payload(found: dict[str, object]) -> dict[str, object]:
    if unknown := found.keys() - {"model", "payload"}:
        raise errors.BadRequest(f"{min(unknown)} belongs into payload", hint="send model and payload only, or no payload")
    payload = found.pop("payload")
    if isinstance(payload, str):
        return found | {"prompt": payload}
    if not isinstance(payload, dict) or "model" in payload:
        raise errors.BadRequest("payload must be a prompt, or an object without model")
    return found | _snake_names(payload)


def _usage(usage: Usage) -> InferUsage:
    return InferUsage(usage.prompt_tokens, usage.completion_tokens, usage.total_tokens)


def _error_body(error: errors.AimeshError) -> bytes:
    message = f"{error.message}; {error.hint}" if error.hint else error.message
    kind = "invalid_request_error" if error.fault is errors.Fault.CALLER else "server_error"
    return http_server.error_body(errors.code_of(error), message, kind)


async def _send_error(send: Send, error: errors.AimeshError) -> None:
    headers = {}
    if error.retry_after_seconds is not None:
        headers[b"retry-after"] = str(max(1, round(error.retry_after_seconds))).encode()
    if isinstance(error, errors.MethodNotAllowed):
        headers[b"allow"] = b"POST"
    await http_server.respond(send, error.status, _error_body(error), headers=headers)
