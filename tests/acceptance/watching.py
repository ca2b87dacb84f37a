"""What the browser itself finds wrong with our pages, on every page of every journey.

No error or warning in the console, no breach of the content policy or of trusted types, no other issue that Chromium names, and no
request to anybody else. What a test provokes on purpose it says beforehand with ``expected``.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.acceptance.chromium import Browser, Page

#: Told to the test and not kept in the page, where the next page would have lost it.
_BINDING = "aimeshBreach"
_TELL = (
    f"addEventListener('securitypolicyviolation', event => {_BINDING}("
    "`${event.effectiveDirective} ${event.blockedURI} ${event.sourceFile}:${event.lineNumber} ${event.sample}`))"
)
_OWN_SCHEMES = ("data:", "about:", "blob:")


@dataclass(slots=True)
class Watch:
    """Opens the pages of a test, and looks at them in the end."""

    browser: Browser
    origin: str
    #: Who else our pages lead to; what theirs do is not ours.
    strangers: list[str] = field(default_factory=list)
    pages: list[Page] = field(default_factory=list)

    async def open(self, **look: Any) -> Page:
        """A window with cookies of its own, as ``Browser.open`` makes it."""
        page = await self.browser.open(**look)
        page.strangers += [f"{origin}/" for origin in self.strangers]
        self.pages.append(page)
        await page.send("Audits.enable")
        await page.send("Runtime.addBinding", name=_BINDING)
        await page.send("Page.addScriptToEvaluateOnNewDocument", source=_TELL)
        return page

    async def check(self) -> None:
        for page in self.pages:
            # All that went before has come once this has.
            await page.evaluate("0")
            assert not page.problems, "\n".join(page.problems)
            known = tuple(f"{origin}/" for origin in (self.origin, *self.strangers))
            foreign = [url for url in page.requests if not url.startswith((*known, *_OWN_SCHEMES))]
            assert not foreign, f"asked of others: {foreign}"


@contextmanager
def expected(page: Page, *words: str) -> Iterator[None]:
    """What goes wrong inside is meant to: a problem with each of these words, and no other."""
    before = len(page.problems)
    yield
    came = page.problems[before:]
    missing = [word for word in words if not any(word in problem for problem in came)]
    assert not missing, f"{missing} did not come, but {came}"
    page.problems[before:] = [problem for problem in came if not any(word in problem for word in words)]
