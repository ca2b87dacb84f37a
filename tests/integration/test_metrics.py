"""Metrics after calls: of each service, of the whole mesh at one endpoint, and from domain events."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import msgspec
import pytest

from shared.api import auth, gateway, metrics
from shared.types import SERVICE_NAMES
from tests.integration import asking
from tests.people import ApiClient, Person
from tests.stacks import MESH, RunningStack, total, until

#: The seed's four metrics, with the labels that it names.
OF_THE_SEED = {
    "ai_platform_requests_total": {"service", "method", "status"},
    "ai_platform_request_duration_seconds": {"service", "method", "model"},
    "ai_platform_active_users": {"time_window"},
    "ai_platform_rate_limit_violations_total": {"scope", "tier", "model"},
}


@pytest.mark.parametrize("service", SERVICE_NAMES.values())
async def test_every_service_has_metrics_of_its_own(stack: RunningStack, service: str) -> None:
    async with stack.http(service=service) as http:
        answer = await http.get("/metrics")
    assert answer.status_code == 200
    assert total(answer.text, "ai_platform_build_info", service=service) >= 1
    for name in OF_THE_SEED:
        assert f"# TYPE {name.removesuffix('_total')}" in answer.text or f"# TYPE {name}" in answer.text, name


async def test_the_four_of_the_seed_have_their_labels(stack: RunningStack, api_client: ApiClient, ann: Person) -> None:
    tight = await api_client.make_key(ann, "tight", auth.ApiKeyLimits(requests_per_hour=1))
    async with stack.http(tight.secret) as http:
        await asking.inference(http, "one")
        assert (await http.post("/api/inference", json={"model": "echo", "prompt": "two"})).status_code == 429
    gateway = {"service": "gateway", "method": "processInferenceRequest"}
    for name, labels in (
        ("ai_platform_requests_total", {**gateway, "status": "success"}),
        ("ai_platform_requests_total", {**gateway, "status": "rate_limited"}),
        ("ai_platform_request_duration_seconds_count", {**gateway, "model": "echo"}),
        ("ai_platform_rate_limit_violations_total", {"scope": "key", "tier": "pro", "model": "echo"}),
    ):
        # Scrapes within a second share one answer, which may be older than the requests.
        await until(lambda name=name, labels=labels: stack.metric("gateway", name, **labels), what=f"{name} {labels}")  # type: ignore[misc]
    for window in ("1h", "24h", "7d"):
        await until(lambda window=window: stack.metric("metrics", "ai_platform_active_users", time_window=window))  # type: ignore[misc]


async def test_domain_events_are_counted(stack: RunningStack, api_client: ApiClient) -> None:
    counted = {
        "ai_platform_completed_requests_total": {"status": "success", "model": "echo"},
        "ai_platform_completed_tokens_total": {"model": "echo"},
        "ai_platform_events_total": {"event": "user.registered"},
        "ai_platform_registrations_total": {},
        "ai_platform_keys_created_total": {},
    }

    async def count() -> list[float]:
        return [await stack.metric("metrics", name, **labels) for name, labels in counted.items()]

    # Measure again if calls of an earlier test were counted meanwhile. A call that is counted twice would be so each time.
    for _ in range(5):
        # If an earlier test cut off an answer's caller, the answer runs to its end and is counted then.
        await until(lambda: _nothing_runs(api_client), seconds=60, what="no request is running")
        before = await _settled(count)
        dora = await api_client.register("dora")
        for _ in range(3):
            await asking.rpc(api_client.mesh, dora.key.secret, "four words in here")
        expected = [was + more for was, more in zip(before, (3, 24, 1, 1, 1), strict=True)]

        async def all_are_counted(expected: list[float] = expected) -> bool:
            return all(now >= least for now, least in zip(await count(), expected, strict=True))

        await until(all_are_counted, seconds=30, what=f"the counts are {expected}")
        if (counts := await _settled(count)) == expected:
            return
    pytest.fail(f"counted {counts} instead of {expected}")


async def _nothing_runs(api_client: ApiClient) -> bool:
    health = await api_client.mesh.rpc.call(gateway.get_service_health, gateway.GetServiceHealth(), deadline_seconds=10)
    return health.in_flight == 0


async def _settled(count: Callable[[], Awaitable[list[float]]]) -> list[float]:
    """Return counts that stayed the same for more than a second, because scrapes within a second share one answer."""
    since, seen = time.monotonic(), await count()
    while time.monotonic() - since < 1.2:
        await asyncio.sleep(0.05)
        if (now := await count()) != seen:
            since, seen = time.monotonic(), now
    return seen


async def test_one_endpoint_serves_the_whole_mesh(stack: RunningStack, api_client: ApiClient, ann: Person) -> None:
    await asking.rpc(api_client.mesh, ann.key.secret, "hi")
    url = f"http://127.0.0.1:{stack.environment['PROMETHEUS_PORT']}/metrics"
    async with stack.http() as http:
        before = (await http.get(url)).text

        async def of_another_collection() -> str:
            found = (await http.get(url)).text
            seconds = "ai_platform_process_cpu_seconds_total"
            return found if total(found, seconds, service="metrics") != total(before, seconds, service="metrics") else ""

        text = await until(of_another_collection, what="another collection")
    for service in SERVICE_NAMES.values():
        assert total(text, "ai_platform_node_up", service=service) >= 1, service
        assert total(text, "ai_platform_build_info", service=service) >= 1, service
    assert total(text, "ai_platform_node_up", service="inference") == 2
    assert total(text, "ai_platform_tokens_total", service="inference", model="echo", type="output") >= 1
    # Earlier scrapes may have failed at workers that other tests killed.
    assert total(text, "ai_platform_scrape_failures_total") == total(before, "ai_platform_scrape_failures_total")
    assert total(text, "ai_platform_scrape_dropped_series") == 0


async def test_health_sees_all_services_servers_and_workers(stack: RunningStack, ann: Person) -> None:
    async with stack.operator() as nats:
        answer = await nats.request(
            f"aimesh.{MESH}.rpc.metrics.getSystemHealth", b"{}", timeout=30, headers={"content-type": "application/json"}
        )
    health = msgspec.json.decode(answer.data, type=metrics.SystemHealth)
    # Workers that other tests killed are reported missing for an hour; everything else is healthy.
    assert health.status in ("healthy", "degraded"), health
    assert not [component for component in health.components if component.kind != "worker" and component.status != "healthy"], health
    kinds = [component.kind for component in health.components]
    assert (kinds.count("service"), kinds.count("server"), kinds.count("path"), kinds.count("certificate")) == (5, 4, 1, 1)
    # The stack's own two; workers that joined in other tests are gone but still listed.
    assert kinds.count("worker") >= 2
