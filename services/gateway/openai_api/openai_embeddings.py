"""OpenAI's embeddings: POST /v1/embeddings, its messages, and what of them this gateway takes."""

import base64
import struct
from typing import Literal

import msgspec

from services.gateway.active_request import NUMBER_BYTES
from services.gateway.admission.prompt_admission import BadField
from services.gateway.deduplicated_inference import DeduplicatedInference
from services.gateway.http_api import answer_delivery, request_bodies
from services.gateway.http_api.http_app import HttpRoute
from services.gateway.http_api.http_call import HttpCall
from shared.api import embedding
from shared.api.embedding import EmbeddingRequest, EmbeddingResult
from shared.types import ModelName


class EmbeddingBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``user`` is taken and ignored."""

    #: One text or several; token ids are not taken, because they are another model's.
    input: str | tuple[str, ...]
    model: ModelName | None = None
    #: OpenAI's own client asks for base64 and turns it into numbers itself.
    encoding_format: Literal["float", "base64"] = "float"
    #: Each vector is cut to so many numbers and made one long again.
    dimensions: int | None = None
    user: str | None = None


class EmbeddingObject(msgspec.Struct, frozen=True):
    #: base64 is of 32-bit floats, lowest byte first.
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
    """The handler of /v1/embeddings."""

    def __init__(self, once: DeduplicatedInference, *, request_seconds: float) -> None:
        self._once = once
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
        asked = self._once.embed(call.caller, to_request(body), seconds=self._request_seconds, key=call.idempotency_key)
        async with asked as said:
            call.add_headers(answer_delivery.headers(said))
            async for _, vectors in said:
                found += vectors.vectors
        await call.answer(answer(body, found, said.result))


def read(body: bytes) -> EmbeddingBody:
    """Raises BadRequest that names the field."""
    found = request_bodies.read_object(body)
    if isinstance(texts := found.get("input"), list) and any(isinstance(text, int | list) for text in texts):
        raise BadField("input", "must be a text or a list of texts; token ids are not taken, because each model has its own")
    # Null counts as absent, as everywhere in OpenAI's API.
    return request_bodies.convert({name: value for name, value in found.items() if value is not None}, EmbeddingBody)


def to_request(body: EmbeddingBody) -> EmbeddingRequest:
    inputs = (body.input,) if isinstance(body.input, str) else body.input
    return EmbeddingRequest(inputs, body.model, body.dimensions)


def answer(body: EmbeddingBody, vectors: list[bytes], result: EmbeddingResult) -> EmbeddingList:
    shown = _base64 if body.encoding_format == "base64" else _numbers
    data = tuple(EmbeddingObject(shown(vector), index) for index, vector in enumerate(vectors))
    return EmbeddingList(data, result.model, EmbeddingUsage(result.prompt_tokens, result.prompt_tokens))


def _base64(vector: bytes) -> str:
    return base64.b64encode(vector).decode()


def _numbers(vector: bytes) -> tuple[float, ...]:
    return struct.unpack(f"<{len(vector) // NUMBER_BYTES}f", vector)
