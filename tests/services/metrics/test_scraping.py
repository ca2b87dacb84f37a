"""OpenMetrics with exemplars, from a worker's histogram over the mesh to a scraper."""

import asyncio
from pathlib import Path
from typing import ClassVar

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_plain

from services.metrics.service import MetricsService
from services.metrics.settings import MetricsSettings
from shared import context, errors
from shared.api import metrics as api
from shared.api.metrics import MetricsTextFormat
from shared.node import NodeSettings
from shared.node.http_server import Operations
from shared.telemetry.answer_metrics import MeasuredAnswer, WorkerAnswers
from shared.telemetry.tracing import Traces
from shared.types import ModelName, Role
from tests.testnet import MESH, IdleService, RunningNode, TestNet, free_port, until

OPENMETRICS = {"accept": "application/openmetrics-text; version=1.0.0"}
TRACE = "0af7651916cd43dd8448eb211c80319c"
BUCKET = "ai_platform_ttft_seconds_bucket"


class Quiet(IdleService):
    """A service that does nothing."""

    role: ClassVar[Role]


class Gateway(Quiet):
    role = Role.GATEWAY


class Worker(Quiet):
    role = Role.WORKER


async def _worker(net: TestNet) -> RunningNode:
    """Start a worker that has answered once, in a sampled trace."""
    worker = await net.start(Worker)
    serving = Traces(ratio=0).join("chat", f"00-{TRACE}-b7ad6b7169203331-01", context.new_request_id())
    assert serving is not None
    with serving:
        answer = MeasuredAnswer(operation="chat", method="m", model=ModelName("llama3"), seconds=2, first_text_seconds=0.3)
        WorkerAnswers(worker.node.metrics, "echo").ended(answer)
    return worker


async def _metrics(net: TestNet, port: int = 0) -> RunningNode:
    settings = MetricsSettings(
        node_key_file=net.server.key("metrics", Role.METRICS), port=0, prometheus_port=port, mesh=MESH, nats_url=net.server.url
    )
    return await net.start(MetricsService, settings)


def _exemplars(text: str) -> set[tuple[str, str]]:
    """Return the service and the trace of each exemplar of the time to first token."""
    return {
        (sample.labels.get("service", ""), sample.exemplar.labels["trace_id"])
        for family in read_openmetrics(text)
        for sample in family.samples
        if sample.name == BUCKET and sample.exemplar
    }


async def _collected_with_the_worker(scraper: httpx.AsyncClient) -> httpx.Response:
    """Scrape until the worker is included, because a collection from before it joined is cached for a second."""
    async with asyncio.timeout(30):
        while TRACE not in (got := await scraper.get("/metrics", headers=OPENMETRICS)).text:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    return got


async def test_mesh_is_scraped_in_the_requested_format(net: TestNet) -> None:
    port = free_port()
    metrics = await _metrics(net, port)
    await _worker(net)
    gateway = await net.start(Gateway)
    await until(lambda: {Role.WORKER, Role.GATEWAY} <= {one.role for one in metrics.node.directory.entries() if one.alive})
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as scraper:
        got = await _collected_with_the_worker(scraper)
        assert got.headers["content-type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
        assert _exemplars(got.text) == {("inference", TRACE)}
        plain = await scraper.get("/metrics")
        assert plain.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert BUCKET in {sample.name for family in read_plain(plain.text) for sample in family.samples}
        assert TRACE not in plain.text
    response = await gateway.node.rpc.call(api.get_metrics, api.GetMetrics(format=MetricsTextFormat.OPENMETRICS))
    assert response.content_type.startswith("application/openmetrics-text")
    assert _exemplars(response.text) == {("inference", TRACE)}
    usual = await gateway.node.rpc.call(api.get_metrics, api.GetMetrics())
    assert usual.content_type.startswith("text/plain")
    assert TRACE not in usual.text


async def test_node_is_scraped_in_the_requested_format(net: TestNet) -> None:
    worker = await _worker(net)
    operations = Operations(worker.node, NodeSettings(node_key_file=Path("/nowhere")))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(operations), base_url="http://here") as scraper:
        got = await scraper.get("/metrics", headers=OPENMETRICS)
        assert got.headers["content-type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
        assert _exemplars(got.text) == {("", TRACE)}
        plain = await scraper.get("/metrics", headers={"accept": "*/*"})
        assert plain.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert TRACE not in plain.text


async def test_unknown_format_is_refused(net: TestNet) -> None:
    await _metrics(net)
    gateway = await net.start(Gateway)
    wrong = api.GetMetrics(format="xml")  # type: ignore[arg-type]  # what a client may send
    with pytest.raises(errors.BadRequest, match="format"):
        await gateway.node.rpc.call(api.get_metrics, wrong)
