"""Check our pages for the problems that the browser itself reports, on every page of every journey.

There must be no console errors or warnings, no violations of the content security policy or Trusted Types, no other Chromium issues,
and no requests to third parties. A test declares the problems that it causes on purpose with ``expected``.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.acceptance.chromium import Browser, Page

#: Sends violations to the test immediately, because the page's state is lost on navigation.
_BINDING = "aimeshBreach"
_TELL = (
    f"addEventListener('securitypolicyviolation', event => {_BINDING}("
    "`${event.effectiveDirective} ${event.blockedURI} ${event.sourceFile}:${event.lineNumber} ${event.sample}`))"
)
_OWN_SCHEMES = ("data:", "about:", "blob:")


@dataclass(slots=True)
class Watch:
    """Opens the pages of a test, and checks them at the end."""

    browser: Browser
    origin: str
    #: Third parties that our pages lead to; what their pages do is not checked.
    strangers: list[str] = field(default_factory=list)
    pages: list[Page] = field(default_factory=list)

    async def open(self, **look: Any) -> Page:
        """Open a window with its own cookies, like ``Browser.open``."""
        page = await self.browser.open(**look)
        page.strangers += [f"{origin}/" for origin in self.strangers]
        self.pages.append(page)
        await page.send("Audits.enable")
        await page.send("Runtime.addBinding", name=_BINDING)
        await page.send("Page.addScriptToEvaluateOnNewDocument", source=_TELL)
        return page

    async def check(self) -> None:
        for page in self.pages:
            # When this returns, all earlier events have arrived.
            await page.evaluate("0")
            assert not page.problems, "\n".join(page.problems)
            known = tuple(f"{origin}/" for origin in (self.origin, *self.strangers))
            foreign = [url for url in page.requests if not url.startswith((*known, *_OWN_SCHEMES))]
            assert not foreign, f"asked of others: {foreign}"


@contextmanager
def expected(page: Page, *words: str) -> Iterator[None]:
    """Expect a problem with each of these words inside the block, and no other."""
    before = len(page.problems)
    yield
    came = page.problems[before:]
    missing = [word for word in words if not any(word in problem for problem in came)]
    assert not missing, f"{missing} did not come, but {came}"
    page.problems[before:] = [problem for problem in came if not any(word in problem for word in words)]
