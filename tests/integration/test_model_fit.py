"""Where models fit, in a mesh of two workers with other memory, one of an earlier version, and one whose models another program has."""

from pathlib import Path

from services.gateway.facts.config_snapshot import ConfigSnapshot
from services.gateway.models import catalog
from services.gateway.rpc_api.model_search_rpc import ModelSearch
from services.inference.service import InferenceService
from services.inference.settings import InferenceSettings
from shared.api.inference import Fit
from shared.api.model_search import FoundModel, PlanModel, SearchModels
from shared.node.member import member
from shared.node.settings import NodeSettings
from shared.rpc.audit_reporting import AuditReporting
from shared.types import NodeId, Role
from tests.services.gateway.fakes import OWNER, FixedConfig, rpc_call
from tests.testnet import MESH, IdleService, TestNet, until


async def start_worker(net: TestNet, folder: Path, name: str, **more: object) -> NodeId:
    key = net.server.key(name, Role.WORKER)
    models = folder / name
    models.mkdir()
    settings = InferenceSettings(mesh=MESH, nats_url=net.server.url, node_key_file=key, models_dir=models, **more)  # type: ignore[arg-type]
    return (await net.start(InferenceService, settings)).node.id


async def test_each_worker_says_how_models_fit_it(net: TestNet, tmp_path: Path) -> None:
    small = await start_worker(net, tmp_path, "small", model_memory="2GiB")
    large = await start_worker(net, tmp_path, "large", model_memory="7GiB")
    full = await start_worker(net, tmp_path, "full", model_memory="7GiB", model_store_quota="1GiB")
    echo = await start_worker(net, tmp_path, "echo", backend="echo")
    old = (await net.start(IdleService)).node.id
    gone = await net.start(IdleService)
    settings = NodeSettings(mesh=MESH, nats_url=net.server.url, node_key_file=net.server.key("gateway", Role.GATEWAY))
    async with member(settings, Role.GATEWAY) as gateway:
        await until(lambda: len(gateway.directory.usable(Role.WORKER)) >= 3 and len(gateway.directory.entries(Role.WORKER)) == 6)
        await gone.stop()
        await until(lambda: sum(entry.alive for entry in gateway.directory.entries(Role.WORKER)) == 5)
        live = FixedConfig(ConfigSnapshot())
        search = ModelSearch(live, gateway.rpc, gateway.directory, None, lambda _: (), AuditReporting(gateway.rpc), catalog.load())  # type: ignore[arg-type]
        found = await search.search(SearchModels(limit=50, fits=True), rpc_call(OWNER))
        planned = await search.plan(PlanModel("qwen3"), rpc_call(OWNER))

    def fits(row: FoundModel) -> dict[NodeId, Fit]:
        return {fit.worker: fit.fit for fit in row.fits}

    rows = {row.name: row for row in found.models}
    others = {echo: Fit.NO, old: Fit.UNKNOWN, gone.node.id: Fit.UNKNOWN}
    assert fits(rows["smollm2"]) == {small: Fit.YES, large: Fit.YES, full: Fit.YES, **others}
    assert fits(rows["qwen3:4b"]) == {small: Fit.NO, large: Fit.YES, full: Fit.NO, **others}
    assert fits(rows["qwen3:14b"]) == {small: Fit.NO, large: Fit.NO, full: Fit.NO, **others}
    details = {fit.worker: fit.detail for fit in planned.fits}
    assert planned.fits[0].worker == large
    assert "tokens of context" in details[large]
    assert details[small].endswith("and models may use 2.0 GiB")
    assert details[full].startswith("the store may use 1.0 GiB and uses 0.0 MiB; 4.7 GiB more are needed")
    assert "loaded by another program" in details[echo]
    assert details[gone.node.id] == "it is away: stopped"
