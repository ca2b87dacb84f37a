"""Show the health of the mesh and of each component, live."""

import asyncio
from dataclasses import dataclass

from litestar import get
from litestar.di import NamedDependency

from services.web import live
from services.web.events import Events
from services.web.pages.admin import health_lines
from services.web.pages.admin.health_lines import HealthLines, PartLine
from services.web.visits import PAGE_CALL_SECONDS, Page, Visit
from shared import errors
from shared.api import gateway, metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthPage:
    lines: HealthLines
    #: The template for rows added later.
    blank: PartLine


@get("/admin")
async def show_health(visit: NamedDependency[Visit]) -> Page:
    return visit.page("admin/health.html", HealthPage(lines=await _lines(visit), blank=PartLine()), here="admin")


@get("/live/health")
async def follow_health(visit: NamedDependency[Visit]) -> Events:
    async def read() -> live.Values:
        return health_lines.values(await _lines(visit)) | visit.banner_values()

    return live.answer(visit.site.followers, str(visit.person.user.id), read)


async def _lines(visit: Visit) -> HealthLines:
    """Return what is available: users open this page when something is down."""
    whole, door, nodes = await asyncio.gather(
        _whole(visit),
        visit.ask(gateway.get_service_health, gateway.GetServiceHealth()),
        visit.ask(gateway.list_nodes, gateway.ListNodes()),
    )
    return health_lines.describe(whole, door, nodes.nodes if nodes else None)


async def _whole(visit: Visit) -> metrics.SystemHealth | None:
    """Call metrics with web's own identity: access was already checked, and auth may be the service that is down."""
    try:
        return await visit.site.caller.call(metrics.get_system_health, metrics.GetSystemHealth(), deadline_seconds=PAGE_CALL_SECONDS)
    except errors.PeerError:
        return None


ROUTES = (show_health, follow_health)
