"""Searches, plans and refreshes, with a fake mesh and a hub on loopback."""

import hashlib
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest

from services.gateway import store
from services.gateway.configuration.config_store import ConfigStore
from services.gateway.configuration.live_configuration import LiveConfiguration
from services.gateway.facts.config_snapshot import ConfigSnapshot
from services.gateway.models import catalog, hub
from services.gateway.models.hub import Hub
from services.gateway.rpc_api.model_search_rpc import ModelSearch
from services.gateway.settings import GatewaySettings
from shared import config, errors
from shared.api import auth, inference
from shared.api.gateway import ServedModel
from shared.api.inference import MAX_HEADER_BYTES, Fit, ModelFit, ModelFits
from shared.api.model_search import FoundModel, PlanModel, RefreshCatalog, SearchModels
from shared.config_documents import CatalogDocument
from shared.protocol.directory import WorkerLoad
from shared.rpc.audit_reporting import AuditReporting
from shared.types import ModelName, NodeId, Tier, UserRole
from tests.services.gateway.fakes import USER, FakeDirectory, FakeRpc, FixedConfig, node_id, rpc_call
from tests.services.gateway.test_settings import GIVEN
from tests.services.inference.models import fake_hub
from tests.services.inference.models.fake_hub import FakeHub

CALL = rpc_call(auth.Principal(USER, "root", UserRole.ADMIN, Tier.FREE))
YES, NO = ModelFit(fit=Fit.YES, free_bytes=9, context_tokens=4096), ModelFit(fit=Fit.NO, detail="it needs 9 GiB, and models may use 1 GiB")
PARTLY, ON_GPU = ModelFit(fit=Fit.PARTLY, detail="9 of 36 layers on the processor"), ModelFit(fit=Fit.YES, on_gpu=True)
MODEL = CatalogDocument(source="hf:org/model-GGUF:Q8_0", parameters=10**9, quantizations=("Q8_0",), aliases=("other",))
NOBODY = "http://127.0.0.1:9"


class Rpc(FakeRpc):
    """Workers that answer every plan with a fit, or raise an error; ``received`` has what they were asked."""

    def __init__(self) -> None:
        super().__init__()
        self.fits: dict[NodeId | None, ModelFit | errors.AimeshError | int] = {}
        self.received: list[inference.PlanModels] = []

    async def call(self, method: Any, request: inference.PlanModels, *, to: NodeId | None = None, **_more: Any) -> Any:
        assert method is inference.plan_models
        self.received.append(request)
        match self.fits[to]:
            case ModelFit() as fit:
                return ModelFits((fit,) * len(request.models))
            case int() as count:
                return ModelFits((YES,) * count)
            case error:
                raise error


@dataclass
class Harness:
    hub: Hub | None = None
    served: tuple[ServedModel, ...] = ()
    live: Any = field(default_factory=lambda: FixedConfig(ConfigSnapshot(catalog={"model": MODEL})))
    rpc: Rpc = field(default_factory=Rpc)
    nodes: FakeDirectory = field(default_factory=FakeDirectory)
    builtin: catalog.Catalog = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.search_rpc = ModelSearch(
            self.live, self.rpc, self.nodes, self.hub, lambda _: self.served, AuditReporting(self.rpc), self.builtin
        )

    def worker(self, number: int, fit: ModelFit | errors.AimeshError | int, *, accepts: bool = True) -> None:
        self.nodes.worker(number, load=WorkerLoad(accepts_models=accepts))
        self.rpc.fits[node_id(number)] = fit

    async def search(self, text: str = "", **more: Any) -> tuple[FoundModel, ...]:
        found = await self.search_rpc.search(SearchModels(text, **more), CALL)
        assert found.notes == ()
        return found.models

    async def plan(self, reference: str) -> FoundModel:
        return await self.search_rpc.plan(PlanModel(reference), CALL)


@pytest.fixture
def site() -> Iterator[FakeHub]:
    with fake_hub.serving() as running:
        yield running


@asynccontextmanager
async def asking(url: str, **more: Any) -> AsyncIterator[Harness]:
    async with Hub.opened(url) as opened:
        yield Harness(opened, **more)


def list_on_hub(site: FakeHub, *repositories: dict[str, Any]) -> None:
    site.bodies["/api/models"] = json.dumps(repositories).encode()


async def test_a_search_finds_the_catalog_and_what_the_mesh_serves() -> None:
    served = (ServedModel(ModelName("model"), 1, 2048), ServedModel(ModelName("mine"), 1, 2048, aliases=("models",)))
    harness = Harness(served=served)
    first, second = await harness.search()
    assert (first.name, first.origin, first.is_served, first.model) == ("model", "catalog", True, MODEL)
    assert first.size == pytest.approx(1.07e9, rel=0.01)
    assert (second.name, second.origin, second.is_served, second.model) == ("mine", "mesh", True, None)
    assert [row.name for row in await harness.search("MIN")] == ["mine"]
    assert [row.name for row in await harness.search("other")] == ["model"]
    assert [row.name for row in await harness.search(limit=1)] == ["model"]
    assert harness.rpc.received == [], "workers are only asked if the caller wants that"


async def test_machines_are_listed_the_best_first_with_the_reason_of_each() -> None:
    harness = Harness()
    harness.worker(0, NO)
    harness.worker(1, PARTLY)
    harness.worker(2, YES)
    harness.worker(3, ON_GPU, accepts=False)
    harness.worker(4, ON_GPU)
    harness.worker(5, errors.UnknownMethod("this node has no method inference.planModels"))
    harness.worker(6, errors.DeadlineExceeded("no answer within 3 s"))
    harness.worker(7, errors.BadRequest("the models of the backend ollama are loaded by another program"))
    harness.worker(8, 0)
    harness.worker(9, YES)
    harness.nodes.mark_gone(node_id(9), "silent")
    harness.nodes.worker(10, draining=True)
    (row,) = await harness.search("model", fits=True)
    assert [(fit.worker, fit.fit) for fit in row.fits] == [
        (node_id(4), Fit.YES),
        (node_id(2), Fit.YES),
        (node_id(1), Fit.PARTLY),
        *((node_id(number), Fit.UNKNOWN) for number in (5, 6, 8, 9, 10)),
        (node_id(0), Fit.NO),
        (node_id(7), Fit.NO),
        (node_id(3), Fit.YES),
    ]
    assert [fit.accepts_models for fit in row.fits] == [True] * 10 + [False]
    details = {fit.worker: fit.detail for fit in row.fits}
    assert details[node_id(0)] == NO.detail
    assert details[node_id(5)] == "this node has no method inference.planModels"
    assert details[node_id(9)] == "it is away: silent"


async def test_all_models_of_a_search_are_one_question_to_each_worker() -> None:
    harness = Harness(builtin=catalog.load(), served=(ServedModel(ModelName("mine"), 1, 1),))
    harness.worker(0, YES)
    rows = await harness.search(limit=50, fits=True)
    assert len(rows) > 10
    assert [len(row.fits) for row in rows if row.model is not None] == [1] * (len(rows) - 1)
    (request,) = harness.rpc.received
    assert [facts.file_bytes for facts in request.models] == [row.size for row in rows if row.model is not None]


async def test_a_name_leads_to_its_model_and_an_unknown_one_to_the_nearest() -> None:
    harness = Harness(builtin=catalog.load(), served=(ServedModel(ModelName("x"), 1, 1, aliases=("qwen3:8b",)),))
    harness.worker(0, YES)
    found = await harness.plan("Other")
    assert (found.name, found.origin, found.is_served, len(found.fits)) == ("model", "catalog", False, 1)
    assert (await harness.plan("qwen3")).is_served, "an alias of the mesh has the name of the catalog's model"
    with pytest.raises(errors.UnknownModel, match="no model is called 'qwen3:8x'") as unknown:
        await harness.plan("qwen3:8x")
    assert unknown.value.hint.startswith("did you mean qwen3:8b")
    with pytest.raises(errors.UnknownModel) as strange:
        await harness.plan("zzzzzzzz")
    assert "hf:OWNER/REPO:QUANT" in strange.value.hint


async def test_the_hub_is_asked_for_further_models(site: FakeHub) -> None:
    list_on_hub(
        site,
        {"id": "org/found-GGUF", "downloads": 7, "tags": ["gguf", "license:mit"], "gguf": {"total": 10**9, "context_length": 8192}},
        {"id": "org/without-numbers"},
        {"id": "../evil", "gguf": {"total": 5}},
    )
    async with asking(site.url) as harness:
        harness.worker(0, YES)
        (row,) = await harness.search("found", fits=True)
        await harness.search("found", hub=False)
        await harness.search("")
    assert (row.name, row.origin, row.downloads, len(row.fits)) == ("hf:org/found-GGUF", "hub", 7, 1)
    assert row.model == CatalogDocument(
        source="hf:org/found-GGUF", parameters=10**9, quantizations=("Q4_K_M",), license="mit", uses=(), context=8192
    )
    (path,) = site.paths()
    assert path.startswith("/api/models?search=found&filter=gguf&limit=20&")


@pytest.mark.parametrize("body", [b"<html>", b"{}", b"[" * 100_000, b'[{"id": 7}]', b"[" + b" " * hub.MAX_ANSWER_BYTES + b"]"])
async def test_an_unusable_answer_of_the_hub_is_a_line(site: FakeHub, body: bytes) -> None:
    site.bodies["/api/models"] = body
    async with asking(site.url) as harness:
        found = await harness.search_rpc.search(SearchModels("model"), CALL)
    assert [row.name for row in found.models] == ["model"]
    assert found.notes == ("Hugging Face does not answer",)


async def test_without_a_network_the_catalog_and_its_estimates_remain() -> None:
    async with asking(NOBODY) as harness:
        harness.worker(0, YES)
        found = await harness.search_rpc.search(SearchModels("model", fits=True), CALL)
        assert ([row.name for row in found.models], found.notes) == (["model"], ("Hugging Face does not answer",))
        planned = await harness.plan("model")
        assert [fit.fit for fit in planned.fits] == [Fit.YES]
        strange = await harness.plan("hf:org/strange:Q8_0")
        assert (strange.name, strange.origin, strange.model) == ("hf:org/strange:Q8_0", "hub", None)
        assert [(fit.fit, fit.detail) for fit in strange.fits] == [(Fit.UNKNOWN, "127.0.0.1 does not answer")]
        with pytest.raises(errors.Unavailable, match="is there a network"):
            await harness.search_rpc.refresh(RefreshCatalog(), CALL)


async def test_a_server_that_never_answers_ends_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "SECONDS", 0.01)

    with socket.create_server(("127.0.0.1", 0)) as server:
        async with asking(f"http://127.0.0.1:{server.getsockname()[1]}") as harness:
            found = await harness.search_rpc.search(SearchModels("model"), CALL)
    assert found.notes == ("Hugging Face does not answer",)


async def test_the_beginning_of_a_file_goes_to_the_workers(site: FakeHub) -> None:
    body = b"GGUF" + b"x" * 2 * MAX_HEADER_BYTES
    site.add_repository("org/model-GGUF", {"model-Q8_0.gguf": body}, gguf={"total": 5, "context_length": 512})
    async with asking(site.url) as harness:
        harness.worker(0, YES)
        for reference in ("model", "hf:org/model-GGUF:Q8_0", "hf:org/model-GGUF"):
            found = await harness.plan(reference)
            assert found.model is not None
            assert (found.size, found.model.size, found.model.context) == (len(body), len(body), 512)
    for request in harness.rpc.received:
        (facts,) = request.models
        assert (facts.file_bytes, facts.header) == (len(body), body[:MAX_HEADER_BYTES])
    assert site.asked[1][1]["Range"] == f"bytes=0-{MAX_HEADER_BYTES - 1}"


async def test_a_repository_that_the_hub_does_not_have_is_an_error_unless_the_catalog_knows_it(site: FakeHub) -> None:
    async with asking(site.url) as harness:
        harness.worker(0, YES)
        assert [fit.fit for fit in (await harness.plan("model")).fits] == [Fit.YES]
        with pytest.raises(errors.NotFound, match=r"127\.0\.0\.1 has no such model for everyone"):
            await harness.plan("hf:org/nothing")
        with pytest.raises(errors.BadRequest, match="not a model of the hub"):
            await harness.plan("hf:../../etc/passwd")


@pytest.mark.parametrize("source", ["https://example.org/m.gguf", "oci://registry.example.org/team/m:1"])
async def test_no_caller_can_send_the_gateway_to_a_server(site: FakeHub, source: str) -> None:
    async with asking(site.url) as harness:
        harness.worker(0, YES)
        found = await harness.plan(source)
    assert (found.model, [fit.fit for fit in found.fits], site.asked) == (None, [Fit.UNKNOWN], [])


async def test_a_refresh_writes_what_the_hub_says_to_the_configuration(site: FakeHub, postgres_url: str) -> None:
    site.add_repository("org/model-GGUF", {"model-Q8_0.gguf": b"GGUF1"}, gguf={"total": 5, "context_length": 512})
    gone = msgspec.structs.replace(MODEL, source="hf:org/gone:Q8_0")
    async with store.opened(postgres_url) as database:
        live = LiveConfiguration(ConfigStore(database))
        await live.start(config.load(GatewaySettings, GIVEN))
        async with asking(site.url, live=live, builtin={"model": MODEL, "gone": gone}) as harness:
            done = await harness.search_rpc.refresh(RefreshCatalog(), CALL)
            again = await harness.search_rpc.refresh(RefreshCatalog(), CALL)
            model, other = await harness.search(hub=False)
    assert (done.changed, done.problems) == (("model",), ("gone: 127.0.0.1 has no such model for everyone",))
    assert again.changed == ()
    assert model.model == msgspec.structs.replace(MODEL, size=5, sha256=hashlib.sha256(b"GGUF1").hexdigest(), context=512)
    assert other.model == gone


async def test_a_gateway_that_may_not_ask_the_hub_says_so() -> None:
    harness = Harness()
    harness.worker(0, YES)
    with pytest.raises(errors.NotAllowed, match="may not ask the hub"):
        await harness.search_rpc.refresh(RefreshCatalog(), CALL)
    assert [fit.fit for fit in (await harness.plan("model")).fits] == [Fit.YES]
    assert (await harness.plan("hf:org/x")).fits[0].detail == "its size isn't known before the download"
