"""The `http` backend: serves the models of a registry. Each has its own service, which answers `POST {"model", "payload"}` as a whole.

A registry is the `service` and `path` of entries in MODELS_YAML. A service is ready while its `/healthz` answers with success.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from services.inference import upstreams
from services.inference.backend_interface import Sink, VectorSink, Watcher
from services.inference.backends.remote import http_server_client, registry_answer, remote_backend, token_counts
from services.inference.backends.remote.embedding_answer import EmbeddingAssembly
from services.inference.backends.remote.http_server_client import Server, ServerTimeouts
from services.inference.backends.remote.openai_answer import ReportedUsage
from services.inference.backends.remote.remote_backend import RemoteBackend
from services.inference.backends.remote.remote_models import ModelListing, RemoteModels, UpstreamPlace
from services.inference.backends.remote.server_errors import RefusalSource
from services.inference.backends.remote.token_counts import LONGEST_ANSWER_TOKENS
from services.inference.jobs import EmbeddingJob, GenerationJob
from services.inference.models.catalog import RemoteModel
from shared import errors
from shared.api.embedding import Embedded, Vectors
from shared.api.generation import Generation
from shared.api.inference import Chunk

NAME = "http"
HEALTH_PATH = "/healthz"
#: Of a whole answer: a million tokens.
MAX_ANSWER_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class RegisteredService:
    """One model of the registry, and the service that runs it."""

    entry: RemoteModel
    server: Server
    models: RemoteModels

    def continues(self, job: GenerationJob, digest: str, *, is_text: bool) -> bool:
        return False

    async def list_models(self) -> tuple[ModelListing, ...]:
        """Return the model if its service is ready. Raises Unavailable."""
        await self.server.get(HEALTH_PATH, "")
        return tuple(ModelListing(name, self.entry.name, context_tokens=self.entry.context_tokens) for name in self.entry.names)

    async def generate(self, job: GenerationJob, sink: Sink, attempts: int) -> Generation:
        max_tokens = job.parameters.max_tokens or LONGEST_ANSWER_TOKENS
        body = registry_answer.prompt_body(self.entry.name, job)
        with self.models.counted(job):
            content = await self.server.ask(self.entry.path, body, most=MAX_ANSWER_BYTES, attempts=attempts)
        with http_server_client.translated(self.server.source):
            answer = registry_answer.read_text(content, self.entry.answer)
        sink.accept(None)
        if answer.text:
            await sink.send(Chunk(answer.text, ()))
        bounds = token_counts.bounds(job.messages, job.requested, len(body), max_tokens)
        counted = token_counts.settle(ReportedUsage(answer.prompt_tokens, answer.count(max_tokens)), bool(answer.text), 0, bounds)
        return Generation(answer.finish_reason, counted.usage)

    async def embed(self, job: EmbeddingJob, sink: VectorSink, attempts: int) -> Embedded:
        """Ask for one vector after another, because a registry does not say whether a service takes several texts."""
        assembly = EmbeddingAssembly(job)
        with self.models.counted(job):
            for text in job.inputs:
                body = registry_answer.text_body(self.entry.name, text)
                content = await self.server.ask(self.entry.path, body, most=MAX_ANSWER_BYTES, attempts=attempts)
                with http_server_client.translated(self.server.source):
                    vectors = assembly.take((text,), registry_answer.read_vector(content, self.entry.answer))
                sink.accept(None)
                await sink.send(Vectors(tuple(vectors)))
        return assembly.embedded


@asynccontextmanager
async def opened(
    entries: Sequence[RemoteModel], slots: int, queue: int, watcher: Watcher, timeouts: ServerTimeouts | None = None
) -> AsyncIterator[RemoteBackend]:
    """``slots`` and ``queue`` are per model. Raises BadSettings."""
    if not entries:
        raise errors.BadSettings("MODELS_YAML has no entry with `service`", hint="see docs/howto/other-backends.md")
    async with AsyncExitStack() as stack:
        yield RemoteBackend(
            NAME, [await stack.enter_async_context(_connected(entry, slots, queue, watcher, timeouts)) for entry in entries]
        )


def _read_token(file: Path, name: str) -> upstreams.Key:
    try:
        return upstreams.Key(file.read_text(encoding="utf-8").strip())
    except (OSError, UnicodeDecodeError) as error:
        raise errors.BadSettings(f"token_file of {name} in MODELS_YAML cannot be read: {error}", hint="correct the path") from error


@asynccontextmanager
async def _connected(
    entry: RemoteModel, slots: int, queue: int, watcher: Watcher, timeouts: ServerTimeouts | None
) -> AsyncIterator[RegisteredService]:
    address = entry.service if entry.port is None else f"{entry.service}:{entry.port}"
    url = address if "://" in address else f"http://{address}"
    setting = f"service of {entry.name} in MODELS_YAML"
    upstreams.check_url(setting, url)
    place = UpstreamPlace(url, urlsplit(url).hostname or NAME)
    models = RemoteModels(NAME, entry.slots or slots, queue, watcher, place=place, server=entry.name)
    key = None if entry.token_file is None else await asyncio.to_thread(_read_token, entry.token_file, entry.name)
    source = RefusalSource(f"the service of {entry.name}", key, setting, setting)
    async with http_server_client.connected(source, url, timeouts or ServerTimeouts()) as server:
        one = RegisteredService(entry, server, models)
        async with remote_backend.running(models.watch(one.list_models)):
            yield one
