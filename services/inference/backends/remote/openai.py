"""The `openai` backend: serves the models of servers with OpenAI's API, such as vLLM, TGI, Ray Serve, OpenAI or another mesh."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import msgspec

from services.inference import upstreams
from services.inference.backends.remote import (
    embedding_answer,
    http_server_client,
    openai_answer,
    openai_chat,
    remote_embedding,
    remote_models,
    server_errors,
    token_counts,
)
from services.inference.backends.remote.embedding_answer import EmbeddingReply
from services.inference.backends.remote.event_stream import StreamEventParser
from services.inference.backends.remote.http_server_client import Server, ServerTimeouts
from services.inference.backends.remote.openai_answer import AnswerAssembly
from services.inference.backends.remote.remote_models import ModelListing, RemoteModels
from services.inference.backends.remote.server_errors import RefusalSource
from services.inference.engine.sampling import DEFAULT_MAX_TOKENS
from services.inference.jobs.backend_interface import Sink, VectorSink, Watcher
from services.inference.jobs.embedding_job import EmbeddingJob
from services.inference.jobs.generation_job import GenerationJob
from services.inference.upstreams import Upstream
from shared import errors
from shared.api.embedding import Embedded
from shared.api.generation import Generation
from shared.api.inference import ModelStatus
from shared.telemetry import logs
from shared.types import ModelName

log = logs.get()

#: After the last answer's end, for the usage and `[DONE]`, which some servers never send.
TRAILER_SECONDS = 2.0


class _ListedModel(msgspec.Struct, frozen=True):
    id: str
    max_model_len: int | None = None


class _Models(msgspec.Struct, frozen=True):
    data: tuple[_ListedModel, ...]


_models = msgspec.json.Decoder(_Models)


@dataclass(frozen=True, slots=True)
class _Connected:
    """One upstream, its connections and its models."""

    upstream: Upstream
    server: Server
    models: RemoteModels

    async def list_models(self) -> tuple[ModelListing, ...]:
        content = await self.server.get("/models")
        async with http_server_client.translated(self.server.source):
            found = _models.decode(content).data
        return tuple(
            ModelListing(offered, model.id, context_tokens=max(0, model.max_model_len or 0))
            for model in found
            for offered in self.upstream.offers(model.id)
        )


class OpenAIBackend:
    name = "openai"

    def __init__(self, connected: Sequence[_Connected]) -> None:
        self._connected = connected

    def models(self) -> tuple[ModelStatus, ...]:
        """Return all models; of those with the same name, the first upstream's."""
        found: dict[ModelName, ModelStatus] = {}
        for one in self._connected:
            for status in one.models.statuses():
                found.setdefault(status.model_id, status)
        return tuple(found.values())[: remote_models.MAX_MODELS]

    def expected_wait_seconds(self) -> float:
        return max(one.models.expected_wait_seconds() for one in self._connected)

    async def generate(self, job: GenerationJob, sink: Sink) -> Generation:
        one = self._holder(job.model)
        asked, max_tokens = job.asked, job.parameters.max_tokens or DEFAULT_MAX_TOKENS
        with one.models.counted(job) as listed:
            source = one.server.source
            body = openai_chat.body(source.name, one.upstream.dialect, listed.own_name, job.messages, asked, max_tokens=max_tokens)
            answers = AnswerAssembly(asked.n or 1, remote_models.draw_call_id)
            await _pass_on(one.server, body, answers, sink)
            bounds = token_counts.bounds(job.messages, asked, sent_bytes=len(body), max_tokens=max_tokens)
            return _generation(source.name, job.model, answers, bounds)

    async def embed(self, job: EmbeddingJob, sink: VectorSink) -> Embedded:
        one = self._holder(job.model)
        with one.models.counted(job) as listed:

            async def request(texts: tuple[str, ...]) -> EmbeddingReply:
                body = embedding_answer.openai_body(listed.own_name, texts)
                content = await one.server.ask("/embeddings", body, most=embedding_answer.most_bytes(len(texts)))
                async with http_server_client.translated(one.server.source):
                    return embedding_answer.from_openai(content)

            return await remote_embedding.embed(one.server, job, request, sink)

    def _holder(self, model: ModelName) -> _Connected:
        """Return the first upstream that has the model, or else the first of all, which then refuses it."""
        return next((one for one in self._connected if one.models.has(model)), self._connected[0])


async def _pass_on(server: Server, body: bytes, answers: AnswerAssembly, sink: Sink) -> None:
    """Pass the answers on until they are complete. Raises Unavailable, or what the server's error means."""
    events = StreamEventParser()
    async with server.post("/chat/completions", body, "text/event-stream") as answer:
        sink.accept(None)
        try:
            async for piece in answer.pieces():
                for event in events.push(piece):
                    step = answers.push(event.data)
                    if step.complaint:
                        raise server_errors.judge_event(server.source, step.complaint)
                    for chunk in step.chunks:
                        await sink.send(chunk)
                    if step.is_progress:
                        answer.allow(TRAILER_SECONDS if answers.finished else server.timeouts.idle_seconds)
                if answers.complete:
                    await answer.drain()
                    break
        except http_server_client.ServerTimedOut:
            # A complete answer is usable without its usage.
            if not answers.finished:
                raise
        answers.reasons()


def _generation(server: str, model: ModelName, answers: AnswerAssembly, bounds: token_counts.CountBounds) -> Generation:
    said = answers.usage or openai_answer.ReportedUsage()
    counted = token_counts.settle(said.prompt_tokens, said.completion_tokens, said.cached_tokens, answers.pieces, bounds)
    if counted.recounted:
        log.warning("usage_recounted", server=server, model=model, fields=counted.recounted)
    reasons = answers.reasons()
    return Generation(reasons[0], counted.usage, reasons if len(reasons) > 1 else ())


def opened(url: str, key: str | None, slots: int, queue: int, watcher: Watcher) -> AbstractAsyncContextManager[OpenAIBackend]:
    """Open the backend with the upstream of OPENAI_BASE_URL. Raises BadSettings."""
    return opened_all((upstreams.single(url, key),), slots, queue, watcher)


@asynccontextmanager
async def opened_all(
    servers: tuple[Upstream, ...], slots: int, queue: int, watcher: Watcher, *, backoff_seconds: float = http_server_client.BACKOFF_SECONDS
) -> AsyncIterator[OpenAIBackend]:
    """``slots`` and ``queue`` are per model. Raises BadSettings without an upstream."""
    if not servers:
        raise errors.BadSettings("OPENAI_UPSTREAMS has no upstream", hint="see docs/howto/other-backends.md")
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
        connected = [await stack.enter_async_context(_connected(one, slots, queue, watcher, backoff_seconds)) for one in servers]
        watching = [tasks.create_task(one.models.watch(one.list_models), name=f"models of {one.upstream.name}") for one in connected]
        try:
            yield OpenAIBackend(connected)
        finally:
            for task in watching:
                task.cancel()


@asynccontextmanager
async def _connected(upstream: Upstream, slots: int, queue: int, watcher: Watcher, backoff_seconds: float) -> AsyncIterator[_Connected]:
    is_only = upstream.name == upstreams.ONLY and upstream.key_setting == "OPENAI_API_KEY"
    source = RefusalSource(
        name="the OpenAI-compatible server" if is_only else f"upstream {upstream.name}",
        key=upstream.key,
        key_setting=upstream.key_setting,
        url_setting="OPENAI_BASE_URL" if is_only else f"url of {upstream.name} in OPENAI_UPSTREAMS",
    )
    timeouts = ServerTimeouts(upstream.connect_seconds, upstream.first_token_seconds, upstream.idle_seconds, backoff_seconds)
    async with http_server_client.connected(source, upstream.url, timeouts) as server:
        models = RemoteModels(OpenAIBackend.name, upstream.slots or slots, queue, watcher, server=upstream.name)
        yield _Connected(upstream, server, models)
