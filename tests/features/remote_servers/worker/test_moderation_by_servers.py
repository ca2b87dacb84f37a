"""Moderation by a server's own API."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from features.remote_servers.settings import ServerSettings
from features.remote_servers.worker.rules import text_answers
from features.remote_servers.worker.rules.event_stream import UNREADABLE, BadStream
from services.inference.service import InferenceService
from services.inference.settings import InferenceSettings
from shared import errors
from shared.api import embedding, inference
from shared.api.inference import ModerationVerdict
from shared.config_documents import ModerationFormat
from shared.context import new_request_id
from shared.node.member import member
from shared.node.settings import NodeSettings
from shared.types import NodeId, Role
from tests.services.inference.fake_http import Answer, FakeServer, serving
from tests.services.inference.test_moderation import GUARD, moderate
from tests.testnet import MESH, testnet, until

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


# --- over the mesh --------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def asking(answers: Mapping[str, Answer | list[Answer]], folder: Path) -> AsyncIterator[tuple[Any, NodeId, FakeServer]]:
    """Yield a gateway's RPC, and a worker with an upstream that only moderates."""
    async with testnet() as net, serving({"/v1/models": MODELS, **answers}) as server:
        file = folder / "upstreams.toml"
        file.write_text(f'[rack]\nurl = "{server.url}/v1"\ntask = "moderation"\n')
        key = net.server.key("worker", Role.WORKER)
        settings = InferenceSettings(
            mesh=MESH, nats_url=net.server.url, node_key_file=key, backend="openai", more=(ServerSettings(openai_upstreams=file),)
        )
        await net.start(InferenceService, settings)
        node = NodeSettings(mesh=MESH, nats_url=net.server.url, node_key_file=net.server.key("gateway", Role.GATEWAY))
        async with member(node, Role.GATEWAY) as gateway:
            await until(lambda: any(worker.announcement.models for worker in gateway.directory.usable(Role.WORKER)))
            (worker,) = gateway.directory.usable(Role.WORKER)
            assert [(offer.name, offer.only_moderates) for offer in worker.announcement.models] == [("guard", True)]
            yield gateway.rpc, worker.node, server


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
