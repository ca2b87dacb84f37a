"""Serves Ollama's API below /ollama, for programs that know no other; `aicli serve` has it at its clients' port."""

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial

import msgspec

from features.ollama.gateway import ollama_format, ollama_request
from features.ollama.gateway.ollama_format import (
    JsonLines,
    OllamaAnswer,
    OllamaEmbedding,
    OllamaEmbeddings,
    OllamaFormat,
    OllamaModels,
    OllamaPullStatus,
    OllamaShownModel,
    OllamaVersion,
)
from features.ollama.gateway.ollama_request import (
    OllamaChatBody,
    OllamaEmbedBody,
    OllamaEmbeddingBody,
    OllamaGenerateBody,
    OllamaNameBody,
    OllamaPromptBody,
)
from services.gateway.http_api import answer_delivery
from services.gateway.http_api.answer_delivery import Answering
from services.gateway.http_api.http_app import HttpRoute
from services.gateway.http_api.http_call import HttpCall
from shared import errors
from shared.api import embedding
from shared.api.auth import Principal
from shared.api.embedding import EmbeddingRequest
from shared.api.gateway import InferenceRequest, ServedModel
from shared.types import ModelName

_METHOD = "processInferenceRequest"
_EMBED_METHOD = embedding.request_embeddings.name.partition(".")[2]


class OllamaRoutes:
    """The handlers of /ollama. ``served`` returns the models that a caller may use, the default first."""

    def __init__(self, runs: Answering, served: Callable[[Principal], tuple[ServedModel, ...]]) -> None:
        self._runs = runs
        self._served = served
        self._started_at = datetime.fromtimestamp(int(time.time()), UTC)

    def routes(self) -> tuple[HttpRoute, ...]:
        answering = partial(
            HttpRoute, "POST", answer=OllamaAnswer, streams=True, takes_prompts=True, events=(OllamaAnswer,), any_media_type=True
        )
        embeds = partial(HttpRoute, "POST", method=_EMBED_METHOD, runs_a_model=True, any_media_type=True)
        return (
            *(HttpRoute(verb, "/ollama/", self._greet, "root", "Whether Ollama's API is there") for verb in ("HEAD", "GET")),
            *(HttpRoute(verb, "/ollama/api/version", self._version, "root", "The version of Ollama's API", answer=OllamaVersion)
              for verb in ("HEAD", "GET")),
            *(HttpRoute(verb, "/ollama/api/tags", self._list, "listModels", "List the served models", answer=OllamaModels)
              for verb in ("HEAD", "GET")),
            HttpRoute("GET", "/ollama/api/ps", self._list_running, "listModels", "List the models with a worker", answer=OllamaModels),
            HttpRoute("POST", "/ollama/api/show", self._show, "listModels", "What a model can do",
                      body=OllamaNameBody, answer=OllamaShownModel, any_media_type=True),
            HttpRoute("POST", "/ollama/api/pull", self._pull, "listModels", "Whether a model is served; it downloads nothing",
                      body=OllamaNameBody, answer=OllamaPullStatus, events=(OllamaPullStatus,), any_media_type=True),
            answering("/ollama/api/chat", self._chat, _METHOD, "Ollama's chats", body=OllamaChatBody),
            answering("/ollama/api/generate", self._generate, _METHOD, "Ollama's answers to a prompt", body=OllamaGenerateBody),
            embeds("/ollama/api/embed", self._embed, summary="Ollama's embeddings", body=OllamaEmbedBody, answer=OllamaEmbeddings),
            embeds("/ollama/api/embeddings", self._embed_prompt, summary="Ollama's older form of an embedding",
                   body=OllamaEmbeddingBody, answer=OllamaEmbedding),
        )  # fmt: skip

    async def _greet(self, call: HttpCall) -> None:
        await call.answer_bytes(b"Ollama is running", b"text/plain")

    async def _version(self, call: HttpCall) -> None:
        await call.answer(OllamaVersion())

    async def _list(self, call: HttpCall) -> None:
        await self._answer_models(call, self._served(call.caller))

    async def _list_running(self, call: HttpCall) -> None:
        await self._answer_models(call, [model for model in self._served(call.caller) if model.workers])

    async def _answer_models(self, call: HttpCall, models: Sequence[ServedModel]) -> None:
        await call.answer(OllamaModels(tuple(ollama_format.list_model(model, self._started_at) for model in models)))

    async def _show(self, call: HttpCall) -> None:
        body = await call.read(ollama_request.NAMED)
        await call.answer(ollama_format.show_model(self._get(call, body.model or body.name), self._started_at))

    async def _pull(self, call: HttpCall) -> None:
        body = await call.read(ollama_request.NAMED)
        self._get(call, body.model or body.name)
        if body.stream:
            await call.answer_bytes(msgspec.json.encode(OllamaPullStatus()) + b"\n", JsonLines.media_type)
        else:
            await call.answer(OllamaPullStatus())

    async def _chat(self, call: HttpCall) -> None:
        body = await call.read(ollama_request.CHAT)
        await self._answer(call, body, await call.convert(ollama_request.of_chat, body) if body.messages else None)

    async def _generate(self, call: HttpCall) -> None:
        body = await call.read(ollama_request.GENERATE)
        await self._answer(call, body, await call.convert(ollama_request.of_generation, body) if body.prompt or body.images else None)

    async def _answer(self, call: HttpCall, body: OllamaPromptBody, request: InferenceRequest | None) -> None:
        form = OllamaFormat(body)
        if request is None:
            self._get(call, body.model)
            await call.answer(form.loaded())
            return
        request = msgspec.structs.replace(request, model=self._name(call, body.model))
        await answer_delivery.answer(self._runs, call, request, form, stream=body.stream)

    async def _embed(self, call: HttpCall) -> None:
        body = await call.read(ollama_request.EMBED)
        await call.answer(await self._embeddings(call, body.model, body.input, body.dimensions))

    async def _embed_prompt(self, call: HttpCall) -> None:
        body = await call.read(ollama_request.EMBEDDING)
        (vector,) = (await self._embeddings(call, body.model, body.prompt)).embeddings or (msgspec.Raw(b"[]"),)
        await call.answer(OllamaEmbedding(vector))

    async def _embeddings(
        self, call: HttpCall, model: ModelName, inputs: str | tuple[str, ...], dimensions: int | None = None
    ) -> OllamaEmbeddings:
        if not inputs:
            self._get(call, model)
            return OllamaEmbeddings(model)
        request = EmbeddingRequest(embedding.separate_inputs(inputs), self._name(call, model), dimensions)
        encoded, result = await answer_delivery.embed(self._runs, call, request, _encode)
        return OllamaEmbeddings(model, tuple(encoded), result.response_time_ms * ollama_format.NANOSECONDS, result.prompt_tokens)

    def _get(self, call: HttpCall, name: str) -> ServedModel:
        found = ollama_format.find_model(self._served(call.caller), name)
        if found is None:
            hint = "see /api/tags; administrators add models with `aicli models pull`"
            raise errors.UnknownModel(f"the model {name[:200]!r} is not served", hint=hint)
        return found

    def _name(self, call: HttpCall, name: ModelName) -> ModelName:
        """Return the mesh's name of a model. A name of no model may be a pattern's."""
        found = ollama_format.find_model(self._served(call.caller), name) if name.endswith(ollama_format.LATEST) else None
        return name if found is None else found.name


def _encode(_index: int, vector: bytes) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(embedding.decode_vector(vector)))
