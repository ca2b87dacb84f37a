"""Serves POST /v1/rerank in Cohere's and Jina's form, and ranks texts for RPC."""

from typing import Annotated

import msgspec

from services.gateway.facts.tally import Tally
from services.gateway.http_api.answer_delivery import HeadReader
from services.gateway.http_api.http_app import HttpRoute
from services.gateway.http_api.http_call import HttpCall
from services.gateway.http_api.tolerant_json import BodyDialect
from services.gateway.requests.runs import Runs
from shared.api import embedding
from shared.api.embedding import OF_DOCUMENTS, EmbeddingResult, RankedDocument, Ranking, RankingRequest, Text, TopDocuments, Vectors
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
    def __init__(self, runs: Runs) -> None:
        self._runs = runs

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
        reader = _ScoreReader(call)
        result = await self._runs.rank(call.caller, request, reader, seconds=self._runs.most_seconds)
        ranking = rank(result, reader.scores, body.top_n)
        results = tuple(
            RerankResult(it.index, it.relevance_score, DocumentText(texts[it.index]) if body.return_documents else None)
            for it in ranking.results
        )
        usage = RerankUsage(ranking.prompt_tokens, ranking.prompt_tokens)
        await call.answer(RerankAnswer(f"rerank-{ranking.request_id.hex}", ranking.model, results, usage))


class _ScoreReader(HeadReader[Vectors]):
    def __init__(self, call: HttpCall) -> None:
        super().__init__(call)
        #: Of each text, in their order.
        self.scores: list[float] = []

    async def take(self, number: int, piece: Vectors, at: Tally) -> bool:
        self.scores += embedding.read_scores(piece)
        return True


def rank(result: EmbeddingResult, scores: list[float], top_n: int | None) -> Ranking:
    """Order the documents. Equal ones keep their order."""
    ordered = sorted(enumerate(scores), key=lambda pair: -pair[1])[:top_n]
    results = tuple(RankedDocument(index, score) for index, score in ordered)
    return Ranking(result.request_id, result.model, results, result.prompt_tokens, result.response_time_ms)
