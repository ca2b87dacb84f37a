"""Moderation on workers: by an upstream's own API, and by chat models that answer like Llama Guard."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from services.inference import jobs, moderation
from services.inference.backend_interface import Sink
from services.inference.backends.remote import text_answers
from services.inference.backends.remote.event_stream import UNREADABLE, BadStream
from services.inference.service import InferenceService
from services.inference.settings import InferenceSettings
from shared import errors
from shared.api import embedding, inference
from shared.api.generation import MAX_PROMPT_BYTES, ChatMessage, GenerationEnd, Sampling, Usage
from shared.api.inference import Chunk, Moderate, Moderated, ModerationNotice, ModerationVerdict
from shared.config_documents import ModerationFormat
from shared.context import new_request_id
from shared.node.member import member
from shared.node.settings import NodeSettings
from shared.protocol.directory import ModelOffer
from shared.types import FinishReason, ModelName, NodeId, Role
from tests.services.inference.fake_http import Answer, FakeServer, serving
from tests.testnet import MESH, TestNet, testnet, until

GUARD = ModelName("guard")
MODELS = Answer([json.dumps({"data": [{"id": "guard"}]})])


def results(*found: Mapping[str, Any]) -> Answer:
    return Answer([json.dumps({"id": "modr-1", "model": "guard", "results": found})])


HARMFUL = {"flagged": True, "categories": {"violence": True, "hate": False}, "category_scores": {"violence": 0.9, "hate": 0.1}}
SAFE = {"flagged": False, "categories": {"violence": False, "hate": None}, "category_scores": {"violence": 0.2, "hate": None}}


# --- answers of upstreams -------------------------------------------------------------------------------------------------


def test_the_results_of_an_upstream() -> None:
    content = json.dumps({"results": [HARMFUL, SAFE, {"flagged": True, "categories": {"hate": True, "spam": False}}, {"flagged": True}]})
    assert text_answers.moderation("m", tuple("abcd")).read(content.encode()) == (
        ModerationVerdict(flagged=True, categories=("violence",), scores={"violence": 0.9, "hate": 0.1}),
        ModerationVerdict(flagged=False, scores={"violence": 0.2}),
        ModerationVerdict(flagged=True, categories=("hate",), scores={"hate": 1.0, "spam": 0.0}),
        ModerationVerdict(flagged=True),
    )
    assert json.loads(text_answers.moderation("m", ("a", "b")).body) == {"model": "m", "input": ["a", "b"]}


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[]", b"{}", b'{"results": {}}', b'{"results": []}', b'{"results": [{}]}', b'{"results": [{"flagged": "no"}]}',
        b'{"results": [{"flagged": true}, {"flagged": true}]}', b'{"results": [{"flagged": true, "category_scores": {"a": 1.5}}]}',
        b'{"results": [{"flagged": true, "categories": {"": true}}]}',
        json.dumps({"results": [{"flagged": True, "categories": {"x" * 101: True}}]}).encode(),
    ],
)  # fmt: skip
def test_other_results_are_refused(content: bytes) -> None:
    with pytest.raises((BadStream, *UNREADABLE)):
        text_answers.moderation("m", ("a",)).read(content)


# --- Llama Guard ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "flagged", "categories"),
    [
        ("safe", False, ()),
        ("\n\nsafe\n", False, ()),
        ("Safe", False, ()),
        ("unsafe", True, ()),
        ("unsafe\nS1", True, ("violence",)),
        ("\n\nunsafe\nS10, s4\nS2", True, ("sexual/minors", "hate")),
        ("unsafe\nS15,violence", True, ()),
    ],
)
def test_an_answer_of_llama_guard(answer: str, flagged: bool, categories: tuple[str, ...]) -> None:
    found = moderation.read_llama_guard(GUARD, answer)
    assert (found.flagged, found.categories) == (flagged, categories)
    assert {name for name, score in found.scores.items() if score} == set(categories)
    assert len(found.scores) == 14


@pytest.mark.parametrize("answer", ["", "I think it is safe", "safely", "un safe", '{"safe": true}', "S1\nunsafe"])
def test_another_answer_is_an_error_without_its_text(answer: str) -> None:
    with pytest.raises(errors.Unavailable, match=r"^guard answered neither safe nor unsafe$"):
        moderation.read_llama_guard(GUARD, answer)


async def test_a_chat_model_is_asked_for_one_verdict_after_the_other() -> None:
    asked: list[tuple[str, Sampling, str]] = []
    notices: list[ModerationNotice] = []
    request = Moderate(GUARD, ("hurt", "hi"), new_request_id(), ModerationFormat.LLAMA_GUARD)

    async def generate(
        model: ModelName, messages: tuple[ChatMessage, ...], sampling: Sampling, sink: Sink, origin: jobs.JobOrigin
    ) -> GenerationEnd:
        asked.append((messages[0].content, sampling, origin.request))
        await sink.send(Chunk("", (), waiting="loading"))
        for piece in ("un", "safe\n", "S1") if messages[0].content == "hurt" else ("safe",):
            await sink.send(Chunk(piece, (1,)))
        return GenerationEnd(FinishReason.STOP, Usage(200, 3))

    async def send(notice: ModerationNotice) -> None:
        notices.append(notice)

    moderated = await moderation.by_chat(request, generate, send)
    assert [verdict.categories for verdict in moderated.verdicts] == [("violence",), ()]
    assert moderated.prompt_tokens == 406
    assert [text for text, _, _ in asked] == ["hurt", "hi"]
    assert {(sampling.temperature, sampling.max_tokens, origin) for _, sampling, origin in asked} == {(0.0, 64, str(request.request_id))}
    assert notices == [ModerationNotice("loading")] * 2


def test_a_worker_checks_texts_again() -> None:
    with pytest.raises(errors.BadRequest, match="at most"):
        jobs.check_moderation(Moderate(GUARD, ("x" * (MAX_PROMPT_BYTES + 1),), new_request_id()))
    jobs.check_moderation(Moderate(GUARD, ("x" * MAX_PROMPT_BYTES,), new_request_id()))


def test_an_older_node_reads_the_offer_and_ours_reads_an_older_one() -> None:
    class OldOffer(msgspec.Struct, array_like=True, frozen=True):
        name: str
        context_tokens: int
        digest: str = ""

    written = msgspec.msgpack.encode(ModelOffer(GUARD, 5, only_moderates=True))
    assert msgspec.msgpack.decode(written, type=OldOffer) == OldOffer("guard", 5)
    assert not msgspec.msgpack.decode(msgspec.msgpack.encode(OldOffer("guard", 5)), type=ModelOffer).only_moderates


# --- over the mesh --------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def asking(answers: Mapping[str, Answer | list[Answer]], folder: Path) -> AsyncIterator[tuple[Any, NodeId, FakeServer]]:
    """Yield a gateway's RPC, and a worker with an upstream that only moderates."""
    async with testnet() as net, serving({"/v1/models": MODELS, **answers}) as server:
        file = folder / "upstreams.toml"
        file.write_text(f'[rack]\nurl = "{server.url}/v1"\ntask = "moderation"\n')
        key = net.server.key("worker", Role.WORKER)
        settings = InferenceSettings(mesh=MESH, nats_url=net.server.url, node_key_file=key, backend="openai", openai_upstreams=file)
        await net.start(InferenceService, settings)
        node = NodeSettings(mesh=MESH, nats_url=net.server.url, node_key_file=net.server.key("gateway", Role.GATEWAY))
        async with member(node, Role.GATEWAY) as gateway:
            await until(lambda: any(worker.announcement.models for worker in gateway.directory.usable(Role.WORKER)))
            (worker,) = gateway.directory.usable(Role.WORKER)
            assert [(offer.name, offer.only_moderates) for offer in worker.announcement.models] == [("guard", True)]
            yield gateway.rpc, worker.node, server


async def moderate(rpc: Any, node: NodeId, *texts: str, **fields: Any) -> Moderated:
    request = Moderate(**{"model": GUARD, "texts": texts, "request_id": new_request_id(), **fields})
    async with rpc.stream(inference.moderate, request, to=node) as answer:
        assert [item async for item in answer] == []
    return answer.end


async def test_an_upstream_moderates_over_the_mesh(tmp_path: Path) -> None:
    async with asking({"/v1/moderations": [results(HARMFUL, SAFE), results(SAFE)]}, tmp_path) as (rpc, node, server):
        moderated = await moderate(rpc, node, "hurt them all", "hi")
        assert [verdict.flagged for verdict in moderated.verdicts] == [True, False]
        assert moderated.prompt_tokens == 4
        assert server.asked[-1] == {"model": "guard", "input": ["hurt them all", "hi"]}
        with pytest.raises(errors.Unavailable, match="1 results for 2 texts"):
            await moderate(rpc, node, "a", "b")
        with pytest.raises(errors.BadRequest, match="guard only moderates"):
            async with rpc.stream(
                inference.process_prompt, inference.ProcessPrompt("hi", inference.ModelConfig(model=GUARD), new_request_id()), to=node
            ) as answer:
                _ = [item async for item in answer]
        with pytest.raises(errors.BadRequest, match="guard only moderates"):
            async with rpc.stream(embedding.embed, embedding.Embed(GUARD, ("hi",), new_request_id()), to=node) as answer:
                _ = [item async for item in answer]
        with pytest.raises(errors.BadRequest, match="guard only moderates"):
            await moderate(rpc, node, "a", format=ModerationFormat.LLAMA_GUARD)


@pytest.mark.parametrize(
    ("answer", "kind", "said"),
    [
        (Answer(["oops"], status=500), errors.Unavailable, "oops"),
        (Answer(["slow down"], status=429), errors.Overloaded, "slow down"),
        (Answer(['{"error": {"message": "too long"}}'], status=400), errors.BadRequest, "too long"),
        (Answer(["<p>"]), errors.Unavailable, "broke its protocol"),
    ],
)
async def test_an_upstream_that_fails(tmp_path: Path, answer: Answer, kind: type[errors.AimeshError], said: str) -> None:
    async with asking({"/v1/moderations": answer}, tmp_path) as (rpc, node, _):
        with pytest.raises(kind, match=said):
            await moderate(rpc, node, "a")


@pytest.fixture
async def net() -> AsyncIterator[TestNet]:
    async with testnet() as running:
        yield running


async def test_a_chat_model_moderates_only_in_a_format(net: TestNet) -> None:
    key = net.server.key("worker", Role.WORKER)
    await net.start(InferenceService, InferenceSettings(mesh=MESH, nats_url=net.server.url, node_key_file=key, backend="echo"))
    node = NodeSettings(mesh=MESH, nats_url=net.server.url, node_key_file=net.server.key("gateway", Role.GATEWAY))
    async with member(node, Role.GATEWAY) as gateway:
        await until(lambda: gateway.directory.usable(Role.WORKER))
        (worker,) = gateway.directory.usable(Role.WORKER)
        echo = {"model": ModelName("echo")}
        moderated = await moderate(gateway.rpc, worker.node, "safe", "unsafe", **echo, format=ModerationFormat.LLAMA_GUARD)
        assert [verdict.flagged for verdict in moderated.verdicts] == [False, True]
        with pytest.raises(errors.BadRequest, match="echo does not moderate"):
            await moderate(gateway.rpc, worker.node, "safe", **echo)
