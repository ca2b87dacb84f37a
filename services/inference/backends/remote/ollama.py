"""The `ollama` backend: serves the models of an Ollama server (OLLAMA_URL) through its own API, which streams JSON lines."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from services.inference import upstreams
from services.inference.backends.remote import (
    embedding_answer,
    http_server_client,
    ollama_chat,
    remote_embedding,
    remote_models,
    server_errors,
    token_counts,
)
from services.inference.backends.remote.embedding_answer import EmbeddingReply
from services.inference.backends.remote.event_stream import BadStream, Lines
from services.inference.backends.remote.http_server_client import Server, ServerTimeouts
from services.inference.backends.remote.ollama_chat import OllamaLine
from services.inference.backends.remote.remote_models import ModelListing, RemoteModels
from services.inference.backends.remote.server_errors import RefusalSource
from services.inference.engine.sampling import DEFAULT_MAX_TOKENS
from services.inference.jobs.backend_interface import Sink, VectorSink, Watcher
from services.inference.jobs.embedding_job import EmbeddingJob
from services.inference.jobs.generation_job import GenerationJob
from shared.api.embedding import Embedded
from shared.api.generation import Generation
from shared.api.inference import Chunk, ModelStatus
from shared.telemetry import logs
from shared.types import ModelName

log = logs.get()

_SOURCE = RefusalSource(ollama_chat.SERVER, None, "OLLAMA_URL", "OLLAMA_URL")
_SHA256 = re.compile(r"(?:sha256:)?([0-9a-f]{64})\Z")


class _Tag(msgspec.Struct, frozen=True):
    name: str
    #: SHA-256 of the model's manifest, which has the digests of its weights, template and parameters.
    digest: str = ""
    details: object = None


class _OllamaModelDetails(msgspec.Struct, frozen=True):
    family: str = ""


class _Tags(msgspec.Struct, frozen=True):
    models: tuple[_Tag, ...]


_tags = msgspec.json.Decoder(_Tags)


class OllamaBackend:
    name = "ollama"

    def __init__(self, server: Server, models: RemoteModels, keep: int | str | None) -> None:
        self._server = server
        self._models = models
        #: Ollama's `keep_alive`; None for its default.
        self._keep = keep

    def models(self) -> tuple[ModelStatus, ...]:
        return self._models.statuses()

    def expected_wait_seconds(self) -> float:
        return self._models.expected_wait_seconds()

    async def list_models(self) -> tuple[ModelListing, ...]:
        content = await self._server.get("/api/tags")
        async with http_server_client.translated(_SOURCE):
            return tuple(_listed(tag) for tag in _tags.decode(content).models)

    async def generate(self, job: GenerationJob, sink: Sink) -> Generation:
        asked, max_tokens = job.asked, job.parameters.max_tokens or DEFAULT_MAX_TOKENS
        with self._models.counted(job) as listed:
            body = ollama_chat.body(listed.own_name, job.messages, asked, max_tokens=max_tokens, keep=self._keep)
            last, pieces = await self._relay(body, sink)
            bounds = token_counts.bounds(job.messages, asked, sent_bytes=len(body), max_tokens=max_tokens)
            counted = token_counts.settle(last.prompt_eval_count, last.eval_count, 0, pieces, bounds)
            if counted.recounted:
                log.warning("usage_recounted", server=self.name, model=job.model, fields=counted.recounted)
            return Generation(last.finish_reason, counted.usage)

    async def embed(self, job: EmbeddingJob, sink: VectorSink) -> Embedded:
        with self._models.counted(job) as listed:

            async def request(texts: tuple[str, ...]) -> EmbeddingReply:
                body = embedding_answer.ollama_body(listed.own_name, texts, keep=self._keep)
                content = await self._server.ask("/api/embed", body, most=embedding_answer.most_bytes(len(texts)))
                async with http_server_client.translated(_SOURCE):
                    return embedding_answer.from_ollama(content)

            return await remote_embedding.embed(self._server, job, request, sink)

    async def _relay(self, body: bytes, sink: Sink) -> tuple[OllamaLine, int]:
        """Pass the answer on; return its last line and the number of lines with text. Raises Unavailable, or what an error line means."""
        lines, pieces = Lines(), 0
        async with self._server.post("/api/chat", body, "application/x-ndjson") as answer:
            sink.accept(None)
            async for piece in answer.pieces():
                for text in lines.push(piece):
                    if not text:
                        continue
                    line = ollama_chat.line(text)
                    if line.error is not None:
                        raise server_errors.judge_event(_SOURCE, text)
                    calls = ollama_chat.calls(line, remote_models.draw_call_id)
                    if line.message.content or calls:
                        pieces += 1
                        await sink.send(Chunk(line.message.content, (), tool_calls=calls))
                    if line.done:
                        await answer.drain()
                        return line, pieces
                    if line.is_progress:
                        answer.allow(self._server.timeouts.idle_seconds)
            raise BadStream("it closed the answer before its end")


@asynccontextmanager
async def opened(
    url: str, slots: int, queue: int, watcher: Watcher, *, keep_alive: str | None = None, timeouts: ServerTimeouts | None = None
) -> AsyncIterator[OllamaBackend]:
    """``slots`` and ``queue`` are per model. Raises BadSettings."""
    upstreams.check_url("OLLAMA_URL", url)
    keep = None if keep_alive is None else ollama_chat.keep_alive(keep_alive)
    async with http_server_client.connected(_SOURCE, url, timeouts or ServerTimeouts()) as server, asyncio.TaskGroup() as tasks:
        models = RemoteModels(OllamaBackend.name, slots, queue, watcher)
        backend = OllamaBackend(server, models, keep)
        watching = tasks.create_task(models.watch(backend.list_models), name="models of Ollama")
        try:
            yield backend
        finally:
            watching.cancel()


def _listed(tag: _Tag) -> ModelListing:
    digest = _SHA256.match(tag.digest)
    return ModelListing(
        ModelName(tag.name.removesuffix(":latest")), tag.name, "" if digest is None else digest[1], only_embeds=_only_embeds(tag.details)
    )


def _only_embeds(details: object) -> bool:
    """Return whether the model is of BERT's family, which can't generate text; the list doesn't tell for others."""
    try:
        return msgspec.convert(details, _OllamaModelDetails).family.endswith("bert")
    except msgspec.ValidationError:
        return False
