"""Serve the landing page and the static files."""

import asyncio
from dataclasses import dataclass

from litestar import Response, get
from litestar.di import NamedDependency
from litestar.params import FromPath

from services.web.pages.account import signing_in
from services.web.request_context import Page, PageRequest
from shared import errors
from shared.api import auth, gateway

#: Shorter than for other pages, because anyone can request the landing page.
STATUS_CALL_SECONDS = 1.0
_FOR_EVER = "public, max-age=31536000, immutable"


@dataclass(frozen=True, slots=True, kw_only=True)
class LandingPage:
    #: None if the gateway did not respond.
    health: gateway.ServiceHealth | None
    is_open: bool


@get("/")
async def landing(page_request: NamedDependency[PageRequest]) -> Page:
    _, health, options = await asyncio.gather(
        session_if_auth_answers(page_request),
        _health(page_request),
        signing_in.find_options(page_request, deadline_seconds=STATUS_CALL_SECONDS),
    )
    return page_request.page("landing.html", LandingPage(health=health, is_open=options.open_registration))


@get("/static/{version:str}/{name:path}")
async def static(page_request: NamedDependency[PageRequest], version: FromPath[str], name: FromPath[str]) -> Response[bytes]:
    assets = page_request.app.renderer.assets
    asset = assets.files.get(name.removeprefix("/"))
    if asset is None:
        raise errors.NotFound("file not found")
    # The path has the version, so its content never changes. A page that was open during an upgrade requests an old version; it gets
    # the new content, uncached.
    headers = {"Cache-Control": _FOR_EVER if version == assets.version else "no-store", "Vary": "Accept-Encoding"}
    content = asset.content
    if asset.packed is not None and "gzip" in page_request.request.headers.get("accept-encoding", ""):
        content, headers["Content-Encoding"] = asset.packed, "gzip"
    return Response(content, media_type=asset.media_type, headers=headers)


async def session_if_auth_answers(page_request: PageRequest) -> auth.LoginSession | None:
    try:
        return await page_request.find_session()
    except errors.AimeshError:
        return None


async def _health(page_request: PageRequest) -> gateway.ServiceHealth | None:
    try:
        return await page_request.app.caller.call(
            gateway.get_service_health, gateway.GetServiceHealth(), deadline_seconds=STATUS_CALL_SECONDS
        )
    except errors.AimeshError:
        return None
