"""Serves OpenAI's embeddings API, POST /v1/embeddings."""

import base64
from functools import partial
from typing import Literal, cast

import msgspec

from services.gateway.facts.bad_field import BadField
from services.gateway.http_api import answer_delivery, parameters, service_tiers
from services.gateway.http_api.http_app import HttpRoute
from services.gateway.http_api.http_call import HttpCall
from services.gateway.http_api.tolerant_json import BodyDialect
from services.gateway.requests.runs import Runs
from shared.api import embedding
from shared.api.embedding import Dimensions, EmbeddingRequest, GivenInput
from shared.api.generation import NamedModel
from shared.types import ModelName


class EmbeddingBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An embedding request."""

    input: GivenInput
    model: NamedModel | None = None
    #: OpenAI's client requests base64 and decodes it.
    encoding_format: Literal["float", "base64"] = "float"
    #: Cut vectors to this many numbers and normalize them again.
    dimensions: Dimensions | None = None
    #: "flex" runs behind live requests, at the price of batches.
    service_tier: str | None = None


DIALECT = BodyDialect("embeddings", EmbeddingBody, parameters.EMBEDDINGS)


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
    #: Only of a flex request.
    service_tier: str | msgspec.UnsetType = msgspec.UNSET


class OpenAiEmbeddings:
    def __init__(self, runs: Runs) -> None:
        self._runs = runs

    def routes(self) -> tuple[HttpRoute, ...]:
        return (
            HttpRoute("POST", "/v1/embeddings", self._embed, embedding.request_embeddings.name.partition(".")[2], "OpenAI's embeddings",
                      body=EmbeddingBody, answer=EmbeddingList, runs_a_model=True),
        )  # fmt: skip

    async def _embed(self, call: HttpCall) -> None:
        body = await call.read(DIALECT)
        encoded, result = await answer_delivery.embed(self._runs, call, to_request(body), partial(encode, body))
        usage = EmbeddingUsage(result.prompt_tokens, result.prompt_tokens)
        tier = service_tiers.FLEX if result.flex else msgspec.UNSET
        await call.answer(EmbeddingList(cast("tuple[EmbeddingObject, ...]", tuple(encoded)), result.model, usage, service_tier=tier))


def to_request(body: EmbeddingBody) -> EmbeddingRequest:
    """Convert the request. Raises BadField for texts or lists among token ids."""
    try:
        inputs, flex = embedding.separate_inputs(body.input), service_tiers.wants_flex(body.service_tier)
        return EmbeddingRequest(inputs, body.model, body.dimensions, flex=flex)
    except ValueError as error:
        raise BadField("input", str(error)) from error


def encode(body: EmbeddingBody, index: int, vector: bytes) -> msgspec.Raw:
    numbers = base64.b64encode(vector).decode() if body.encoding_format == "base64" else embedding.decode_vector(vector)
    return msgspec.Raw(msgspec.json.encode(EmbeddingObject(numbers, index)))
