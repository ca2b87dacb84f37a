"""`aicli models check` at whole gateways, and what the list of models says then."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest

from cli.connection import MeshConnection
from cli.profile import Profile
from features.model_check import contract
from features.model_check.cli import commands
from features.model_check.cli.scripts import SCRIPTS
from features.model_check.gateway import part
from services.gateway.service import GatewayService
from services.gateway.settings import GatewaySettings
from shared import errors
from shared.api import gateway, inference
from shared.api.generation import GenerationEnd, ToolCallPart, Usage
from shared.node import Node
from shared.node.client_node import ClientNode
from shared.protocol.agent_requirements import CONTEXT_TOKENS
from shared.protocol.directory import ModelOffer, WorkerLoad
from shared.rpc import StreamCall, serves
from shared.types import Credential, FinishReason, ModelName, Role
from tests.features.model_check import scripted
from tests.services.gateway.fakes import KEY
from tests.services.gateway.test_service import ADMIN_TOKEN, StandInAuth
from tests.testnet import MESH, NodeService, RunningNode, testnet, until

MODEL = ModelName("qwen3")
OLD, NEW = "a" * 64, "b" * 64


class ScriptedWorker(NodeService):
    role: ClassVar[Role] = Role.WORKER

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self.serve(OLD)

    def serve(self, digest: str, context_tokens: int = CONTEXT_TOKENS) -> None:
        offers = (ModelOffer(MODEL, context_tokens, digest=digest), ModelOffer(ModelName("bge"), 512, only_embeds=True))
        self.node.offer(models=offers, load=WorkerLoad(slots=4))

    @serves(inference.process_prompt)
    async def process(self, request: inference.ProcessPrompt, stream: StreamCall[inference.Chunk]) -> GenerationEnd:
        assert not isinstance(request.prompt, str)
        config = request.model_config
        assert (config.temperature, len(config.tools) > 0, (config.max_tokens or 9999) < 9999) == (0, True, True)
        answer = scripted.answer(next(message.content for message in request.prompt if message.role == "user"))
        await stream.send(inference.Chunk(answer.text, (1,)))
        for index, (name, arguments) in enumerate(answer.calls):
            first = ToolCallPart(index, arguments[:5], f"c{index}", name)
            await stream.send(inference.Chunk("", (2,), call_parts=(first,)))
            await stream.send(inference.Chunk("", (3,), call_parts=(ToolCallPart(index, arguments[5:]),)))
        await stream.send(inference.Chunk("", (4,), finish=FinishReason.STOP))
        return GenerationEnd(FinishReason.STOP, Usage(5, 2 + 2 * len(answer.calls)))


@dataclass
class Mesh:
    client: ClientNode
    worker: ScriptedWorker
    auth: StandInAuth
    gateways: Sequence[RunningNode]

    def connection(self, credential: Credential) -> MeshConnection:
        return MeshConnection(self.client, Profile(mesh=MESH, api_key=credential))

    async def said(self, credential: Credential = KEY) -> set[tuple[int | None, bool, str]]:
        """Return what each gateway says of the model."""
        found = set()
        for each in self.gateways:
            served = await self.client.rpc.call(gateway.list_models, gateway.ListModels(), to=each.node.id, credential=credential)
            found |= {(row.right_calls, row.suits_agents, row.agents_hint) for row in served.models if row.name == MODEL}
        return found

    async def become(self, *expected: Any) -> None:
        while await self.said() != {expected}:
            pass


@pytest.fixture
async def mesh(postgres_url: str, valkey_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Mesh]:
    monkeypatch.setattr(part, "_SECONDS", 0.05)
    async with testnet() as net:
        auth, worker = await net.start(StandInAuth), await net.start(ScriptedWorker)
        settings = GatewaySettings(
            mesh=MESH, nats_url=net.server.url, node_key_file=Path(), database_url=postgres_url, redis_url=valkey_url,
            prompt_hash_secret="s" * 32, default_rate_limit=1000, tier_free={"requests_per_minute": "unlimited"},
        )  # fmt: skip
        keys = [net.server.key(f"gateway-{number}", Role.GATEWAY) for number in range(3)]
        gateways = [await net.start(GatewayService, msgspec.structs.replace(settings, node_key_file=key)) for key in keys]
        client = await net.client()
        await until(lambda: len(client.directory.usable(Role.GATEWAY)) == len(gateways))
        for each in gateways:
            directory = each.node.directory
            await until(lambda directory=directory: directory.usable(Role.AUTH) and directory.usable(Role.WORKER))
        yield Mesh(client, worker.service, auth.service, gateways)  # type: ignore[arg-type]


async def test_a_model_that_answers_47_of_50_right_suits_agents_at_three_gateways_until_its_file_changes(mesh: Mesh) -> None:
    assert await mesh.said() == {(None, False, "tools not checked")}
    checked = await commands._check(mesh.connection(ADMIN_TOKEN), MODEL)
    faults = {number: call.fault for number, call in enumerate(checked.calls) if call.fault}
    assert faults == {
        9: "delete_branch: force is true instead of false",
        25: "text instead of a call: 'I would multiply them.'",
        44: "send_email is one call too many",
    }
    assert (checked.right_calls, checked.of, checked.is_recorded) == (47, 50, True)
    await mesh.become(47, True, "tools 47 of 50")
    await until(lambda: mesh.auth.acts)
    assert [(act.action, act.target, act.details) for act in mesh.auth.acts] == [("model.check", MODEL, {"right_calls": "47"})]
    mesh.worker.serve(OLD, 8192)
    await mesh.become(47, False, "tools 47 of 50, context 8,192 of 65,536")
    mesh.worker.serve(OLD, 0)
    await mesh.become(47, False, "tools 47 of 50, context unknown")
    mesh.worker.serve(NEW)
    await mesh.become(None, False, "tools not checked")
    mesh.worker.serve(OLD)
    await mesh.become(47, True, "tools 47 of 50")


async def test_callers_who_are_no_administrators_only_see_their_results(mesh: Mesh, capsys: pytest.CaptureFixture[str]) -> None:
    checked = await commands._check(mesh.connection(KEY), MODEL)
    assert (checked.right_calls, checked.is_recorded) == (47, False)
    assert "only shown: the mesh keeps those of administrators" in capsys.readouterr().err
    with pytest.raises(errors.NotAllowed):
        await mesh.client.rpc.call(contract.record_model_check, contract.RecordModelCheck(MODEL, (OLD,), len(SCRIPTS)), credential=KEY)
    assert await mesh.said() == {(None, False, "tools not checked")}


async def test_a_file_that_changes_during_a_check_gets_no_result_of_the_former_one(mesh: Mesh) -> None:
    call = mesh.client.rpc.call
    found = await call(contract.find_model_builds, contract.FindModelBuilds(MODEL), credential=ADMIN_TOKEN)
    assert found.builds == (OLD,)
    mesh.worker.serve(NEW)
    await until(lambda: all(NEW in str(each.node.directory.usable(Role.WORKER)[0].announcement.models) for each in mesh.gateways))
    with pytest.raises(errors.NotFound, match="has changed during the check"):
        await call(contract.record_model_check, contract.RecordModelCheck(MODEL, found.builds, 50), credential=ADMIN_TOKEN)
    for model in ("bge", "route", ""):
        with pytest.raises((errors.NotFound, errors.BadRequest)):
            await call(contract.find_model_builds, contract.FindModelBuilds(model), credential=ADMIN_TOKEN)
