"""The `ollama` backend: serves the models of an Ollama server (OLLAMA_URL) through its own API, which streams JSON lines."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import msgspec

from services.inference import upstreams
from services.inference.backend_interface import Watcher
from services.inference.backends.remote import embedding_answer, ollama_chat, remote_backend, remote_models
from services.inference.backends.remote.event_stream import Lines, convert_or
from services.inference.backends.remote.http_server_client import ServerTimeouts
from services.inference.backends.remote.ollama_chat import OllamaAssembly
from services.inference.backends.remote.remote_backend import RemoteBackend, ServerApi
from services.inference.backends.remote.remote_models import ModelListing, RemoteModels, UpstreamPlace
from services.inference.backends.remote.server_errors import RefusalSource
from shared.types import ModelName

NAME = "ollama"

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


@asynccontextmanager
async def opened(
    url: str, slots: int, queue: int, watcher: Watcher, *, keep_alive: str | None = None, timeouts: ServerTimeouts | None = None
) -> AsyncIterator[RemoteBackend]:
    """``slots`` and ``queue`` are per model. Raises BadSettings."""
    upstreams.check_url("OLLAMA_URL", url)
    api = _api(None if keep_alive is None else ollama_chat.keep_alive(keep_alive))
    models = RemoteModels(NAME, slots, queue, watcher, place=UpstreamPlace(url, NAME))
    async with remote_backend.connected(api, _SOURCE, url, timeouts or ServerTimeouts(), models) as server:
        yield RemoteBackend(NAME, [server])


def _api(keep: int | str | None) -> ServerApi:
    """``keep`` is Ollama's `keep_alive`; None for its default."""
    return ServerApi(
        models_path="/api/tags",
        read_models=_read_models,
        chat_path="/api/chat",
        chat_type="application/x-ndjson",
        chat_body=lambda model, job, most: ollama_chat.body(model, job.messages, job.requested, max_tokens=most, keep=keep),
        chat_splitter=lambda: Lines().push,
        # Ollama has no `n`; `ollama_chat.body` refuses it.
        chat_assembly=lambda _: OllamaAssembly(remote_models.draw_call_id),
        embeddings_path="/api/embed",
        embeddings_body=partial(embedding_answer.ollama_body, keep=keep),
        read_embeddings=embedding_answer.from_ollama,
    )


def _read_models(content: bytes) -> tuple[ModelListing, ...]:
    return tuple(_listed(tag) for tag in _tags.decode(content).models)


def _listed(tag: _Tag) -> ModelListing:
    digest = _SHA256.match(tag.digest)
    # Models of BERT's family can't generate text; the list doesn't tell for others.
    only_embeds = convert_or(_OllamaModelDetails(), tag.details).family.endswith("bert")
    return ModelListing(ModelName(tag.name.removesuffix(":latest")), tag.name, "" if digest is None else digest[1], only_embeds=only_embeds)
