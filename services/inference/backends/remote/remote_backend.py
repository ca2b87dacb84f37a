"""Runs jobs on the servers of other programs. `ollama` and `openai` describe the APIs of their servers."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from services.inference.backend_interface import Sink, VectorSink
from services.inference.backends.remote import (
    embedding_answer,
    http_server_client,
    moderation_answer,
    remote_models,
    server_errors,
    token_counts,
)
from services.inference.backends.remote.embedding_answer import EmbeddingAssembly, EmbeddingReply
from services.inference.backends.remote.http_server_client import Server, ServerTimedOut, ServerTimeouts, UpstreamAccount
from services.inference.backends.remote.ollama_chat import OllamaAssembly
from services.inference.backends.remote.openai_answer import AnswerAssembly, ReportedUsage
from services.inference.backends.remote.remote_models import ListModels, ModelListing, RemoteModels
from services.inference.backends.remote.server_errors import RefusalSource
from services.inference.engine.sampling import DEFAULT_MAX_TOKENS
from services.inference.jobs import EmbeddingJob, GenerationJob
from shared.api.embedding import Embedded, EmbeddingInput, Vectors
from shared.api.generation import Generation
from shared.api.inference import ModelStatus, Moderate, Moderated
from shared.telemetry import logs
from shared.types import ModelName

log = logs.get()

#: After the last answer's end, for the usage and `[DONE]`, which some servers never send.
TRAILER_SECONDS = 2.0
#: Of one message to the mesh, which allows 1 MiB.
SENT_BYTES = 256 * 1024

ChatAssembly = AnswerAssembly | OllamaAssembly


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerApi:
    """The paths of one kind of server, what it is sent and how its responses are read. The functions are pure; those that read a
    response raise BadStream or one of `event_stream.UNREADABLE`."""

    models_path: str
    read_models: Callable[[bytes], tuple[ModelListing, ...]]
    chat_path: str
    #: The media type of a streamed answer.
    chat_type: str
    #: (the server's name of the model, job, max_tokens) -> the request. Raises BadRequest.
    chat_body: Callable[[str, GenerationJob, int], bytes]
    #: Returns a function that splits the pieces of one response into texts for the assembly.
    chat_splitter: Callable[[], Callable[[bytes], list[bytes]]]
    #: (number of answers) -> what assembles them.
    chat_assembly: Callable[[int], ChatAssembly]
    embeddings_path: str
    #: (the server's name of the model, texts) -> the request.
    embeddings_body: Callable[[str, tuple[EmbeddingInput, ...]], bytes]
    read_embeddings: Callable[[bytes], EmbeddingReply]


@dataclass(frozen=True, slots=True)
class RemoteServer:
    """One server, its connections and its models."""

    api: ServerApi
    server: Server
    models: RemoteModels

    async def list_models(self) -> tuple[ModelListing, ...]:
        content = await self.server.get(self.api.models_path)
        with http_server_client.translated(self.server.source):
            return self.api.read_models(content)

    async def generate(self, job: GenerationJob, sink: Sink) -> Generation:
        max_tokens = job.parameters.max_tokens or DEFAULT_MAX_TOKENS
        with self.models.counted(job) as listed:
            body = self.api.chat_body(listed.own_name, job, max_tokens)
            answers = self.api.chat_assembly(job.requested.n or 1)
            await self._pass_on(body, answers, sink)
        usage, reasons = answers.usage or ReportedUsage(), answers.reasons()
        bounds = token_counts.bounds(job.messages, job.requested, sent_bytes=len(body), max_tokens=max_tokens)
        counted = token_counts.settle(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens, answers.pieces, bounds)
        if counted.recounted:
            log.warning("usage_recounted", server=self.server.source.name, model=job.model, fields=counted.recounted)
        return Generation(reasons[0], counted.usage, reasons if len(reasons) > 1 else ())

    async def embed(self, job: EmbeddingJob, sink: VectorSink) -> Embedded:
        """Get the vectors of a job batch by batch."""
        assembly, is_accepted = EmbeddingAssembly(job), False
        with self.models.counted(job) as listed:
            for texts in assembly.batches():
                body, most = self.api.embeddings_body(listed.own_name, texts), embedding_answer.most_bytes(len(texts))
                content = await self.server.ask(self.api.embeddings_path, body, most=most)
                with http_server_client.translated(self.server.source):
                    vectors = assembly.take(texts, self.api.read_embeddings(content))
                if not is_accepted:
                    # The token count is only known after the last batch.
                    sink.accept(None)
                    is_accepted = True
                for some in _messages(vectors):
                    await sink.send(Vectors(some))
        if assembly.recounted:
            log.warning("usage_recounted", server=self.server.source.name, model=job.model, fields=("prompt_tokens",))
        return assembly.embedded

    async def moderate(self, request: Moderate) -> Moderated:
        with self.models.counted(request) as listed:
            body = moderation_answer.body(listed.own_name, request.texts)
            content = await self.server.ask(moderation_answer.PATH, body, most=moderation_answer.MOST_BYTES)
        with http_server_client.translated(self.server.source):
            verdicts = moderation_answer.read(content, len(request.texts))
        # This API reports no usage.
        return Moderated(verdicts, token_counts.settle_texts(None, request.texts)[0])

    async def _pass_on(self, body: bytes, answers: ChatAssembly, sink: Sink) -> None:
        """Pass the answers on until they are complete. Raises Unavailable, or what the server's error means."""
        split = self.api.chat_splitter()
        async with self.server.post(self.api.chat_path, body, self.api.chat_type) as exchange:
            sink.accept(None)
            try:
                while piece := await exchange.read_piece():
                    for text in split(piece):
                        step = answers.push(text)
                        if step.complaint:
                            raise server_errors.judge_event(self.server.source, step.complaint)
                        for chunk in step.chunks:
                            await sink.send(chunk)
                        if step.is_progress:
                            exchange.allow(TRAILER_SECONDS if answers.finished else self.server.timeouts.idle_seconds)
                    if answers.complete:
                        await exchange.drain()
                        break
            except ServerTimedOut:
                # A complete answer is usable without its usage.
                if not answers.finished:
                    raise
            answers.reasons()


class ModelServer(Protocol):
    """One server and its models."""

    @property
    def server(self) -> Server: ...

    @property
    def models(self) -> RemoteModels: ...

    async def generate(self, job: GenerationJob, sink: Sink) -> Generation: ...

    async def embed(self, job: EmbeddingJob, sink: VectorSink) -> Embedded: ...


class RemoteBackend:
    """Serves the models of one or more servers."""

    def __init__(self, name: str, servers: Sequence[ModelServer]) -> None:
        self.name = name
        self._servers = servers

    def models(self) -> tuple[ModelStatus, ...]:
        """Return all models; of those with the same name, the first server's."""
        found: dict[ModelName, ModelStatus] = {}
        for one in self._servers:
            for status in one.models.statuses():
                found.setdefault(status.model_id, status)
        return tuple(found.values())[: remote_models.MAX_MODELS]

    def accounts(self) -> dict[str, UpstreamAccount]:
        return {one.server.source.name: one.server.account for one in self._servers}

    def expected_wait_seconds(self) -> float:
        return max(one.models.expected_wait_seconds() for one in self._servers)

    async def generate(self, job: GenerationJob, sink: Sink) -> Generation:
        return await self._holder(job.model).generate(job, sink)

    async def embed(self, job: EmbeddingJob, sink: VectorSink) -> Embedded:
        return await self._holder(job.model).embed(job, sink)

    async def moderate(self, request: Moderate) -> Moderated:
        server = self._holder(request.model)
        assert isinstance(server, RemoteServer)  # no other has models that moderate
        return await server.moderate(request)

    def _holder(self, model: ModelName) -> ModelServer:
        return next((one for one in self._servers if one.models.has(model)), self._servers[0])


@asynccontextmanager
async def connected(
    api: ServerApi, source: RefusalSource, url: str, timeouts: ServerTimeouts, models: RemoteModels
) -> AsyncIterator[RemoteServer]:
    """Open connections to a server and keep the list of its models fresh. Raises BadSettings."""
    async with http_server_client.connected(source, url, timeouts) as server:
        one = RemoteServer(api, server, models)
        async with kept_fresh(models, one.list_models, source.name):
            yield one


@asynccontextmanager
async def kept_fresh(models: RemoteModels, list_models: ListModels, name: str) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(models.watch(list_models), name=f"models of {name}")
        try:
            yield
        finally:
            watching.cancel()


def _messages(vectors: list[bytes]) -> Iterator[tuple[bytes, ...]]:
    together = max(1, SENT_BYTES // len(vectors[0]))
    for start in range(0, len(vectors), together):
        yield tuple(vectors[start : start + together])
