"""The `openai` backend: serves the models of servers with OpenAI's API, such as vLLM, SGLang, Ray Serve, OpenAI or another mesh."""

import random
import secrets
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial

import msgspec

from features.remote_servers.worker import remote_server, upstreams
from features.remote_servers.worker.remote_backend import RemoteBackend
from features.remote_servers.worker.remote_models import ModelListing, RemoteModels
from features.remote_servers.worker.remote_server import RemoteServer, ServerApi
from features.remote_servers.worker.rules import forwarding, model_details, openai_chat, text_answers
from features.remote_servers.worker.rules.event_stream import convert_or
from features.remote_servers.worker.rules.openai_answer import AnswerAssembly
from features.remote_servers.worker.rules.server_errors import RefusalSource
from features.remote_servers.worker.upstreams import Upstream
from services.inference.backend_interface import Watcher
from shared.gguf.gguf_header import MAX_CONTEXT_TOKENS
from shared.types import Ability

NAME = "openai"


class _Architecture(msgspec.Struct, frozen=True):
    input_modalities: tuple[str, ...] = ()


class _Capabilities(msgspec.Struct, frozen=True):
    vision: bool = False
    function_calling: bool = False
    reasoning: bool = False


_NO_WORDS: tuple[str, ...] = ()


class _ListedModel(msgspec.Struct, frozen=True):
    id: str
    owned_by: object = None
    #: Of vLLM, SGLang and another mesh, of OpenRouter, of Groq, and of Mistral.
    max_model_len: object = None
    context_length: object = None
    context_window: object = None
    max_context_length: object = None
    #: What a model can do: of another mesh, of Mistral, and of OpenRouter.
    abilities: object = None
    capabilities: object = None
    architecture: object = None
    supported_parameters: object = None

    @property
    def owner(self) -> str:
        return self.owned_by if isinstance(self.owned_by, str) else ""

    @property
    def context_tokens(self) -> int:
        """Return 0 if the list doesn't say it."""
        listed = (self.max_model_len, self.context_length, self.context_window, self.max_context_length)
        return next((tokens for tokens in listed if isinstance(tokens, int) and 0 < tokens <= MAX_CONTEXT_TOKENS), 0)

    @property
    def listed_abilities(self) -> tuple[str, ...]:
        capable, parameters = convert_or(_Capabilities(), self.capabilities), convert_or(_NO_WORDS, self.supported_parameters)
        found = {
            Ability.TOOLS: capable.function_calling or "tools" in parameters,
            Ability.REASONING: capable.reasoning or "reasoning" in parameters,
            Ability.IMAGES: capable.vision or "image" in convert_or(_Architecture(), self.architecture).input_modalities,
        }
        return (*convert_or(_NO_WORDS, self.abilities), *model_details.which(found))


class _Models(msgspec.Struct, frozen=True):
    data: tuple[_ListedModel, ...]


@asynccontextmanager
async def opened_all(
    servers: tuple[Upstream, ...], slots: int, queue: int, watcher: Watcher, *, rng: random.Random | None = None
) -> AsyncIterator[RemoteBackend]:
    """``slots`` and ``queue`` are per model. Raises BadSettings."""
    async with AsyncExitStack() as stack:
        connected = []
        for upstream in servers:
            models = RemoteModels(NAME, upstream, slots, queue, watcher)
            connected.append(await stack.enter_async_context(_connected(upstream, models)))
        yield RemoteBackend(NAME, connected, rng)


def _connected(upstream: Upstream, models: RemoteModels) -> AbstractAsyncContextManager[RemoteServer]:
    is_only = upstream.name == upstreams.ONLY and upstream.key_setting == "OPENAI_API_KEY"
    source = RefusalSource(
        name="the OpenAI-compatible server" if is_only else f"upstream {upstream.name}",
        url_setting="OPENAI_BASE_URL" if is_only else f"url of {upstream.name} in OPENAI_UPSTREAMS",
        upstream=upstream,
    )
    return remote_server.connected(api_of(upstream, source.name), source, models)


def api_of(upstream: Upstream, name: str) -> ServerApi:
    return ServerApi(
        models_path="models",
        read_models=partial(_read_models, upstream),
        chat_path="chat/completions",
        # Without a salt, nothing may be shared.
        chat_request=lambda *asked: openai_chat.body(name, *asked, salt=secrets.token_hex(16), has_priority=upstream.priority),
        chat_assembly=AnswerAssembly,
        embedding=text_answers.openai_embedding,
    )


def _read_models(upstream: Upstream, content: bytes) -> tuple[ModelListing, ...]:
    models = msgspec.json.decode(content, type=_Models).data
    owners = {model.owner for model in models}
    return tuple(
        ModelListing(
            offered,
            model.id,
            context_tokens=upstream.context or model.context_tokens,
            only_moderates=upstream.task is not None,
            owned_by=model.owner,
            digest=upstream.digest,
            abilities=upstream.abilities(model.listed_abilities),
            provider=forwarding.provider_of_name(model.id) or forwarding.provider_of_owner(upstream, model.owner, owners),
        )
        for model in models
        for offered in upstream.offers(model.id)
    )
