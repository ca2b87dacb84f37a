"""Counts what routes and their targets do and cost, and measures which targets are left."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

from services.gateway.facts.model_routes import Route
from services.gateway.facts.request_record import RequestRow
from services.gateway.facts.upstream_prices import ReadSpending
from shared import errors
from shared.protocol.directory import DirectoryEntry
from shared.telemetry import Metrics, logs

#: Interval of measuring targets: the alert about a route without any waits for a minute.
TARGETS_SECONDS: Final = 5.0
#: Interval of measuring spending, which is read from PostgreSQL.
SPENDING_SECONDS: Final = 30.0

ReadRoutes = Callable[[], Iterable[Route]]

_log = logs.get(part="routes")


class RouteCounters:
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def count_end(self, row: RequestRow, first_text_seconds: float | None) -> None:
        """Call it once for each request. ``first_text_seconds``: None if its caller got no text."""
        use = row.route
        if use is not None:
            labels = {"route": use.route, "variant": use.variant or "", "target": use.target, "status": row.status}
            self._metrics.route_requests.labels(**labels).inc()
            if first_text_seconds is not None:
                self._metrics.route_first_token.labels(route=use.route, target=use.target).observe(first_text_seconds)
        for spent in row.spending:
            self._metrics.upstream_spending.labels(route=spent.route, target=spent.target, provider=row.provider or "").inc(spent.micro)

    def count_fallback(self, route: str, target: str, error: errors.AimeshError) -> None:
        """Count a request that moves to the next target."""
        self._metrics.route_fallbacks.labels(route=route, target=target, reason=label_of(errors.code_of(error))).inc()


def label_of(code: str) -> str:
    """Return the label for an error code. A peer could otherwise create any number of series."""
    return code if code in errors.BY_CODE else "other"


async def measure_targets(metrics: Metrics, read_routes: ReadRoutes, usable: Callable[[], Iterable[DirectoryEntry]]) -> None:
    """Update the metric until canceled."""
    while True:
        served = {offer.name for worker in usable() for offer in worker.announcement.models if offer.ready}
        metrics.route_targets.clear()
        for route in read_routes():
            metrics.route_targets.labels(route=route.name).set(sum(target.model in served for target in route.targets))
        await asyncio.sleep(TARGETS_SECONDS)


async def measure_spending(metrics: Metrics, read_routes: ReadRoutes, read: ReadSpending) -> None:
    """Update the metric until canceled. While PostgreSQL is down it stays."""
    while True:
        ceilings = {
            (route.name, target.name): target.ceiling_micro
            for route in read_routes()
            for target in route.targets
            if target.ceiling_micro is not None
        }
        try:
            spending = await read() if ceilings else {}
        except errors.Unavailable as error:
            _log.warning("the spending of targets can't be read", reason=error.message)
        else:
            metrics.upstream_ceiling_share.clear()
            for (route, target), ceiling in ceilings.items():
                spent = sum(spending.get((route, target), (0, 0)))
                share = spent / ceiling if ceiling else 1.0
                metrics.upstream_ceiling_share.labels(route=route, target=target).set(share)
        await asyncio.sleep(SPENDING_SECONDS)
