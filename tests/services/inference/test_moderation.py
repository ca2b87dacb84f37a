"""Moderation on workers, by chat models that answer like Llama Guard."""

from typing import Any

import msgspec
import pytest

from services.inference import jobs, moderation
from services.inference.backend_interface import Sink
from services.inference.service import InferenceService
from services.inference.settings import InferenceSettings
from shared import errors
from shared.api import inference
from shared.api.generation import MAX_PROMPT_BYTES, ChatMessage, GenerationEnd, Sampling, Usage
from shared.api.inference import Chunk, Moderate, Moderated, ModerationNotice
from shared.config_documents import ModerationFormat
from shared.context import new_request_id
from shared.node.member import member
from shared.node.settings import NodeSettings
from shared.protocol.directory import ModelOffer
from shared.types import FinishReason, ModelName, NodeId, Role
from tests.testnet import MESH, TestNet, until

GUARD = ModelName("guard")


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


async def moderate(rpc: Any, node: NodeId, *texts: str, **fields: Any) -> Moderated:
    request = Moderate(**{"model": GUARD, "texts": texts, "request_id": new_request_id(), **fields})
    async with rpc.stream(inference.moderate, request, to=node) as answer:
        assert [item async for item in answer] == []
    return answer.end


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
