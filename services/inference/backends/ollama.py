"""The `ollama` backend: the models of an Ollama server (OLLAMA_URL), by its own API, which streams JSON lines."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import msgspec

from services.inference.backends import remote
from services.inference.backends.backend import Sink, Watcher
from services.inference.engine.sampling import DEFAULT_MAX_TOKENS
from services.inference.jobs import Job
from shared import errors
from shared.api.generation import Generation, Usage
from shared.api.inference import Chunk, ModelStatus
from shared.types import FinishReason, ModelName


class _Tag(msgspec.Struct, frozen=True):
    name: str


class _Tags(msgspec.Struct, frozen=True):
    models: tuple[_Tag, ...]


class _Said(msgspec.Struct, frozen=True):
    content: str = ""


class _Line(msgspec.Struct, frozen=True):
    """One line of POST /api/chat."""

    message: _Said = _Said()
    done: bool = False
    done_reason: str = "stop"
    prompt_eval_count: int = 0
    eval_count: int = 0
    error: str = ""


_tags = msgspec.json.Decoder(_Tags)
_line = msgspec.json.Decoder(_Line)


class OllamaBackend:
    name = "ollama"

    def __init__(self, http: httpx.AsyncClient, models: remote.RemoteModels) -> None:
        self._http = http
        self._models = models

    def models(self) -> tuple[ModelStatus, ...]:
        return self._models.statuses()

    def expected_wait_seconds(self) -> float:
        return self._models.expected_wait_seconds()

    async def list_models(self) -> tuple[ModelName, ...]:
        async with remote.translated("Ollama"):
            response = await self._http.get("/api/tags")
            await remote.check_status("Ollama", response)
            return tuple(ModelName(tag.name.removesuffix(":latest")) for tag in _tags.decode(response.content).models)

    async def generate(self, job: Job, sink: Sink) -> Generation:
        async with (
            self._models.job(job.model),
            remote.translated("Ollama"),
            self._http.stream("POST", "/api/chat", json=_request(job)) as response,
        ):
            await remote.check_status("Ollama", response)
            sink.accept(None)
            async for text in response.aiter_lines():
                line = _line.decode(text)
                if line.error:
                    raise errors.Unavailable(f"Ollama failed: {line.error[:300]}")
                if line.message.content:
                    await sink.send(Chunk(line.message.content, ()))
                if line.done:
                    reason = FinishReason.LENGTH if line.done_reason == "length" else FinishReason.STOP
                    return Generation(reason, Usage(line.prompt_eval_count, line.eval_count))
            raise errors.Unavailable("Ollama closed the answer before its end")


@asynccontextmanager
async def opened(url: str, slots: int, queue: int, watcher: Watcher) -> AsyncIterator[OllamaBackend]:
    async with remote.client(url, {}) as http, asyncio.TaskGroup() as tasks:
        models = remote.RemoteModels(OllamaBackend.name, slots, queue, watcher)
        backend = OllamaBackend(http, models)
        watching = tasks.create_task(models.watch(backend.list_models))
        try:
            yield backend
        finally:
            watching.cancel()


def _request(job: Job) -> dict[str, object]:
    parameters = job.parameters
    return {
        "model": job.model,
        "messages": [{"role": message.role, "content": message.content} for message in job.messages],
        "stream": True,
        "options": {
            "temperature": parameters.temperature,
            "top_p": parameters.top_p,
            "top_k": parameters.top_k,
            "seed": parameters.seed & 0x7FFF_FFFF,
            "num_predict": parameters.max_tokens or DEFAULT_MAX_TOKENS,
            "stop": list(parameters.stop),
        },
    }
