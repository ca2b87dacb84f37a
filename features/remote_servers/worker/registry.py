"""The `http` backend: serves the models of a registry. Each has its own service, which answers `POST {"model", "payload"}` as a whole.

A registry is the `service` and `path` of entries in MODELS_YAML. A service is ready while its `/healthz` answers with success.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import msgspec

from features.remote_servers.worker import http_server_client, upstreams
from features.remote_servers.worker.remote_backend import RemoteBackend
from features.remote_servers.worker.remote_models import ModelListing, RemoteModels
from features.remote_servers.worker.remote_server import ModelServer
from features.remote_servers.worker.rules import dialects, openai_chat, token_counts
from features.remote_servers.worker.rules.event_stream import BadStream, convert_or
from features.remote_servers.worker.rules.openai_chat import JsonObject
from features.remote_servers.worker.rules.server_errors import RefusalSource
from features.remote_servers.worker.rules.text_answers import EmbeddingAssembly, EmbeddingReply, JsonRequest, Vector
from features.remote_servers.worker.rules.token_counts import MAX_ANSWER_TOKENS, ReportedUsage
from features.remote_servers.worker.upstreams import Upstream
from services.inference.backend_interface import Sink, VectorSink, Watcher
from services.inference.jobs import GenerationJob
from services.inference.models.catalog import RemoteModel
from shared import addresses, errors
from shared.api.embedding import Embed, Embedded, Vectors
from shared.api.generation import GenerationEnd
from shared.api.inference import Chunk
from shared.background.tasks import keep
from shared.node import lifecycle
from shared.types import FinishReason

NAME = "http"
HEALTH_PATH = "healthz"
#: A whole answer of a million tokens.
MAX_ANSWER_BYTES = 4 * 1024 * 1024

#: As in the worker's own POST /infer.
_FIELDS = dialects.ServerFields(dialects.same("temperature", "top_p", "top_k", "seed"))
_LACKS = "(a service of a registry) does not support it"
#: Where services put their result; the last three are OpenAI's.
_TEXT_PLACES = ("/text", "/output", "/response", "/generated_text", "/choices/0/message/content", "/choices/0/text")
_VECTOR_PLACES = ("/embedding", "/embeddings/0", "/data/0/embedding", "/output")
#: A token has about four bytes.
_BYTES_PER_TOKEN = 4

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class RegisteredService(ModelServer):
    """One model of the registry, and the service that runs it."""

    entry: RemoteModel

    def _request(self, body: bytes, read: Callable[[bytes, str | None], Found]) -> JsonRequest[Found]:
        path, pointer = self.entry.path.removeprefix("/"), self.entry.answer
        return JsonRequest(path, body, lambda content: read(content, pointer), MAX_ANSWER_BYTES)

    async def list_models(self) -> tuple[ModelListing, ...]:
        """Return the model if its service is ready. Raises Unavailable."""
        await self.server.get(HEALTH_PATH, bytes, "")
        return tuple(ModelListing(name, self.entry.name, context_tokens=self.entry.context_tokens) for name in self.entry.names)

    async def generate(self, job: GenerationJob, sink: Sink, attempts: int) -> GenerationEnd:
        max_tokens = job.parameters.max_tokens or MAX_ANSWER_TOKENS
        body = prompt_body(self.entry.name, job)
        with self.models.counted(job):
            answer = await self.server.ask(self._request(body, read_text), attempts=attempts)
        sink.accept(None)
        if answer.text:
            await sink.send(Chunk(answer.text, ()))
        usage = answer.usage
        if usage.completion_tokens is None:
            estimated = min(max_tokens, -(-len(answer.text.encode()) // _BYTES_PER_TOKEN))
            usage = msgspec.structs.replace(usage, completion_tokens=estimated)
        used, _ = token_counts.settle(usage, job, pieces=bool(answer.text), thoughts=0, sent_bytes=len(body), max_tokens=max_tokens)
        return GenerationEnd(answer.finish_reason, used)

    async def embed(self, job: Embed, sink: VectorSink, attempts: int) -> Embedded:
        """Ask for one vector after another, because a registry does not say whether a service takes several texts."""
        assembly = EmbeddingAssembly(job)
        with self.models.counted(job):
            for text in job.inputs:
                body = msgspec.json.encode({"model": self.entry.name, "payload": {"input": text}})
                vectors = await self.server.ask(assembly.packing((text,), self._request(body, read_vector)), attempts=attempts)
                sink.accept(None)
                await sink.send(Vectors(tuple(vectors)))
        return assembly.embedded


@asynccontextmanager
async def opened(entries: Sequence[RemoteModel], slots: int, queue: int, watcher: Watcher) -> AsyncIterator[RemoteBackend]:
    """``slots`` and ``queue`` are per model. Raises BadSettings."""
    if not entries:
        raise errors.BadSettings("MODELS_YAML has no entry with `service`", hint="see docs/howto/other-backends.md")
    async with AsyncExitStack() as stack:
        yield RemoteBackend(NAME, [await stack.enter_async_context(_connected(entry, slots, queue, watcher)) for entry in entries])


def _read_token(file: Path, name: str) -> upstreams.Key:
    try:
        return upstreams.Key(file.read_text(encoding="utf-8").strip())
    except (OSError, UnicodeDecodeError) as error:
        raise errors.BadSettings(f"token_file of {name} in MODELS_YAML cannot be read: {error}", hint="correct the path") from error


@asynccontextmanager
async def _connected(entry: RemoteModel, slots: int, queue: int, watcher: Watcher) -> AsyncIterator[RegisteredService]:
    scheme, _, host = entry.service.rpartition("://")
    url = f"{scheme or 'http'}://{host if entry.port is None else addresses.host_port(host, entry.port)}"
    setting = f"service of {entry.name} in MODELS_YAML"
    key = None if entry.token_file is None else await asyncio.to_thread(_read_token, entry.token_file, entry.name)
    upstreams.check(setting, url, key)
    upstream = Upstream(name=entry.name, url=url, provider=urlsplit(url).hostname or NAME, slots=entry.slots, key=key, key_setting=setting)
    models = RemoteModels(NAME, upstream, slots, queue, watcher)
    async with http_server_client.connected(RefusalSource(f"the service of {entry.name}", setting, upstream)) as server:
        one = RegisteredService(server, models, entry)
        async with lifecycle.background() as tasks:
            tasks.create_task(keep("models of a service", partial(models.watch, one.list_models)))
            yield one


@dataclass(frozen=True, slots=True)
class RegistryAnswer:
    text: str
    finish_reason: FinishReason
    #: As the service reports it.
    usage: ReportedUsage


def prompt_body(model: str, job: GenerationJob) -> bytes:
    """Raises BadRequest, which names a parameter that cannot be passed on."""
    asked = job.requested
    openai_chat.check(model, _LACKS, ("raw", "format", "tools", "top_logprobs"), asked)
    payload: JsonObject = openai_chat.plain(model, _LACKS, _FIELDS, asked)
    if len(job.messages) == 1 and job.messages[0].role == "user":
        payload["prompt"] = job.messages[0].content
    else:
        payload["messages"] = [{"role": message.role, "content": message.content} for message in job.messages]
    if job.asked_tokens is not None:
        payload["max_tokens"] = job.asked_tokens
    if asked.stop:
        payload["stop"] = list(asked.stop)
    return msgspec.json.encode({"model": model, "payload": payload})


def read_text(content: bytes, pointer: str | None) -> RegistryAnswer:
    """``pointer`` is a JSON pointer to the text; None looks at the usual places. Raises BadStream or one of `event_stream.UNREADABLE`."""
    answer = _decode(content)
    text = _first(answer, _TEXT_PLACES if pointer is None else (pointer,), lambda found: found if isinstance(found, str) else None)
    if text is None:
        raise BadStream(_nothing("text", pointer))
    said = _at(answer, "/finish_reason") or _at(answer, "/choices/0/finish_reason")
    reason = FinishReason.LENGTH if said == "length" else FinishReason.STOP
    return RegistryAnswer(text, reason, convert_or(ReportedUsage(), _at(answer, "/usage")))


def read_vector(content: bytes, pointer: str | None) -> EmbeddingReply:
    """Raises BadStream or one of `event_stream.UNREADABLE`."""
    answer = _decode(content)
    vector = _first(answer, _VECTOR_PLACES if pointer is None else (pointer,), _as_vector)
    if vector is None:
        raise BadStream(_nothing("vector", pointer))
    return EmbeddingReply((vector,), convert_or(ReportedUsage(), _at(answer, "/usage")).prompt_tokens)


def _decode(content: bytes) -> object:
    answer = msgspec.json.decode(content)
    # As Hugging Face's pipelines: a list of one answer.
    return answer[0] if isinstance(answer, list) and len(answer) == 1 and isinstance(answer[0], dict) else answer


def _first(answer: object, places: Sequence[str], accept: Callable[[object], Found | None]) -> Found | None:
    return next((found for place in places if (found := accept(_at(answer, place))) is not None), None)


def _as_vector(found: object) -> Vector | None:
    try:
        return msgspec.convert(found, Vector, strict=True) or None
    except msgspec.ValidationError:
        return None


def _at(value: object, pointer: str) -> object:
    """Return what a JSON pointer (RFC 6901) leads to; None if there is nothing."""
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict):
            value = value.get(key)
        elif isinstance(value, list) and key.isdecimal() and int(key) < len(value):
            value = value[int(key)]
        else:
            return None
    return value


def _nothing(what: str, pointer: str | None) -> str:
    return f"no {what} at {pointer!r}" if pointer is not None else f"no {what} in its answer; set `answer` to the JSON pointer of it"
