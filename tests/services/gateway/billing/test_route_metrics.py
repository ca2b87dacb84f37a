"""Metrics of routes and their targets."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from services.gateway.billing import route_metrics
from services.gateway.billing.route_metrics import RouteCounters
from services.gateway.facts import model_routes
from services.gateway.facts.model_routes import Route
from services.gateway.facts.upstream_prices import TargetSpending
from shared import errors
from shared.config_documents import RouteDocument, TargetDocument
from shared.telemetry import Metrics
from shared.types import MicroCredits, Role
from tests.services.gateway.fakes import FakeDirectory
from tests.services.gateway.test_routed_requests import Routed, routed  # noqa: F401 - a fixture

TARGETS = (
    TargetDocument(name="own", model="a", share=100),
    TargetDocument(name="paid", model="b", order=1, daily_ceiling="2"),
    TargetDocument(name="none", model="c", order=2, daily_ceiling="0"),
)


def route(name: str) -> Route:
    return model_routes.compile_route(name, 1, RouteDocument(targets=TARGETS))


def shown(metric: Any) -> dict[tuple[tuple[str, str], ...], float]:
    """Return the samples of a metric by their labels."""
    (family,) = metric.collect()
    return {
        tuple(sample.labels.items()): sample.value for sample in family.samples if not sample.name.endswith(("_created", "_bucket", "_sum"))
    }


async def test_requests_fallbacks_first_tokens_and_money_are_counted(routed: Routed) -> None:  # noqa: F811 - the fixture
    metrics = routed.service.metrics
    await routed.ask()
    routed.local.fails_with = errors.Unavailable("refused")
    await routed.ask()
    assert shown(metrics.route_requests) == {
        (("route", "assistant"), ("variant", "own"), ("target", "own"), ("status", "success")): 1,
        (("route", "assistant"), ("variant", "own"), ("target", "paid"), ("status", "success")): 1,
    }
    assert shown(metrics.route_fallbacks) == {(("route", "assistant"), ("target", "own"), ("reason", "unavailable")): 1}
    assert shown(metrics.route_first_token) == {
        (("route", "assistant"), ("target", "own")): 1, (("route", "assistant"), ("target", "paid")): 1
    }  # fmt: skip


def test_an_unknown_error_of_a_newer_worker_adds_no_series() -> None:
    metrics = Metrics("gateway")
    counters = RouteCounters(metrics)
    for number in range(3):
        counters.count_fallback("r", "t", errors.RemoteError(errors.Problem(f"new_{number}", "x")))
    assert shown(metrics.route_fallbacks) == {(("route", "r"), ("target", "t"), ("reason", "other")): 3}


def test_upstream_money_is_counted_without_a_route_too(routed_row: Any) -> None:
    metrics = Metrics("gateway")
    RouteCounters(metrics).count_end(routed_row, None)
    assert shown(metrics.upstream_spending) == {(("route", ""), ("target", "api"), ("provider", "acme")): 42}
    assert shown(metrics.route_requests) == {}


@pytest.fixture
def routed_row() -> Any:
    class Row:
        route = None
        provider = "acme"
        spending = (TargetSpending("", "api", MicroCredits(42)),)

    return Row()


async def run_once(measuring: Any) -> None:
    task = asyncio.create_task(measuring)
    for _ in range(3):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])


async def test_a_route_that_was_removed_has_no_targets_any_more() -> None:
    metrics, directory = Metrics("gateway"), FakeDirectory()
    directory.worker(1, "a", "x")
    routes = [route("one"), route("two")]
    for expected in ({"one": 1, "two": 1}, {"one": 1}):
        await run_once(route_metrics.measure_targets(metrics, lambda: routes, lambda: directory.usable(Role.WORKER)))
        assert {labels[0][1]: value for labels, value in shown(metrics.route_targets).items()} == expected
        routes.pop()
    directory.worker(1)
    routes = [route("one")]
    await run_once(route_metrics.measure_targets(metrics, lambda: routes, lambda: directory.usable(Role.WORKER)))
    assert list(shown(metrics.route_targets).values()) == [0]


async def test_the_share_of_a_ceiling_includes_what_is_held_and_stays_while_postgresql_is_down() -> None:
    metrics = Metrics("gateway")
    spending: dict[tuple[str, str], tuple[MicroCredits, MicroCredits]] = {("r", "paid"): (MicroCredits(10**6), MicroCredits(600_000))}

    async def read() -> Mapping[tuple[str, str], tuple[MicroCredits, MicroCredits]]:
        return spending

    async def fail() -> Mapping[tuple[str, str], tuple[MicroCredits, MicroCredits]]:
        raise errors.Unavailable("PostgreSQL is down")

    for reading in (read, fail):
        await run_once(route_metrics.measure_spending(metrics, lambda: [route("r")], reading))
        assert {labels[1][1]: value for labels, value in shown(metrics.upstream_ceiling_share).items()} == {"paid": 0.8, "none": 1.0}
    await run_once(route_metrics.measure_spending(metrics, list, read))
    assert shown(metrics.upstream_ceiling_share) == {}
