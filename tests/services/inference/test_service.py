"""The service on the echo backend: its handlers, and what it announces."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from services.inference import announcements
from services.inference.announcements import Announcements
from services.inference.backend_interface import Backend, Sink, VectorSink
from services.inference.engine_speed import EngineSpeed
from services.inference.jobs import GenerationJob
from services.inference.models.model_discovery import packaged
from services.inference.service import InferenceService
from services.inference.settings import InferenceSettings
from shared import errors
from shared.api import inference
from shared.api import node as node_api
from shared.api.embedding import Embed, Embedded
from shared.api.generation import ChatMessage, GenerationEnd, ImagePart, Usage
from shared.api.inference import ModelState, ModelStatus
from shared.context import new_request_id
from shared.node.lifecycle import background
from shared.rpc import RpcCall, StreamCall, bodies
from shared.types import Ability, FinishReason, LoadPurpose, ModelName, Role
from tests.services.inference import asked
from tests.services.inference.standins import Node, Reader, until
from tests.services.inference.vector_reader import VectorReader, texts_for

ECHO = ModelName("echo")


@pytest.fixture
def node() -> Node:
    return Node()


@pytest.fixture
async def service(node: Node) -> AsyncIterator[InferenceService]:
    settings = InferenceSettings(node_key_file=Path("/nowhere/worker.nk"), backend="echo")
    async with opened(settings, node) as running:
        yield running


@asynccontextmanager
async def opened(settings: InferenceSettings, node: Node) -> AsyncIterator[InferenceService]:
    async with background() as node.tasks, InferenceService.open(settings, node) as running:
        yield running


def request(prompt: str | tuple[ChatMessage, ...], **config: Any) -> inference.ProcessPrompt:
    return inference.ProcessPrompt(prompt, inference.ModelConfig(**{"model": ECHO, **config}), new_request_id())


async def run(service: InferenceService, prompt: inference.ProcessPrompt) -> tuple[Reader, GenerationEnd]:
    reader = Reader()
    return reader, await service.process_prompt(prompt, cast("StreamCall[inference.Chunk]", reader))


CALL = cast("RpcCall", None)


async def test_prompt_streams_its_tokens_and_ends_with_the_usage(service: InferenceService) -> None:
    reader, end = await run(service, request("one two"))
    assert [chunk.text for chunk in reader.chunks] == ["one", " two"]
    assert end == GenerationEnd(FinishReason.STOP, Usage(2, 2))


async def test_usage_is_the_number_of_token_ids(service: InferenceService) -> None:
    reader, end = await run(service, request("a b c d", max_tokens=3))
    assert end.usage.completion_tokens == len(reader.token_ids) == 3


async def test_unknown_model_error_lists_the_served_ones(service: InferenceService) -> None:
    with pytest.raises(errors.UnknownModel, match="echo"):
        await run(service, request("a", model="llama3"))
    with pytest.raises(errors.UnknownModel, match="echo"):
        await service.get_model_status(inference.GetModelStatus(ModelName("llama3")), CALL)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", float("nan")),
        ("temperature", -1.0),
        ("top_p", float("inf")),
        ("top_k", -1),
        ("max_tokens", 0),
        ("max_tokens", 2**63),
        ("seed", -1),
    ],
)
def test_worker_checks_numbers_itself(field: str, value: object) -> None:
    name = {one.name: one.encode_name for one in msgspec.structs.fields(inference.ModelConfig)}[field]
    wanted = request("a", **{field: value})
    with pytest.raises(errors.BadRequest, match=rf"modelConfig\.{name} must be a"):
        bodies.decode_request(inference.ProcessPrompt, bodies.encode(wanted), inference.process_prompt.name)


async def test_empty_prompt_is_refused(service: InferenceService) -> None:
    with pytest.raises(errors.BadRequest, match="empty"):
        await run(service, request(""))


async def test_models_are_listed_with_their_state(service: InferenceService) -> None:
    listed = await service.list_available_models(inference.ListAvailableModels(), CALL)
    assert listed.models == (await service.get_model_status(inference.GetModelStatus(ECHO), CALL),)
    assert (listed.models[0].model_id, listed.models[0].state, listed.models[0].slots) == ("echo", ModelState.READY, 256)


async def test_announcement_has_the_models_and_the_load(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(announcements, "GATHER_SECONDS", 0.0)
    async with opened(InferenceSettings(node_key_file=Path("/nowhere/worker.nk"), backend="echo"), node) as service:
        await run(service, request("a b c d e f g h"))
        await until(lambda: len(node.offers) > 2)
    assert [offer.load.running for offer in node.offers] == [0, 1, 0]
    assert [model.name for model in node.offers[-1].models] == ["echo"]
    assert node.offers[-1].load.slots == 256
    assert node.offers[-1].not_ready == ""


async def test_metrics(service: InferenceService, node: Node) -> None:
    await run(service, request("a b c", max_tokens=2))
    text = node.metrics.render()
    assert 'ai_platform_tokens_total{model="echo",type="input"} 3.0' in text
    assert 'ai_platform_tokens_total{model="echo",type="output"} 2.0' in text
    assert 'ai_platform_ttft_seconds_count{model="echo"} 1.0' in text
    assert 'ai_platform_worker_up{model="echo"} 1.0' in text


async def test_worker_is_ready_with_its_model(service: InferenceService) -> None:
    assert [(check.name, check.ok) for check in await service.checks()] == [("model echo", True)]


class FixedBackend(Backend):
    """A backend with a given list of models."""

    name = "llama"

    def __init__(self, *models: tuple[str, ModelState, str]) -> None:
        self._models = models

    def models(self) -> tuple[ModelStatus, ...]:
        return tuple(ModelStatus(ModelName(name), state, detail, "llama", 0, 4, 0, 0) for name, state, detail in self._models)

    def expected_wait_seconds(self) -> float:
        return 0.0

    async def generate(self, job: GenerationJob, sink: Sink) -> GenerationEnd:
        raise NotImplementedError


GOOD, ON_DISK = ("good", ModelState.READY, ""), ("disk", ModelState.UNLOADED, "on disk; loaded on demand")
DAMAGED, LOADING = ("bad", ModelState.FAILED, "bad.gguf is not a usable model"), ("slow", ModelState.LOADING, "loading")


@pytest.mark.parametrize(
    ("models", "not_ready"),
    [
        pytest.param((GOOD,), "", id="a model that answers"),
        pytest.param((DAMAGED, GOOD), "", id="a damaged one beside a good one"),
        pytest.param((LOADING, GOOD), "", id="a loading model beside a good one"),
        pytest.param((DAMAGED, ON_DISK), "", id="a model loaded on the first request"),
        pytest.param((LOADING,), "slow: loading", id="none yet"),
        pytest.param((DAMAGED, LOADING), "bad: bad.gguf is not a usable model; slow: loading", id="none, for two reasons"),
        pytest.param(
            tuple((f"m{number}", ModelState.FAILED, "its server is down") for number in range(200)),
            "m0, m1, m2 and 197 more: its server is down",
            id="many, for one reason",
        ),
        pytest.param((), "it has no model to serve", id="no models"),
    ],
)
async def test_readyz_and_the_announcement_agree(models: tuple[tuple[str, ModelState, str], ...], not_ready: str) -> None:
    node, backend = Node(), FixedBackend(*models)
    board = Announcements(node)
    board.backend = backend
    board.changed()
    assert node.offers[-1].not_ready == not_ready
    service = InferenceService(InferenceSettings(node_key_file=Path("/nowhere/worker.nk")), node, backend, Announcements(node))
    checks = await service.checks()
    # As shared.node.member decides.
    assert all(check.ok or not check.needed for check in checks) == (not not_ready)
    # Problems are shown in any case.
    assert [check.detail for check in checks if not check.ok] == [
        detail for _, state, detail in models or (("", ModelState.FAILED, "it has no model to serve"),) if state not in inference.SERVED
    ]


async def test_a_backend_that_knows_no_tokens_says_so() -> None:
    service = InferenceService(
        InferenceSettings(node_key_file=Path("/nowhere/worker.nk")), Node(), FixedBackend(GOOD), Announcements(Node())
    )
    with pytest.raises(errors.UnknownMethod, match="good runs in another program, whose tokens this worker does not know"):
        await service.detokenize(inference.Detokenize(ModelName("good"), b""), Reader())  # type: ignore[arg-type]


async def test_damaged_model_file_beside_a_valid_one_keeps_the_worker_ready(tmp_path: Path, node: Node) -> None:
    (tmp_path / "damaged.gguf").write_bytes(b"GGUF" + b"\xff" * 100)
    (tmp_path / "good.gguf").symlink_to(packaged())
    settings = InferenceSettings(
        node_key_file=Path("/nowhere/worker.nk"), models_dir=tmp_path, slots=1, context_tokens=128, threads=1, model_memory="1GiB"
    )
    async with opened(settings, node) as service:
        await until(lambda: node.offers[-1].not_ready == "")
        _, end = await run(service, request("Say hello", model="good", max_tokens=2))
        assert end.usage.completion_tokens == 2
        checks = {check.name: check for check in await service.checks()}
        assert (checks["model damaged"].ok, checks["model damaged"].needed) == (False, False)
        assert checks["model good"].ok


class Elsewhere(Backend):
    """A backend whose server sends text and counts, but no token ids; its answers break off if ``counted`` is None."""

    name = "openai"

    def __init__(self, counted: int | None, *, only_embeds: bool = False, abilities: tuple[str, ...] = ()) -> None:
        self._counted = counted
        self._abilities = abilities
        self._only_embeds = only_embeds
        self.called = 0

    def models(self) -> tuple[ModelStatus, ...]:
        return (
            ModelStatus(
                ModelName("gpt"), ModelState.READY, "", "openai", 0, 4, 0, 0, only_embeds=self._only_embeds, abilities=self._abilities
            ),
        )

    def expected_wait_seconds(self) -> float:
        return 0.0

    async def generate(self, job: GenerationJob, sink: Sink) -> GenerationEnd:
        self.called += 1
        for text in ("", "one two", " three"):
            await sink.send(inference.Chunk(text, ()))
        if self._counted is None:
            raise errors.Unavailable("it closed the answer before its end")
        return GenerationEnd(FinishReason.STOP, Usage(5, self._counted))


async def test_answers_without_token_ids_use_the_servers_count(node: Node) -> None:
    service = InferenceService(InferenceSettings(node_key_file=Path("/nowhere/worker.nk")), node, Elsewhere(7), Announcements(node))
    with asked.logged() as logged:
        await run(service, request("hi", model=ModelName("gpt")))
    assert 'ai_platform_tokens_total{model="gpt",type="output"} 7.0' in node.metrics.render()
    assert [fields["completion_tokens"] for event, fields in logged if event == "generation ended"] == [7]


async def test_interrupted_answer_without_token_ids_counts_its_pieces(node: Node) -> None:
    service = InferenceService(InferenceSettings(node_key_file=Path("/nowhere/worker.nk")), node, Elsewhere(None), Announcements(node))
    with pytest.raises(errors.Unavailable):
        await run(service, request("hi", model=ModelName("gpt")))
    assert 'ai_platform_tokens_total{model="gpt",type="output"} 2.0' in node.metrics.render()


async def test_embedding_model_refuses_prompts() -> None:
    backend = Elsewhere(7, only_embeds=True)
    service = InferenceService(InferenceSettings(node_key_file=Path("/nowhere/worker.nk")), Node(), backend, Announcements(Node()))
    assert (await service.get_model_status(inference.GetModelStatus(ModelName("gpt")), CALL)).only_embeds
    node = Node()
    board = Announcements(node)
    board.backend = backend
    board.changed()
    assert [offer.only_embeds for offer in node.offers[-1].models] == [True]
    with pytest.raises(errors.BadRequest, match="gpt only computes embeddings"):
        await run(service, request("hi", model=ModelName("gpt")))
    assert backend.called == 0


async def test_images_of_a_model_without_them_are_refused() -> None:
    images = (ChatMessage("user", "", images=(ImagePart(b"x"),)),)
    settings, node = InferenceSettings(node_key_file=Path("/nowhere/worker.nk")), Node()
    blind, seeing = Elsewhere(7), Elsewhere(7, abilities=(Ability.IMAGES,))
    asked = inference.ProcessPrompt(images, inference.ModelConfig(model=ModelName("gpt")), request("hi").request_id)
    with pytest.raises(errors.BadRequest, match="gpt doesn't support images"):
        await run(InferenceService(settings, node, blind, Announcements(node)), asked)
    await run(InferenceService(settings, node, seeing, Announcements(node)), asked)
    assert (blind.called, seeing.called) == (0, 1)
    board = Announcements(node)
    board.backend = seeing
    board.changed()
    assert [offer.abilities for offer in node.offers[-1].models] == [("images",)]


def test_status_of_an_older_worker_means_a_generation_model() -> None:
    status = ModelStatus(ModelName("m"), ModelState.READY, "", "llama", 0, 4, 0, 0, only_embeds=True)
    fields = msgspec.to_builtins(status)
    assert fields["onlyEmbeds"]
    assert msgspec.convert({**fields, "new": 1}, ModelStatus) == status
    del fields["onlyEmbeds"]
    assert msgspec.convert(fields, ModelStatus) == msgspec.structs.replace(status, only_embeds=False)


class Restarting(Backend):
    """A backend whose only engine has just died."""

    name = "llama"

    def models(self) -> tuple[ModelStatus, ...]:
        return (ModelStatus(ModelName("smollm2"), ModelState.LOADING, "the engine was killed", "llama", 2048, 4, 0, 0),)

    def expected_wait_seconds(self) -> float:
        return 0.0

    async def generate(self, job: GenerationJob, sink: Sink) -> GenerationEnd:
        raise NotImplementedError


async def test_restarting_worker_keeps_its_model_so_callers_get_503_not_404() -> None:
    node = Node()
    board = Announcements(node)
    board.backend = Restarting()
    board.changed()
    (offer,) = node.offers
    assert [(model.name, model.ready) for model in offer.models] == [("smollm2", False)]
    assert offer.not_ready == "smollm2: the engine was killed"
    assert offer.load.slots == 0


class OnDisk(Backend):
    """A backend with a model that is loaded on request."""

    name = "llama"
    has_engines = True

    def __init__(self) -> None:
        self.called: list[str] = []

    def models(self) -> tuple[ModelStatus, ...]:
        detail = "on disk; loaded on demand"
        return (ModelStatus(ModelName("qwen"), ModelState.UNLOADED, detail, "llama", 4096, 4, 0, 0, aliases=(ModelName("q"),)),)

    def expected_wait_seconds(self) -> float:
        return 0.0

    async def generate(self, job: GenerationJob, sink: Sink) -> GenerationEnd:
        self.called.append(f"generate {job.model}")
        return GenerationEnd(FinishReason.STOP, Usage(1, 0))

    async def embed(self, job: Embed, sink: VectorSink) -> Embedded:
        self.called.append(f"embed {job.model}")
        return Embedded(2, 1)

    async def load(self, model: ModelName, *, pin: bool | None = None, purpose: LoadPurpose | None = None) -> ModelStatus:
        self.called.append(f"load {model} {pin} {purpose}")
        return self.models()[0]

    async def unload(self, model: ModelName) -> ModelStatus:
        self.called.append(f"unload {model}")
        return self.models()[0]

    def figures(self, model: ModelName) -> EngineSpeed:
        return EngineSpeed()


async def test_worker_with_models_on_disk_is_ready_and_offers_all_names() -> None:
    node = Node()
    board = Announcements(node)
    board.backend = OnDisk()
    board.changed()
    (offer,) = node.offers
    assert [(model.name, model.context_tokens, model.ready) for model in offer.models] == [("qwen", 4096, True), ("q", 4096, True)]
    assert (offer.not_ready, offer.load.slots) == ("", 4)
    assert 'ai_platform_worker_up{model="qwen"} 1.0' in node.metrics.render()


async def test_alias_selects_its_model() -> None:
    backend = OnDisk()
    service = InferenceService(InferenceSettings(node_key_file=Path("/nowhere/worker.nk")), Node(), backend, Announcements(Node()))
    assert [(check.name, check.ok) for check in await service.checks()] == [("model qwen", True)]
    await run(service, request("hi", model=ModelName("q")))
    await service.run_embedding(texts_for(ModelName("q"), ("hi",)), VectorReader())
    await service.load_model(inference.LoadModel(ModelName("q"), pin=True, purpose=LoadPurpose.AGENTS), CALL)
    status = await service.unload_model(inference.UnloadModel(ModelName("qwen")), CALL)
    assert status == backend.models()[0]
    assert backend.called == ["generate qwen", "embed qwen", "load qwen True agents", "unload qwen"]
    with pytest.raises(errors.UnknownModel, match="qwen"):
        await service.load_model(inference.LoadModel(ModelName("other")), CALL)


async def test_remote_models_cannot_be_loaded(service: InferenceService) -> None:
    with pytest.raises(errors.BadRequest, match="backend echo are loaded by another program"):
        await service.load_model(inference.LoadModel(ECHO), CALL)
    with pytest.raises(errors.BadRequest, match="loaded by another program"):
        await service.unload_model(inference.UnloadModel(ECHO), CALL)
    # Nor can the mesh put one there, which nobody would ever load.
    with pytest.raises(errors.BadRequest, match="loaded by another program"):
        await service.ensure_model(inference.EnsureModel(ModelName("qwen"), "hf:org/qwen", inference.Assignment()), CALL)


async def test_paused_worker_gets_no_requests_and_finishes_running_ones(tmp_path: Path, node: Node) -> None:
    settings = InferenceSettings(node_key_file=Path("/nowhere/worker.nk"), backend="echo", pause_file=tmp_path / "paused")
    (tmp_path / "paused").touch()
    async with opened(settings, node) as service:
        assert node.offers[-1].not_ready == "paused by its owner"
        assert [model.name for model in node.offers[-1].models] == ["echo"]
        assert [(check.name, check.ok) for check in await service.checks()] == [("owner", False), ("model echo", True)]
        assert (await run(service, request("one")))[0].text == "one"
        (tmp_path / "paused").unlink()
        await until(lambda: node.offers[-1].not_ready == "")
        assert [check.name for check in await service.checks()] == ["model echo"]


async def test_status_file_is_written(tmp_path: Path, node: Node) -> None:
    settings = InferenceSettings(node_key_file=Path("/nowhere/worker.nk"), backend="echo", status_file=tmp_path / "status")
    async with opened(settings, node):
        await until((tmp_path / "status").exists)
    status = node_api.decode_status((tmp_path / "status").read_bytes())
    assert (status.models, status.running, status.is_paused) == (("echo",), 0, False)
    assert "serving 1 model: echo" in status.lines
    assert (tmp_path / "status").stat().st_mode & 0o077 == 0


def test_service_has_the_worker_role() -> None:
    assert InferenceService.role is Role.WORKER


async def test_unstreamed_answer_comes_in_few_chunks(service: InferenceService) -> None:
    prompt = msgspec.structs.replace(request(" ".join(map(str, range(40)))), streamed=False)
    reader, end = await run(service, prompt)
    assert reader.text == prompt.prompt
    assert (len(reader.token_ids), end.usage.completion_tokens) == (40, 40)
    assert len(reader.chunks) < 5
