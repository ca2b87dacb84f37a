"""Pages in a window of Chromium that is signed in."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from litestar.types import ASGIApp

from tests.acceptance.chromium import Browser, Page
from tests.acceptance.watching import Watch, expected
from tests.services.web import servers
from tests.services.web.js import axe


@asynccontextmanager
async def signed_in(app: ASGIApp, chrome: Browser, session: str, **look: Any) -> AsyncIterator[tuple[Page, str]]:
    """Yield a window and the site's origin. At the end, no page may have had a problem."""
    async with servers.serving(app) as origin:
        watch = Watch(chrome, origin)
        page = await watch.open(**look)
        await page.send("Network.setCookie", name="aimesh_session", value=session, url=origin)
        yield page, origin
        await watch.check()


async def each_look(page: Page, url: str, *problems: str) -> AsyncIterator[int]:
    """Open a page on a desktop, in the dark and on a phone, and yield the width. After the caller's turn, it must be accessible and fit.

    ``problems``: what the browser reports, as for ``expected``.
    """
    for width, dark in ((1280, False), (1280, True), (320, False)):
        await page.look(width=width, dark=dark)
        with expected(page, *problems):
            await page.goto(url)
        yield width
        assert await axe.violations(page) == [], (width, dark)
        assert await page.evaluate("document.documentElement.scrollWidth") <= width, (width, dark)
