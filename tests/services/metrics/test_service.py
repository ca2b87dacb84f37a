"""The metrics service on a real mesh: a real NATS server, and small services that report what the test wants."""

import asyncio
import socket
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar
from uuid import UUID

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from services.metrics.collection import mesh_survey
from services.metrics.collection.mesh_survey import KEPT_SECONDS, CachedResult
from services.metrics.service import MetricsService
from services.metrics.settings import MetricsSettings
from shared import errors
from shared.api import events
from shared.api import metrics as api
from shared.api import node as node_api
from shared.api.gateway import Check
from shared.types import ModelName, RequestId, RequestStatus, Role, UserId
from tests.stopwatch import HANG_SECONDS
from tests.testnet import MESH, IdleService, RunningNode, TestNet, free_port, testnet, until


class Stub(IdleService):
    """A service that only reports its checks."""

    role: ClassVar[Role]

    def __init__(self) -> None:
        self.reported: tuple[Check, ...] = (Check("postgresql", ok=True), Check("valkey", ok=True))

    async def checks(self) -> tuple[Check, ...]:
        return self.reported


class Auth(Stub):
    role = Role.AUTH


class Gateway(Stub):
    role = Role.GATEWAY


class Worker(Stub):
    role = Role.WORKER

    def __init__(self) -> None:
        self.reported = ()


class Web(Stub):
    role = Role.WEB


async def start_metrics(net: TestNet, **changes: int | bool | Path) -> RunningNode:
    settings = {"port": 0, "prometheus_port": 0, "mesh": MESH, "nats_url": net.server.url, **changes}
    key_file = net.server.key("metrics", Role.METRICS)
    return await net.start(MetricsService, MetricsSettings(node_key_file=key_file, **settings))  # type: ignore[arg-type]


@pytest.fixture
async def net(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[TestNet]:
    # Alerts collect in the background, so turn off the cache: no answer here comes from an earlier collection.
    monkeypatch.setattr(mesh_survey, "KEPT_SECONDS", 0.0)
    async with testnet() as running:
        yield running


def _stub(running: RunningNode) -> Stub:
    assert isinstance(running.service, Stub)
    return running.service


async def _text(caller: RunningNode) -> str:
    return (await caller.node.rpc.call(api.get_metrics, api.GetMetrics())).text


async def _health(caller: RunningNode) -> api.SystemHealth:
    return await caller.node.rpc.call(api.get_system_health, api.GetSystemHealth())


def _values(text: str, name: str) -> dict[tuple[tuple[str, str], ...], float]:
    return {
        tuple(sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }


def _knows(metrics: RunningNode, *roles: Role) -> bool:
    return {entry.role for entry in metrics.node.directory.entries() if entry.alive and not entry.why_not} >= set(roles)


async def test_recorded_metric_appears(net: TestNet) -> None:
    await start_metrics(net)
    gateway = await net.start(Gateway)
    for _ in range(2):
        await gateway.node.rpc.call(
            api.record_metric, api.RecordMetric(metric_name="custom_jobs_total", value=2, labels={"service": "billing"})
        )
    here = (("exported_service", "billing"), ("node", gateway.node.id[:12]), ("service", "gateway"))
    assert {tuple(sorted(labels)): value for labels, value in _values(await _text(gateway), "custom_jobs_total").items()} == {here: 4.0}
    with pytest.raises(errors.BadRequest, match="requires exactly these: service, method, status"):
        await gateway.node.rpc.call(api.record_metric, api.RecordMetric(metric_name="ai_platform_requests_total", value=1))


async def test_valid_part_of_a_batch_is_recorded(net: TestNet) -> None:
    await start_metrics(net)
    gateway = await net.start(Gateway)
    batch = tuple(api.RecordMetric("custom_load", number, {"x": str(number)}) for number in range(20)) + (api.RecordMetric("load", 1),) * 30
    done = await gateway.node.rpc.call(api.record_metrics, api.RecordMetrics(batch))
    assert (done.taken, done.refused, len(done.problems)) == (20, 30, 10)
    assert "METRICS_NAMESPACES" not in done.problems[0]
    assert len(_values(await _text(gateway), "custom_load")) == 20


async def test_metrics_include_every_node(net: TestNet) -> None:
    metrics = await start_metrics(net)
    started = [await net.start(kind) for kind in (Auth, Gateway, Worker, Worker, Web)]
    await until(lambda: len(metrics.node.directory.entries()) == 5)
    started[0].node.metrics.auth_failures.labels(reason="wrong_password").inc(3)
    text = await _text(started[1])
    nodes = {(dict(labels)["service"], dict(labels)["node"]) for labels in _values(text, "ai_platform_build_info")}
    expected = {(running.node.service_name, running.node.id[:12]) for running in [metrics, *started]}
    assert nodes == expected
    assert {(dict(labels)["service"], dict(labels)["node"]) for labels in _values(text, "ai_platform_node_up")} == expected
    (failures,) = (item for item in _values(text, "ai_platform_auth_failures_total").items() if item[1])
    assert dict(failures[0]) == {"service": "auth", "node": started[0].node.id[:12], "reason": "wrong_password"}
    assert failures[1] == 3
    declared = [line for line in text.splitlines() if line.startswith("# TYPE ")]
    assert len(declared) == len(set(declared))


async def test_failing_node_drops_only_its_own_part(net: TestNet) -> None:
    metrics = await start_metrics(net)
    auth, gateway = await net.start(Auth), await net.start(Gateway)
    await until(lambda: _knows(metrics, Role.AUTH, Role.GATEWAY))
    auth.node.drain_started.set()
    text = await _text(gateway)
    assert {dict(labels)["service"] for labels in _values(text, "ai_platform_build_info")} == {"gateway", "metrics"}
    await metrics.node.rpc.call(node_api.read_health, node_api.ReadHealth(), to=gateway.node.id)
    # One failure for each collection, including those for the alerts.
    ((labels, count),) = _values(metrics.node.metrics.render(), "ai_platform_scrape_failures_total").items()
    assert (labels, count >= 1) == ((("reason", "draining"), ("service", "auth")), True)


async def test_too_long_text_is_refused_with_another_way_to_get_it(net: TestNet) -> None:
    metrics = await start_metrics(net)
    started = [await net.start(kind) for kind in (Gateway, Auth, Auth)]
    for number in range(4000):
        for auth in started[1:]:
            auth.node.metrics.auth_failures.labels(reason=f"{number}{'x' * 90}").inc()
    await until(lambda: len(metrics.node.directory.entries()) == 3)
    with pytest.raises(errors.TooLarge, match="limit of an RPC response") as refused:
        await _text(started[0])
    assert "PROMETHEUS_PORT" in refused.value.hint


async def test_events_are_counted(net: TestNet) -> None:
    metrics = await start_metrics(net)
    gateway = await net.start(Gateway)
    event = events.RequestCompleted(
        at=datetime.now(UTC),
        request_id=RequestId(UUID(int=1)),
        user_id=UserId(UUID(int=2)),
        model=ModelName("smollm2"),
        status=RequestStatus.SUCCESS,
        tokens=12,
        duration_ms=5,
    )

    def seen() -> bool:
        gateway.node.publish(event)
        return bool(_values(metrics.node.metrics.render(), "ai_platform_completed_requests_total"))

    await until(seen)
    text = await _text(gateway)
    ((labels, requests),) = _values(text, "ai_platform_completed_requests_total").items()
    assert dict(labels) == {"service": "metrics", "node": metrics.node.id[:12], "status": "success", "model": "smollm2"}
    assert list(_values(text, "ai_platform_completed_tokens_total").values()) == [12 * requests]
    active = {dict(labels)["time_window"]: users for labels, users in _values(text, "ai_platform_active_users").items()}
    assert active == {"1h": 1, "24h": 1, "7d": 1}


async def test_health_lists_everything_and_since_when_a_service_is_missing(net: TestNet) -> None:
    metrics = await start_metrics(net)
    gateway = await net.start(Gateway)
    others = [await net.start(kind) for kind in (Auth, Worker)]
    await until(lambda: _knows(metrics, Role.GATEWAY, Role.AUTH, Role.WORKER))
    health = await _health(gateway)
    found = {(component.kind, component.name): component for component in health.components}
    assert health.status == "degraded"
    assert found["service", "web"].status == "down"
    assert found["service", "web"].since == metrics.node.started_at
    assert "python -m services.web" in found["service", "web"].detail
    assert {name: found["server", name].status for name in ("PostgreSQL", "Valkey", "NATS")} == {
        "PostgreSQL": "healthy",
        "Valkey": "healthy",
        "NATS": "healthy",
    }
    assert found["worker", others[1].node.id[:12]].status == "healthy"

    await others[0].stop()
    await until(lambda: not _knows(metrics, Role.AUTH))
    _stub(gateway).reported = (Check("postgresql", ok=False, detail="no answer"),)
    health = await _health_when(gateway, {("service", "auth"), ("server", "PostgreSQL")})
    assert health.status == "down"
    found = {(component.kind, component.name): component for component in health.components}
    (gone,) = metrics.node.directory.entries(Role.AUTH)
    assert found["service", "auth"].since == gone.since
    assert found["service", "gateway"].status == "degraded"


async def _health_when(caller: RunningNode, down: set[tuple[str, str]]) -> api.SystemHealth:
    """Return the first health in which these components are down, because older health is cached for a second."""
    async with asyncio.timeout(HANG_SECONDS):
        while True:
            health = await _health(caller)
            if down <= {(component.kind, component.name) for component in health.components if component.status == "down"}:
                return health
            await asyncio.sleep(0.05)


async def test_reachable_servers_are_a_metric(net: TestNet) -> None:
    metrics = await start_metrics(net)
    gateway = await net.start(Gateway)
    await until(lambda: _knows(metrics, Role.GATEWAY))
    _stub(gateway).reported = (Check("postgresql", ok=True), Check("valkey", ok=False, detail="no answer"))

    async def servers() -> dict[str, float]:
        await _health(gateway)
        return {dict(labels)["server"]: up for labels, up in _values(await _text(gateway), "ai_platform_server_up").items()}

    async def become(wanted: dict[str, float]) -> None:
        async with asyncio.timeout(30):
            while True:
                if await servers() == wanted:
                    return
                await asyncio.sleep(0.05)

    await become({"postgresql": 1, "valkey": 0, "nats": 1})
    # A server that no service reports is not shown as down.
    _stub(gateway).reported = ()
    await become({"nats": 1})


async def _degraded_by(caller: RunningNode, kind: str, name: str, words: str) -> api.ComponentHealth:
    """Return the component once the overall status is degraded. Meanwhile, collect the metrics as the alerts do."""
    async with asyncio.timeout(30):
        while True:
            await _text(caller)
            health = await _health(caller)
            for component in health.components:
                if (component.kind, component.name, health.status) == (kind, name, "degraded") and words in component.detail:
                    return component
            await asyncio.sleep(0.05)


async def test_killed_worker_is_missed_but_a_stopped_one_is_not(net: TestNet) -> None:
    metrics = await start_metrics(net)
    gateway = await net.start(Gateway)
    _auth, _web, stays, killed, stopped = [await net.start(kind) for kind in (Auth, Web, Worker, Worker, Worker)]
    await until(lambda: len(metrics.node.directory.usable(Role.WORKER)) == 3)
    await _healthy(gateway)
    await stopped.stop()
    await until(lambda: len(metrics.node.directory.usable(Role.WORKER)) == 2)
    await until(lambda: not metrics.node.directory.find(stopped.node.id).alive)  # type: ignore[union-attr]
    await _healthy(gateway)
    await killed.cut()
    label = killed.node.id[:12]
    found = await _degraded_by(gateway, "worker", label, "without shutting down")
    assert (found.status, "silent for" in found.detail) == ("down", True)
    assert stays.node.id[:12] not in {one.name for one in (await _health(gateway)).components if one.status != "healthy"}
    await net.start(Worker, net.settings_of(killed))
    await _healthy(gateway)


async def _healthy(caller: RunningNode) -> None:
    async with asyncio.timeout(30):
        while True:
            if (await _health(caller)).status == "healthy":
                return
            await asyncio.sleep(0.05)


async def test_health_shows_a_worker_with_rejected_records(net: TestNet) -> None:
    metrics = await start_metrics(net)
    gateway, worker = [await net.start(kind) for kind in (Gateway, Worker)]
    for kind in (Auth, Web):
        await net.start(kind)
    await until(lambda: _knows(metrics, *(Role.AUTH, Role.GATEWAY, Role.WORKER, Role.WEB)))
    await worker.node.rpc.call(api.record_metrics, api.RecordMetrics((api.RecordMetric("custom_jobs_total", -1.0),) * 3))
    with pytest.raises(errors.BadRequest):
        await worker.node.rpc.call(api.record_metric, api.RecordMetric("custom_load", float("nan")))
    found = await _degraded_by(gateway, "worker", worker.node.id[:12], "4 recorded samples were rejected")
    assert "NaN" in found.detail
    assert found.status == "degraded"


async def test_health_shows_a_worker_with_wrong_counts(net: TestNet) -> None:
    metrics = await start_metrics(net)
    gateway, worker = [await net.start(kind) for kind in (Gateway, Worker)]
    for kind in (Auth, Web):
        await net.start(kind)
    await until(lambda: _knows(metrics, *(Role.AUTH, Role.GATEWAY, Role.WORKER, Role.WEB)))
    gateway.node.metrics.certificate_seconds_left.set(90_000)
    await _text(gateway)
    gateway.node.metrics.wrong_counts.labels(node=worker.node.id).inc()
    gateway.node.metrics.queue_depth.labels(model="llama3").set(101)
    await _degraded_by(gateway, "worker", worker.node.id[:12], "wrong token counts 1 time within the last hour")
    await _degraded_by(gateway, "queue", "llama3", "101 requests queued")
    found = {(one.kind, one.name): one for one in (await _health(gateway)).components}
    assert f"gateway {gateway.node.id[:12]} expires in 25 h" in found["certificate", "certificates"].detail
    assert found["path", "paths"].status == "healthy"


async def test_worker_may_record_but_not_read(net: TestNet) -> None:
    await start_metrics(net)
    worker = await net.start(Worker)
    await worker.node.rpc.call(api.record_metric, api.RecordMetric(metric_name="custom_gpu_watts", value=300))
    with pytest.raises(errors.WrongRole):
        await worker.node.rpc.call(api.get_metrics, api.GetMetrics())


async def test_prometheus_port_serves_the_mesh(net: TestNet) -> None:
    port = free_port()
    metrics = await start_metrics(net, prometheus_port=port)
    await net.start(Web)
    await until(lambda: _knows(metrics, Role.WEB))
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as browser:
        got = await browser.get("/metrics")
        assert got.status_code == 200
        assert got.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert {dict(labels)["service"] for labels in _values(got.text, "ai_platform_build_info")} == {"web", "metrics"}
        head = await browser.head("/metrics")
        assert (head.status_code, head.content) == (200, b"")
        assert (await browser.post("/metrics")).status_code == 405
        assert (await browser.get("/")).status_code == 404


@pytest.mark.parametrize("changes", [{"prometheus_port": 0}, {"metrics_enabled": False}])
async def test_prometheus_port_can_be_disabled(net: TestNet, changes: dict[str, int | bool]) -> None:
    port = free_port()
    metrics = await start_metrics(net, **{"prometheus_port": port, **changes})
    assert await metrics.service.metrics_text()  # type: ignore[attr-defined]
    with pytest.raises(OSError, match="refused"), socket.create_connection(("127.0.0.1", port), timeout=1):
        pass


async def test_occupied_prometheus_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ExceptionGroup) as refused:
        async with testnet() as net:
            await start_metrics(net, prometheus_port=taken.getsockname()[1])
    assert "PROMETHEUS_PORT" in str(_innermost(refused.value).hint)


def _innermost(error: BaseException) -> errors.BadSettings:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, errors.BadSettings)
    return error


async def test_result_is_shared_and_cached_briefly() -> None:
    now = 0.0
    made = 0

    async def make() -> int:
        nonlocal made
        made += 1
        await asyncio.sleep(0)
        return made

    fresh = CachedResult(make, lambda: now)
    assert await asyncio.gather(*(fresh.get() for _ in range(5))) == [1] * 5
    now = KEPT_SECONDS - 0.01
    assert await fresh.get() == 1
    now = KEPT_SECONDS
    assert await fresh.get() == 2


async def test_canceled_caller_does_not_harm_the_next() -> None:
    started = asyncio.Event()
    gate = asyncio.Event()

    async def make() -> str:
        started.set()
        await gate.wait()
        return "made"

    fresh = CachedResult(make)
    first = asyncio.ensure_future(fresh.get())
    await started.wait()
    first.cancel()
    gate.set()
    assert await fresh.get() == "made"
    with pytest.raises(asyncio.CancelledError):
        await first
