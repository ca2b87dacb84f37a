"""The `openai` backend: the models of any OpenAI-compatible server (OPENAI_BASE_URL, OPENAI_API_KEY), such as vLLM."""

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

_DATA = "data:"
_DONE = "[DONE]"


class _Model(msgspec.Struct, frozen=True):
    id: str


class _Models(msgspec.Struct, frozen=True):
    data: tuple[_Model, ...]


class _Delta(msgspec.Struct, frozen=True):
    content: str | None = None


class _Choice(msgspec.Struct, frozen=True):
    delta: _Delta = _Delta()
    finish_reason: str | None = None


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int


class _Event(msgspec.Struct, frozen=True):
    """One event of POST /chat/completions; the last one has the usage and no choice."""

    choices: tuple[_Choice, ...] = ()
    usage: _Usage | None = None


_models = msgspec.json.Decoder(_Models)
_event = msgspec.json.Decoder(_Event)


class OpenAIBackend:
    name = "openai"

    def __init__(self, http: httpx.AsyncClient, models: remote.RemoteModels) -> None:
        self._http = http
        self._models = models

    def models(self) -> tuple[ModelStatus, ...]:
        return self._models.statuses()

    def expected_wait_seconds(self) -> float:
        return self._models.expected_wait_seconds()

    async def list_models(self) -> tuple[ModelName, ...]:
        async with remote.translated("the OpenAI-compatible server"):
            response = await self._http.get("/models")
            await remote.check_status("the OpenAI-compatible server", response)
            return tuple(ModelName(model.id) for model in _models.decode(response.content).data)

    async def generate(self, job: Job, sink: Sink) -> Generation:
        async with (
            self._models.job(job.model),
            remote.translated("the OpenAI-compatible server"),
            self._http.stream("POST", "/chat/completions", json=_request(job)) as response,
        ):
            await remote.check_status("the OpenAI-compatible server", response)
            sink.accept(None)
            return await _relay(response, sink)


async def _relay(response: httpx.Response, sink: Sink) -> Generation:
    finish: FinishReason | None = None
    usage = Usage(0, 0)
    async for line in response.aiter_lines():
        text = line.removeprefix(_DATA).strip()
        if not line.startswith(_DATA) or text == _DONE:
            continue
        event = _event.decode(text)
        if event.usage is not None:
            usage = Usage(event.usage.prompt_tokens, event.usage.completion_tokens)
        for choice in event.choices[:1]:
            if choice.delta.content:
                await sink.send(Chunk(choice.delta.content, ()))
            if choice.finish_reason is not None:
                finish = FinishReason.LENGTH if choice.finish_reason == "length" else FinishReason.STOP
    if finish is None:
        raise errors.Unavailable("the OpenAI-compatible server closed the answer before its end")
    return Generation(finish, usage)


@asynccontextmanager
async def opened(url: str, key: str | None, slots: int, queue: int, watcher: Watcher) -> AsyncIterator[OpenAIBackend]:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    async with remote.client(url, headers) as http, asyncio.TaskGroup() as tasks:
        models = remote.RemoteModels(OpenAIBackend.name, slots, queue, watcher)
        backend = OpenAIBackend(http, models)
        watching = tasks.create_task(models.watch(backend.list_models))
        try:
            yield backend
        finally:
            watching.cancel()


def _request(job: Job) -> dict[str, object]:
    """No top_k: the API has none, and OpenAI refuses what it does not know."""
    parameters = job.parameters
    request: dict[str, object] = {
        "model": job.model,
        "messages": [{"role": message.role, "content": message.content} for message in job.messages],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": parameters.temperature,
        "top_p": parameters.top_p,
        "seed": parameters.seed,
        "max_tokens": parameters.max_tokens or DEFAULT_MAX_TOKENS,
    }
    return {**request, "stop": list(parameters.stop)} if parameters.stop else request
