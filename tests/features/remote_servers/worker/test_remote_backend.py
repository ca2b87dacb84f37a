"""Embeddings over Ollama's and OpenAI's APIs, from servers with every fault, over real sockets."""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from features.remote_servers.worker import ollama, openai
from features.remote_servers.worker.rules import text_answers
from features.remote_servers.worker.upstreams import Dialect, Key, Upstream
from shared import errors
from shared.api.embedding import MAX_INPUTS, Embed, Embedded, Vectors
from shared.api.inference import ModelState
from shared.context import new_request_id
from shared.types import ModelName
from tests.services.inference import asked
from tests.services.inference.fake_http import Answer, FakeServer, serving
from tests.services.inference.standins import Node, Watch, until, worker
from tests.services.inference.vector_reader import VectorReader, texts_for

MODEL = ModelName("m")
Numbers = Sequence[Sequence[float]]


def job(*texts: str, dimensions: int | None = None) -> Embed:
    return texts_for(MODEL, texts, dimensions)


@dataclass(frozen=True)
class Api:
    """One of the two APIs: its requests and answers."""

    name: str
    path: str

    def good(self, vectors: Numbers, tokens: object = 5) -> Answer:
        return Answer([json.dumps(self.said(vectors, tokens))])

    def said(self, vectors: Numbers, tokens: object = 5) -> dict[str, Any]:
        if self.name == "ollama":
            return {"model": "m", "embeddings": vectors, "prompt_eval_count": tokens}
        data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)]
        # In reverse order: the index says where each belongs.
        return {"object": "list", "data": data[::-1], "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}

    @asynccontextmanager
    async def asking(self, *answers: Answer, seconds: float = 60) -> AsyncIterator[tuple[FakeServer, Any]]:
        """Yield a server, and a backend that has listed its models."""
        listed = {
            "/api/tags": Answer(['{"models": [{"name": "m:latest"}]}']),
            "/v1/models": Answer(['{"data": [{"id": "m"}]}']),
            self.path: list(answers),
        }
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ollama, "Upstream", partial(Upstream, first_token_seconds=seconds, idle_seconds=seconds))
            async with serving(listed) as server, self._opened(server.url, seconds) as backend:
                await until(lambda: backend.models()[0].state is ModelState.READY)
                yield server, backend

    def _opened(self, url: str, seconds: float) -> Any:
        if self.name == "ollama":
            return ollama.opened(url, 4, 32, Watch(), keep_alive="10m")
        upstream = Upstream(
            name="rack", url=f"{url}/v1", dialect=Dialect.VLLM, key=Key("sk-very-secret"), first_token_seconds=seconds, idle_seconds=seconds
        )
        return openai.opened_all((upstream,), 4, 32, Watch())


@pytest.fixture(params=[Api("ollama", "/api/embed"), Api("openai", "/v1/embeddings")], ids=lambda api: api.name)
def api(request: pytest.FixtureRequest) -> Api:
    found: Api = request.param
    return found


async def test_each_text_has_its_vector_one_long_and_in_its_place(api: Api) -> None:
    reader = VectorReader()
    async with api.asking(api.good([[3, 4], [0.5, 0], [0, -2]])) as (server, backend):
        embedded = await backend.embed(job("one", "two", "three"), reader)
    assert embedded == Embedded(2, 5)
    assert reader.vectors == [pytest.approx((0.6, 0.8)), (1.0, 0.0), (0.0, -1.0)]
    # The token count is only known at the end.
    assert (reader.accepted, reader.prompt_tokens) == (True, None)
    (sent,) = server.asked
    assert sent == {"input": ["one", "two", "three"], **_extras(api)}


def _extras(api: Api) -> dict[str, Any]:
    if api.name == "ollama":
        return {"model": "m:latest", "truncate": False, "keep_alive": "10m"}
    return {"model": "m", "encoding_format": "float"}


RERANK = Api("openai", "/v1/rerank")


def ranking(*scores: float) -> Answer:
    results = [{"index": index, "relevance_score": score, "document": {"text": "…"}} for index, score in enumerate(scores)]
    return Answer([json.dumps({"results": results[::-1], "usage": {"prompt_tokens": 9, "total_tokens": 9}})])


@pytest.mark.parametrize(
    ("sent", "scores"),
    [
        pytest.param((0.25, 1.0, 0.0), (0.25, 1.0, 0.0), id="probabilities"),
        pytest.param((0.0, 2.0, -1000.0), (0.5, 0.880797, 0.0), id="logits"),
    ],
)
async def test_texts_are_ranked_by_the_server(sent: tuple[float, ...], scores: tuple[float, ...]) -> None:
    reader = VectorReader()
    async with RERANK.asking(ranking(*sent)) as (server, backend):
        assert await backend.embed(texts_for(MODEL, ("one", "two", "three"), query="why"), reader) == Embedded(1, 9)
    assert [score for (score,) in reader.vectors] == [pytest.approx(score, abs=1e-6) for score in scores]
    assert server.asked == [{"model": "m", "query": "why", "documents": ["one", "two", "three"]}]


@pytest.mark.parametrize(
    ("scores", "why"), [((0.5,), "one for each of 2"), ((0.5, 0.5, 0.5), "one for each of 2"), ((0.5, 1e300), "1000000.0")]
)
async def test_impossible_scores_end_the_request(scores: tuple[float, ...], why: str) -> None:
    async with RERANK.asking(ranking(*scores)) as (_, backend):
        with pytest.raises(errors.Unavailable, match=why):
            await backend.embed(texts_for(MODEL, ("one", "two"), query="why"), VectorReader())


async def test_ollama_cannot_rank() -> None:
    async with Api("ollama", "/api/embed").asking() as (server, backend):
        with pytest.raises(errors.BadRequest, match="m cannot rank texts: Ollama has no API for it"):
            await backend.embed(texts_for(MODEL, ("one",), query="why"), VectorReader())
    assert server.asked == []


async def test_fewer_dimensions_are_cut_here_whatever_the_server_knows_of_them(api: Api) -> None:
    reader = VectorReader()
    async with api.asking(api.good([[3, 4, 12]])) as (server, backend):
        assert await backend.embed(job("one", dimensions=2), reader) == Embedded(2, 5)
        with pytest.raises(errors.BadRequest, match="dimensions is 4; this model's vectors have 3"):
            await backend.embed(job("one", dimensions=4), VectorReader())
    assert reader.vectors == [pytest.approx((0.6, 0.8))]
    assert all("dimensions" not in body for body in server.asked)


async def test_many_texts_are_asked_for_in_batches_that_come_one_by_one(api: Api) -> None:
    texts = [str(number) for number in range(MAX_INPUTS)]
    directions = [[math.cos(number), math.sin(number)] for number in range(MAX_INPUTS)]
    batches = [api.good(directions[start : start + 32], 64) for start in range(0, MAX_INPUTS, 32)]
    reader = VectorReader()
    async with api.asking(*batches) as (server, backend):
        assert await backend.embed(job(*texts), reader) == Embedded(2, 64 * len(batches))
        assert backend.models()[0].running == 0
    assert reader.vectors == [pytest.approx(direction, abs=1e-6) for direction in directions]
    assert [text for body in server.asked for text in body["input"]] == texts


class Sizes(VectorReader):
    """Records the sizes of messages."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    async def send(self, item: Vectors) -> None:
        self.sizes.append(sum(map(len, item.vectors)))
        await super().send(item)


async def test_no_message_of_long_vectors_is_too_large_for_the_mesh(api: Api) -> None:
    reader = Sizes()
    async with api.asking(api.good([[0.25] * 16_384] * 32, 32)) as (_, backend):
        assert await backend.embed(job(*"abcdefghijklmnopqrstuvwxyz012345"), reader) == Embedded(16_384, 32)
    assert (max(reader.sizes), sum(reader.sizes)) == (256 * 1024, 32 * 16_384 * 4)


_REFUSALS = [
    pytest.param(Answer(['{"error": "model \\"m\\" not found"}'], status=404), errors.UnknownModel, "not found", id="a model that is gone"),
    pytest.param(Answer(['{"error": "no embeddings"}'], status=400), errors.BadRequest, "no embeddings", id="a model that cannot"),
    pytest.param(
        Answer(['{"error": "the input length exceeds the context length"}'], status=500), errors.BadRequest, "exceeds", id="a long text"
    ),
    pytest.param(Answer(["oops"], status=500), errors.Unavailable, "status 500", id="a failure"),
    pytest.param(Answer(["slow down"], status=429), errors.Overloaded, "slow down", id="too many requests"),
    pytest.param(Answer(["<p>"], headers={"content-type": "text/html"}), errors.Unavailable, "text/html", id="a web page"),
    pytest.param(Answer(["{}"], headers={"content-encoding": "gzip"}), errors.Unavailable, "compressed", id="compressed"),
    pytest.param(Answer(["{}"]), errors.Unavailable, "protocol", id="another object"),
    pytest.param(Answer([]), errors.Unavailable, "protocol", id="nothing"),
    pytest.param(Answer([], silent=True), errors.Unavailable, "does not answer", id="a connection that is closed"),
    pytest.param(Answer(['{"em'], headers={"content-length": "100"}), errors.Unavailable, "does not answer", id="cut off"),
    pytest.param(Answer(['{"x": ' + "[" * 100_000]), errors.Unavailable, "protocol", id="brackets"),
    pytest.param(Answer([" " * 65536], endless=True), errors.Unavailable, "an answer of more than", id="a body without an end"),
]


@pytest.mark.parametrize(("answer", "kind", "said"), _REFUSALS)
async def test_whatever_the_server_does_is_one_clear_error(api: Api, answer: Answer, kind: type[errors.AimeshError], said: str) -> None:
    reader = VectorReader()
    async with api.asking(answer) as (_, backend):
        with pytest.raises(kind, match=said):
            await backend.embed(job("one", "two"), reader)
        assert backend.models()[0].running == 0
    assert not reader.vectors
    assert not reader.accepted


@pytest.mark.parametrize(
    ("vectors", "said"),
    [
        pytest.param([[1.0]], "1 vectors for 2 texts", id="too few"),
        pytest.param([[1.0]] * 3, "3 vectors for 2 texts", id="too many"),
        pytest.param([], "0 vectors for 2 texts", id="none"),
        pytest.param([[1.0], [1.0, 2.0]], r"a vector of 2 numbers for input\[1\]", id="of two lengths"),
        pytest.param([[], []], "a vector of 0 numbers", id="empty"),
        pytest.param([[1.0] * 16_385] * 2, "a vector of 16385 numbers", id="too long"),
        pytest.param([[1.0], [0.0]], r"computed no vector for input\[1\]", id="without a direction"),
        pytest.param([[1.0], [math.nan]], "protocol", id="NaN"),
        pytest.param([[1.0], [math.inf]], "protocol", id="infinite"),
        pytest.param([[1.0], [None]], "protocol", id="null"),
        pytest.param(["AACAPw==", "AACAPw=="], "protocol", id="base64, though floats were asked for"),
    ],
)
async def test_vectors_that_cannot_be_the_texts_are_one_clear_error(api: Api, vectors: Any, said: str) -> None:
    reader = VectorReader()
    async with api.asking(api.good(vectors)) as (_, backend):
        with pytest.raises(errors.Unavailable, match=said):
            await backend.embed(job("one", "two"), reader)
    assert not reader.vectors


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(Answer([], silent=True, hang=True), id="silence"),
        pytest.param(Answer(['{"embeddings": '], hang=True), id="a beginning and then silence"),
        pytest.param(Answer([" "], endless=True), id="one blank after the other"),
    ],
)
async def test_a_server_that_does_not_come_to_an_end_is_given_up(api: Api, answer: Answer) -> None:
    async with api.asking(answer, seconds=0.2) as (server, backend):
        with pytest.raises(errors.Unavailable, match="did not"):
            await backend.embed(job("one"), VectorReader())
        async with asyncio.timeout(30):
            await server.left.wait()


async def test_a_busy_server_is_asked_again_and_the_vectors_come_once(api: Api) -> None:
    reader = VectorReader()
    async with api.asking(Answer(["{}"], status=503), Answer([], silent=True), api.good([[1.0]], 1)) as (server, backend):
        await backend.embed(job("one"), reader)
    assert (reader.vectors, server.times_asked(api.path)) == ([(1.0,)], 3)


async def test_what_was_cut_off_in_its_middle_is_not_asked_again(api: Api) -> None:
    cut = Answer(['{"em'], headers={"content-length": "100"})
    async with api.asking(cut, api.good([[1.0]])) as (server, backend):
        with pytest.raises(errors.Unavailable):
            await backend.embed(job("one"), VectorReader())
    assert server.times_asked(api.path) == 1


async def test_a_failure_in_a_later_batch_is_the_requests_one_error(api: Api) -> None:
    reader = VectorReader()
    async with api.asking(api.good([[1.0]] * 32, 32), Answer(["oops"], status=500)) as (_, backend):
        with pytest.raises(errors.Unavailable, match="status 500"):
            await backend.embed(job(*("a",) * 40), reader)
        assert backend.models()[0].running == 0
    assert len(reader.vectors) == 32


async def test_a_cancelled_request_closes_the_connection(api: Api) -> None:
    async with api.asking(Answer([], silent=True, hang=True)) as (server, backend):
        task = asyncio.create_task(backend.embed(job("one"), VectorReader()))
        await until(lambda: server.asked)
        assert backend.models()[0].running == 1
        task.cancel()
        async with asyncio.timeout(30):
            await server.left.wait()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert backend.models()[0].running == 0


async def test_a_model_that_the_server_does_not_have_is_said_before_it_is_asked(api: Api) -> None:
    async with api.asking(api.good([[1.0]])) as (server, backend):
        with pytest.raises(errors.Unavailable, match="does not have gone now"):
            await backend.embed(texts_for(ModelName("gone"), ("one",)), VectorReader())
    assert not server.asked


@pytest.mark.parametrize(
    ("said", "expected", "is_recounted"),
    [(7, 7, False), (2, 2, False), (1, 4, True), (None, 4, True), (-7, 4, True), ("7", 4, True), (10**9, 4, True)],
)
async def test_a_count_is_believed_or_made_up_for_and_measured(api: Api, said: object, expected: int, is_recounted: bool) -> None:
    node = Node()
    request = Embed(MODEL, ("one two three", "four"), new_request_id())
    with asked.logged() as logged:
        async with api.asking(api.good([[1.0], [1.0]], said)) as (_, backend):
            embedded = await worker(node, backend).run_embedding(request, VectorReader())
    assert embedded == Embedded(1, expected)
    assert f'ai_platform_tokens_total{{model="m",type="input"}} {expected}.0' in node.metrics.render()
    assert ("usage_recounted" in [event for event, _ in logged]) == is_recounted


def test_an_answer_as_long_as_the_contract_allows_fits_the_limit() -> None:
    longest = -2.2250738585072014e-308
    vector = json.dumps([longest] * 16_384)
    answer = f'{{"embeddings": [{", ".join([vector] * 32)}]}}'
    assert len(answer) < text_answers.openai_embedding("m", ("a",) * 32).most
