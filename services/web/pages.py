"""Landing page, dashboard and static files."""

import asyncio
from datetime import UTC

from litestar import Response, get
from litestar.di import NamedDependency
from litestar.params import FromPath

from services.web import usage_chart, views
from services.web.visits import Page, Visit
from shared import errors
from shared.api import auth, gateway
from shared.api.method import Method, Reply, Request
from shared.types import Credential

#: A page rather says "not available right now" than keep somebody waiting longer.
PAGE_CALL_SECONDS = 3.0
#: The landing page can be had by anybody, so it asks for less.
STATUS_CALL_SECONDS = 1.0


@get("/")
async def landing(visit: NamedDependency[Visit]) -> Page:
    session, health = await asyncio.gather(_session_if_auth_answers(visit), _health(visit))
    return visit.page("landing.html", views.Landing(health=health, address=visit.address), session=session)


@get("/dashboard")
async def dashboard(visit: NamedDependency[Visit]) -> Page:
    return await dashboard_page(visit, await visit.get_session())


async def dashboard_page(visit: Visit, session: auth.Session, *, new_key: Credential | None = None, welcome: bool = False) -> Page:
    """Shows what can be had: a gateway that is down takes the numbers away, not the page."""
    credential = session.access_token
    quota, usage, models = await asyncio.gather(
        _ask(visit, gateway.get_user_quota, gateway.GetUserQuota(), credential),
        _ask(visit, auth.get_user_usage, auth.GetUserUsage(), credential),
        _ask(visit, gateway.list_models, gateway.ListModels(), credential),
    )
    now = visit.site.now()
    view = views.DashboardPage(
        username=session.user.username,
        tier=session.user.tier,
        quota=views.quota(quota, now) if quota else None,
        account=quota.account if quota else None,
        chart=usage_chart.draw(usage.days, now.astimezone(UTC).date()) if usage else None,
        new_key=new_key,
        welcome=welcome,
        address=visit.address,
        model=models.models[0].name if models and models.models else None,
    )
    return visit.page("dashboard.html", view, session=session, here="dashboard")


@get("/static/{name:str}")
async def static(visit: NamedDependency[Visit], name: FromPath[str]) -> Response[bytes]:
    asset = visit.site.renderer.assets.get(name)
    if asset is None:
        raise errors.NotFound("there is no such file")
    # The address carries the version, so the content behind it never changes.
    return Response(asset.content, media_type=asset.media_type, headers={"Cache-Control": "public, max-age=31536000, immutable"})


async def _ask(visit: Visit, method: Method[Request, Reply], request: Request, credential: Credential) -> Reply | None:
    try:
        return await visit.site.caller.call(method, request, deadline_seconds=PAGE_CALL_SECONDS, credential=credential)
    except errors.AimeshError:
        return None


async def _session_if_auth_answers(visit: Visit) -> auth.Session | None:
    try:
        return await visit.find_session()
    except errors.AimeshError:
        return None


async def _health(visit: Visit) -> gateway.ServiceHealth | None:
    try:
        return await visit.site.caller.call(gateway.get_service_health, gateway.GetServiceHealth(), deadline_seconds=STATUS_CALL_SECONDS)
    except errors.AimeshError:
        return None
