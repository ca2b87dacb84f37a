"""Show the health of the mesh and of each component, live."""

import asyncio
from dataclasses import dataclass

from litestar import get
from litestar.di import NamedDependency

from services.web import live_updates
from services.web.http.event_response import EventResponse
from services.web.pages.admin import health_view
from services.web.pages.admin.health_view import ComponentView, HealthView
from services.web.request_context import PAGE_CALL_SECONDS, Page, PageRequest
from shared import errors
from shared.api import gateway, metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthPage:
    lines: HealthView
    #: The template for rows added later.
    blank: ComponentView


@get("/admin")
async def show_health(page_request: NamedDependency[PageRequest]) -> Page:
    return page_request.page("admin/health.html", HealthPage(lines=await _lines(page_request), blank=ComponentView()), here="admin")


@get("/live/health")
async def follow_health(page_request: NamedDependency[PageRequest]) -> EventResponse:
    async def read() -> live_updates.Values:
        return health_view.values(await _lines(page_request)) | page_request.banner_values()

    return live_updates.answer(page_request.app.followers, str(page_request.person.user.id), read)


async def _lines(page_request: PageRequest) -> HealthView:
    """Return what is available: users open this page when something is down."""
    whole, gateway_health, nodes = await asyncio.gather(
        _whole(page_request),
        page_request.fetch(gateway.get_service_health, gateway.GetServiceHealth()),
        page_request.fetch(gateway.list_nodes, gateway.ListNodes()),
    )
    return health_view.describe(whole, gateway_health, nodes.nodes if nodes else None)


async def _whole(page_request: PageRequest) -> metrics.SystemHealth | None:
    """Call metrics with web's own identity: access was already checked, and auth may be the service that is down."""
    try:
        return await page_request.app.caller.call(metrics.get_system_health, metrics.GetSystemHealth(), deadline_seconds=PAGE_CALL_SECONDS)
    except errors.PeerError:
        return None


ROUTES = (show_health, follow_health)
