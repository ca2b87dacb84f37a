"""Serves POST /v1/rerank in Cohere's and Jina's form, and ranks texts for RPC."""

from collections.abc import Awaitable, Callable
from typing import Annotated

import msgspec

from services.gateway.http_api import answer_delivery
from services.gateway.http_api.http_app import HttpRoute
from services.gateway.http_api.http_call import HttpCall
from services.gateway.http_api.tolerant_json import BodyDialect
from services.gateway.requests.active_texts import ActiveVectors
from services.gateway.requests.pipeline import Pipeline
from shared.api import embedding
from shared.api.embedding import OF_DOCUMENTS, RankedDocument, Ranking, RankingRequest, Text, TopDocuments
from shared.api.generation import NamedModel
from shared.types import ModelName


class DocumentText(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    text: Text


class RerankBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Texts to rank by their relevance to a query."""

    model: NamedModel | None = None
    query: Text
    documents: Annotated[tuple[Text | DocumentText, ...], OF_DOCUMENTS]
    #: Return only the most relevant ones.
    top_n: TopDocuments | None = None
    return_documents: bool = False


DIALECT = BodyDialect("rerank", RerankBody)


class RerankResult(msgspec.Struct, frozen=True, omit_defaults=True):
    #: In the request, from 0.
    index: int
    #: From 0 to 1.
    relevance_score: float
    document: DocumentText | None = None


class RerankUsage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    total_tokens: int


class RerankAnswer(msgspec.Struct, frozen=True):
    id: str
    model: ModelName
    #: The most relevant first.
    results: tuple[RerankResult, ...]
    usage: RerankUsage
    object: str = "list"


class RerankRoute:
    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    def routes(self) -> tuple[HttpRoute, ...]:
        return (
            HttpRoute("POST", "/v1/rerank", self._rerank, embedding.request_ranking.name.partition(".")[2],
                      "Rank texts by their relevance to a query",
                      body=RerankBody, answer=RerankAnswer, runs_a_model=True),
        )  # fmt: skip

    async def _rerank(self, call: HttpCall) -> None:
        body = await call.read(DIALECT)
        call.refuse_idempotency_key()
        texts = tuple(given if isinstance(given, str) else given.text for given in body.documents)
        request = RankingRequest(body.query, texts, body.model, body.top_n, call.forbids_external)
        async with self._pipeline.rank(call.caller, request, seconds=self._pipeline.most_seconds) as running:
            call.add_headers(answer_delivery.headers(running))
            scores = await read_scores(running)
        ranking = rank(running, scores, body.top_n)
        results = tuple(
            RerankResult(it.index, it.relevance_score, DocumentText(texts[it.index]) if body.return_documents else None)
            for it in ranking.results
        )
        usage = RerankUsage(ranking.prompt_tokens, ranking.prompt_tokens)
        await call.answer(RerankAnswer(f"rerank-{running.request_id.hex}", ranking.model, results, usage))


async def _ignore(_notice: str) -> None: ...


async def read_scores(running: ActiveVectors, notify: Callable[[str], Awaitable[object]] = _ignore) -> list[float]:
    """Return the score of each text, in their order. ``notify`` gets what the request waits for."""
    scores: list[float] = []
    async for _, item in running:
        if item.waiting:
            await notify(item.waiting)
        scores += [number for vector in item.vectors for number in embedding.decode_vector(vector)]
    return scores


def rank(ended: ActiveVectors, scores: list[float], top_n: int | None) -> Ranking:
    """Order the documents of a request that has ended. Equal ones keep their order."""
    result = ended.result
    ordered = sorted(enumerate(scores), key=lambda pair: -pair[1])[:top_n]
    results = tuple(RankedDocument(index, score) for index, score in ordered)
    return Ranking(result.request_id, result.model, results, result.prompt_tokens, result.response_time_ms)
