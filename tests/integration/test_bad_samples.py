"""Wrong or forged samples that a worker records over the mesh are refused or bounded, logged once, and shown in the health report.

tests/services/metrics/collection/test_recorded_metrics.py covers the rules one by one; here a worker sends samples to a whole stack.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta

import httpx
import msgspec
import psutil
import pytest

from services.metrics.collection import recorded_metrics
from shared import errors
from shared.api import metrics
from shared.api.metrics import RecordMetric, RecordMetrics
from shared.node import Node, NodeSettings
from shared.protocol import wire
from shared.telemetry.instrument import node_label
from shared.types import Role
from stack.servers import nats_server
from tests.stacks import MESH, RunningStack, total, until
from tests.testnet import IdleService, start_node

#: A few less than fit into a message.
IN_ONE_BATCH = 10_000
MILLION = 1_000_000
#: Time to refuse a million samples on two busy cores; an idle machine needs a twelfth of it.
A_MILLION_SECONDS = 60.0
#: For decoding a megabyte at a time, and memory fragmentation; a million series would take 300 MB.
MAX_GROWTH_BYTES = 64 * 1024 * 1024


@pytest.fixture
async def worker(stack: RunningStack) -> AsyncIterator[Node]:
    """One more worker of the stack. Metrics drops its samples afterwards, because other tests use the stack."""
    key_file = nats_server.add_node(stack.place, MESH, "bad-samples", Role.WORKER)
    settings = NodeSettings(mesh=MESH, nats_url=f"nats://127.0.0.1:{stack.environment['NATS_PORT']}", node_key_file=key_file)
    async with asyncio.TaskGroup() as tasks:
        running = await start_node(tasks, IdleService, settings)
        node = running.node
        await until(lambda: _is_known(stack, node_label(node.id)), what="metrics has heard of it")
        yield node
        await running.stop()
    if await stack.programs():  # after the last test of the folder, the stack is already down
        done = await stack.aicli("stack", "restart", "metrics")
        assert done.status == 0, done.err


async def _is_known(stack: RunningStack, label: str) -> bool:
    return await stack.metric("metrics", "ai_platform_node_up", node=label) == 1


async def test_each_wrong_sample_is_refused_and_the_good_ones_of_its_batch_are_taken(stack: RunningStack, worker: Node) -> None:
    now = datetime.now(UTC)
    good = (RecordMetric("custom_watts", 300), RecordMetric("custom_jobs_total", 2, {"team": "a"}), RecordMetric("custom_now", 1, {}, now))
    wrong = (
        RecordMetric("jobs_total", 1),
        RecordMetric("ai_platform_made_up", 1),
        RecordMetric("ai_platform_ttft_seconds_count", 1, {"model": "echo"}),
        RecordMetric("custom_watts", float("nan")),
        RecordMetric("custom_watts", float("inf")),
        RecordMetric("custom_jobs_total", -1, {"team": "a"}),
        RecordMetric("custom_watts", 1, {"le": "1"}),
        RecordMetric("custom_watts", 1, {"x": "y" * 10_000}),
        RecordMetric("custom_old", 1, {}, now - timedelta(hours=1)),
        RecordMetric("custom_early", 1, {}, now + timedelta(days=365)),
    )
    said_before = len(_warnings(stack))
    done = await worker.rpc.call(metrics.record_metrics, RecordMetrics((*wrong, *good)))
    assert (done.taken, done.refused, len(done.problems)) == (len(good), len(wrong), len(wrong))
    with pytest.raises(errors.BadRequest, match="must be a finite number"):
        await worker.rpc.call(metrics.record_metric, RecordMetric("custom_watts", float("-inf")))
    text = await _of_the_mesh(stack, "custom_watts")
    mine = {"service": "inference", "node": node_label(worker.id)}
    assert (total(text, "custom_watts", **mine), total(text, "custom_jobs_total", **mine, team="a")) == (300, 2)
    for name in ("made_up", "custom_old", "custom_early", "yyyy"):
        assert name not in text
    assert node_label(worker.id) in _said_once(_warnings(stack)[said_before:])
    assert "rejected" in await _told(stack, node_label(worker.id))


@pytest.mark.nightly("storms")
@pytest.mark.timeout(180)
async def test_a_million_label_values_take_the_room_of_one_node(stack: RunningStack, worker: Node) -> None:
    before, said_before = await _resident_bytes(stack), len(_warnings(stack))
    began, taken, refused, answered = time.monotonic(), 0, 0, list[float]()
    async with stack.http(service="metrics") as http:
        for first in range(0, MILLION, IN_ONE_BATCH):
            done = await worker.rpc.call(metrics.record_metrics, _batch(first))
            taken, refused = taken + done.taken, refused + done.refused
            if first % (MILLION // 10) == 0:
                answered.append(await _seconds_of_a_scrape(http))
    took = time.monotonic() - began
    print(f"a million samples in {took:.1f} s; scrapes meanwhile took up to {max(answered):.2f} s")
    assert (taken, refused) == (recorded_metrics.MAX_SERIES_OF_ONE, MILLION - recorded_metrics.MAX_SERIES_OF_ONE)
    assert took < A_MILLION_SECONDS
    text = await _of_the_mesh(stack, "custom_flood")
    assert total(text, "custom_flood") == recorded_metrics.MAX_SERIES_OF_ONE
    assert total(text, "ai_platform_custom_series") == recorded_metrics.MAX_SERIES_OF_ONE
    grown = await _resident_bytes(stack) - before
    assert grown < MAX_GROWTH_BYTES, f"{grown / 1e6:.0f} MB more"

    # There is still room for other nodes.
    async with stack.operator() as nats:
        sample = msgspec.json.encode(RecordMetric("custom_of_another", 1))
        answer = await nats.request(f"aimesh.{MESH}.rpc.{metrics.record_metric.name}", sample, timeout=30, headers=_JSON)
    assert msgspec.json.decode(answer.data) == {}, answer.data
    assert node_label(worker.id) in _said_once(_warnings(stack)[said_before:])
    assert "custom_flood" in await _told(stack, node_label(worker.id))


@pytest.mark.nightly("storms")
async def test_ten_megabytes_are_refused_before_and_on_the_way(stack: RunningStack, worker: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    before = await _resident_bytes(stack)
    batch = RecordMetrics((RecordMetric("custom_long", 1, {"x": "y" * 10_000_000}),))
    with pytest.raises(errors.TooLarge, match="the limit is 1048576"):
        await worker.rpc.call(metrics.record_metrics, batch)
    with monkeypatch.context() as patched:
        # A worker with a modified program.
        patched.setattr(wire, "MAX_MESSAGE_BYTES", 2**30)
        for _ in range(10):
            with pytest.raises((errors.LinkLost, errors.NotReachable)):
                await worker.rpc.call(metrics.record_metrics, batch, deadline_seconds=5)
    done = await worker.rpc.call(metrics.record_metrics, RecordMetrics((RecordMetric("custom_short", 1),)))
    assert done.taken == 1
    grown = await _resident_bytes(stack) - before
    assert grown < MAX_GROWTH_BYTES, f"{grown / 1e6:.0f} MB more"
    assert "custom_long" not in await _of_the_mesh(stack, "custom_short")


def _batch(first: int) -> RecordMetrics:
    return RecordMetrics(tuple(RecordMetric("custom_flood", 1, {"x": str(number)}) for number in range(first, first + IN_ONE_BATCH)))


async def _of_the_mesh(stack: RunningStack, name: str) -> str:
    """Return the metrics, once they include this one: scrapes within a second share one answer."""
    async with stack.http(service="metrics") as http:

        async def found() -> str:
            text = (await http.get("/metrics")).text
            return text if f"\n{name}" in text else ""

        return await until(found, what=f"the text has {name}")


async def _seconds_of_a_scrape(http: httpx.AsyncClient) -> float:
    began = time.monotonic()
    answer = await http.get("/metrics")
    assert answer.status_code == 200, answer.text
    return time.monotonic() - began


async def _resident_bytes(stack: RunningStack) -> int:
    pid = (await stack.pids())["metrics"]
    return int(psutil.Process(pid).memory_info().rss)


async def _details(stack: RunningStack) -> list[str]:
    """Return the problems in the health report."""
    async with stack.operator() as nats:
        answer = await nats.request(f"aimesh.{MESH}.rpc.{metrics.get_system_health.name}", b"{}", timeout=30, headers=_JSON)
    health = msgspec.json.decode(answer.data, type=metrics.SystemHealth)
    return [f"{one.name}: {one.detail}" for one in health.components if one.status != "healthy"]


async def _told(stack: RunningStack, label: str) -> str:
    """Return what the health report says about this node, as soon as it does: requests within a second share one answer."""

    async def told() -> str:
        return "\n".join(detail for detail in await _details(stack) if label in detail)

    return await until(told, what=f"the health speaks of {label}")


def _said_once(warnings: Sequence[Mapping[str, object]]) -> str:
    """Return the warnings, after checking that no two say the same."""
    said = [str(line["event"]) for line in warnings]
    assert said, "the log says nothing"
    assert len(said) == len(set(said)), said
    return json.dumps(warnings)


def _warnings(stack: RunningStack) -> list[Mapping[str, object]]:
    return [line for line in _lines(stack) if line["level"] == "warning" and line.get("part") == "recorded"]


def _lines(stack: RunningStack) -> Iterator[Mapping[str, object]]:
    for line in stack.log("metrics").splitlines(keepends=True):
        if line.endswith("\n"):
            yield json.loads(line)


_JSON = {"content-type": "application/json"}
