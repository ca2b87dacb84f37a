"""Show the health of the mesh and of each component, live, as metrics reports it, or the gateway while metrics is down."""

import asyncio
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import ClassVar

from litestar import get
from litestar.di import NamedDependency

from services.web import features, live_updates
from services.web.charts.usage_chart import NOTHING
from services.web.features import HealthWarning
from services.web.http.event_response import EventResponse
from services.web.pages.admin import time_texts
from services.web.request_context import PAGE_CALL_SECONDS, Page, PageRequest
from shared import errors
from shared.api import gateway, metrics
from shared.api.gateway import Check, NodeRow, ServiceHealth
from shared.api.metrics import ComponentHealth, SystemHealth
from shared.lists import health as lists
from shared.types import Role

_SENTENCES = {
    "healthy": "All required components are up.",
    "degraded": "Requests may still succeed. The components below show the problem and what to do.",
    "down": "A required component is down, so requests fail. The components below show which one and what to do.",
    "Unknown": "Neither the metrics service nor the gateway is responding. Run aicli stack status to see what is running.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentView:
    id: str = ""
    name: str = ""
    kind: str = ""
    state: str = ""
    tone: str = ""
    since: str = ""
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthView:
    word: str
    tone: str
    sentence: str
    #: The components that metrics reports; empty while metrics is down.
    parts: tuple[ComponentView, ...]
    #: The gateway's dependencies; empty while the gateway is down.
    checks: tuple[ComponentView, ...]
    workers: str
    in_flight: str
    models: str
    nodes: str
    #: Those of features, and whether they apply.
    warnings: tuple[tuple[HealthWarning, bool], ...] = ()
    #: The template for rows added later.
    blank: ClassVar[ComponentView] = ComponentView()


def describe(whole: SystemHealth | None, gateway: ServiceHealth | None, nodes: Iterable[NodeRow] | None) -> HealthView:
    status = whole.status if whole is not None else gateway.status if gateway is not None else "Unknown"
    word, tone = lists.status(status)
    rows = None if nodes is None else tuple(nodes)
    workers = None if rows is None else [row for row in rows if row.role is Role.WORKER]
    return HealthView(
        word=word,
        tone=tone,
        sentence=_SENTENCES.get(status, ""),
        parts=() if whole is None else tuple(map(_part, sorted(whole.components, key=_rank))),
        checks=() if gateway is None else tuple(map(_check, gateway.checks)),
        workers=NOTHING if workers is None else f"{sum(row.usable for row in workers):,} of {len(workers):,}",
        in_flight=NOTHING if gateway is None else f"{gateway.in_flight:,}",
        models=NOTHING if gateway is None else f"{len(gateway.models):,}",
        nodes=NOTHING if rows is None else f"{sum(row.usable for row in rows):,} of {len(rows):,}",
    )


def values(lines: HealthView) -> dict[str, object]:
    """Return the live values."""
    shown = asdict(replace(lines, warnings=())) | {warning.name: applies for warning, applies in lines.warnings}
    return {**shown, "no_parts": not lines.parts, "no_checks": not lines.checks}


def _rank(part: ComponentHealth) -> int:
    return list(lists.STATUSES).index(part.status) if part.status in lists.STATUSES else -1


def _part(part: ComponentHealth) -> ComponentView:
    state, tone = lists.status(part.status)
    return ComponentView(
        id=f"{part.kind} {part.name}",
        name=part.name,
        kind=part.kind,
        state=state,
        tone=tone,
        since=time_texts.moment(part.since),
        why=part.detail,
    )


def _check(check: Check) -> ComponentView:
    state, tone = lists.status("healthy" if check.ok else "down")
    return ComponentView(id=check.name, name=check.name, state=state, tone=tone, why=check.detail)


@get("/admin")
async def show_health(page_request: NamedDependency[PageRequest]) -> Page:
    return page_request.page("admin/health.html", await _lines(page_request))


@get("/live/health")
async def follow_health(page_request: NamedDependency[PageRequest]) -> EventResponse:
    async def read() -> live_updates.Values:
        return values(await _lines(page_request))

    return page_request.follow(read)


async def _lines(page_request: PageRequest) -> HealthView:
    """Return what is available: users open this page when something is down."""
    warnings = [warning for part in features.parts() for warning in part.warnings]
    whole, gateway_health, nodes, applying = await asyncio.gather(
        _whole(page_request),
        page_request.fetch(gateway.get_service_health, gateway.GetServiceHealth()),
        page_request.fetch(gateway.list_nodes, gateway.ListNodes()),
        asyncio.gather(*(warning.applies(page_request) for warning in warnings)),
    )
    lines = describe(whole, gateway_health, nodes.nodes if nodes else None)
    return replace(lines, warnings=tuple(zip(warnings, applying, strict=True)))


async def _whole(page_request: PageRequest) -> metrics.SystemHealth | None:
    """Call metrics with web's own identity: access was already checked, and auth may be the service that is down."""
    try:
        return await page_request.app.caller.call(metrics.get_system_health, metrics.GetSystemHealth(), deadline_seconds=PAGE_CALL_SECONDS)
    except errors.PeerError:
        return None
