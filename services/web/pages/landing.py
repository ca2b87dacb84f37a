"""The start page, and the static files."""

import asyncio

from litestar import Response, get
from litestar.di import NamedDependency
from litestar.params import FromPath

from services.web import views
from services.web.pages import signing_in
from services.web.visits import Page, Visit
from shared import errors
from shared.api import auth, gateway

#: The landing page can be had by anybody, so it asks for less.
STATUS_CALL_SECONDS = 1.0
_FOR_EVER = "public, max-age=31536000, immutable"


@get("/")
async def landing(visit: NamedDependency[Visit]) -> Page:
    _, health, options = await asyncio.gather(
        _session_if_auth_answers(visit), _health(visit), signing_in.find_options(visit, deadline_seconds=STATUS_CALL_SECONDS)
    )
    return visit.page("landing.html", views.Landing(health=health, address=visit.address, is_open=options.open_registration))


@get("/static/{version:str}/{name:path}")
async def static(visit: NamedDependency[Visit], version: FromPath[str], name: FromPath[str]) -> Response[bytes]:
    assets = visit.site.renderer.assets
    asset = assets.files.get(name.removeprefix("/"))
    if asset is None:
        raise errors.NotFound("there is no such file")
    # The address carries the version, so the content behind it never changes; behind an old one it is the new content, which a page
    # that was open during an upgrade asks for, and nobody keeps that.
    headers = {"Cache-Control": _FOR_EVER if version == assets.version else "no-store", "Vary": "Accept-Encoding"}
    content = asset.content
    if asset.packed is not None and "gzip" in visit.request.headers.get("accept-encoding", ""):
        content, headers["Content-Encoding"] = asset.packed, "gzip"
    return Response(content, media_type=asset.media_type, headers=headers)


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


ROUTES = (landing, static)
