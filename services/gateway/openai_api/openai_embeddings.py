"""Serves OpenAI's embeddings API, POST /v1/embeddings."""

import base64
import struct
from typing import Literal

import msgspec

from services.gateway.active_request import NUMBER_BYTES
from services.gateway.deduplicated_inference import DeduplicatedInference
from services.gateway.http_api import answer_delivery, request_bodies
from services.gateway.http_api.http_app import HttpRoute
from services.gateway.http_api.http_call import HttpCall
from services.gateway.prompt_admission import BadField
from shared.api import embedding
from shared.api.embedding import EmbeddingRequest, EmbeddingResult
from shared.types import ModelName


class EmbeddingBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An embedding request. ``user`` is ignored."""

    #: Token ids aren't supported, because they differ between models.
    input: str | tuple[str, ...]
    model: ModelName | None = None
    #: OpenAI's client requests base64 and decodes it.
    encoding_format: Literal["float", "base64"] = "float"
    #: Cut vectors to this many numbers and normalize them again.
    dimensions: int | None = None
    user: str | None = None


class EmbeddingObject(msgspec.Struct, frozen=True):
    #: base64 of little-endian 32-bit floats.
    embedding: tuple[float, ...] | str
    index: int
    object: str = "embedding"


class EmbeddingUsage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(msgspec.Struct, frozen=True):
    data: tuple[EmbeddingObject, ...]
    model: ModelName
    usage: EmbeddingUsage
    object: str = "list"


class OpenAiEmbeddings:
    """The handler for embeddings."""

    def __init__(self, deduplicated: DeduplicatedInference, *, request_seconds: float) -> None:
        self._deduplicated = deduplicated
        self._request_seconds = request_seconds

    def routes(self) -> tuple[HttpRoute, ...]:
        return (
            HttpRoute(
                verb="POST", path="/v1/embeddings", handler=self._embed,
                method=embedding.request_embeddings.name.partition(".")[2], summary="OpenAI's embeddings",
                body=EmbeddingBody, answer=EmbeddingList, runs_a_model=True,
            ),
        )  # fmt: skip

    async def _embed(self, call: HttpCall) -> None:
        body = read(call.body)
        found: list[bytes] = []
        running = self._deduplicated.embed(call.caller, to_request(body), seconds=self._request_seconds, key=call.idempotency_key)
        async with running as reply:
            call.add_headers(answer_delivery.headers(reply))
            async for _, vectors in reply:
                found += vectors.vectors
        await call.answer(answer(body, found, reply.result))


def read(body: bytes) -> EmbeddingBody:
    """Parse the body. Raises BadRequest that names the field."""
    found = request_bodies.read_object(body)
    if isinstance(texts := found.get("input"), list) and any(isinstance(text, int | list) for text in texts):
        raise BadField("input", "must be a text or a list of texts; token ids are not supported, because each model has its own")
    # In OpenAI's API, null counts as absent.
    return request_bodies.convert({name: value for name, value in found.items() if value is not None}, EmbeddingBody)


def to_request(body: EmbeddingBody) -> EmbeddingRequest:
    inputs = (body.input,) if isinstance(body.input, str) else body.input
    return EmbeddingRequest(inputs, body.model, body.dimensions)


def answer(body: EmbeddingBody, vectors: list[bytes], result: EmbeddingResult) -> EmbeddingList:
    encode = _base64 if body.encoding_format == "base64" else _numbers
    data = tuple(EmbeddingObject(encode(vector), index) for index, vector in enumerate(vectors))
    return EmbeddingList(data, result.model, EmbeddingUsage(result.prompt_tokens, result.prompt_tokens))


def _base64(vector: bytes) -> str:
    return base64.b64encode(vector).decode()


def _numbers(vector: bytes) -> tuple[float, ...]:
    return struct.unpack(f"<{len(vector) // NUMBER_BYTES}f", vector)
