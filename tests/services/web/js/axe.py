"""Run axe-core, the accessibility checker, on an open page.

The script is injected over the DevTools protocol, which a page's policy does not block; the page itself never serves it.
"""

from dataclasses import dataclass
from pathlib import Path

from tests.acceptance.chromium import Page

ENGINE = Path(__file__).parents[4] / "services" / "web" / "npm" / "node_modules" / "axe-core" / "axe.min.js"
#: WCAG 2.2 at level AA, and axe's best practices.
_TAGS = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice")
SERIOUS = ("serious", "critical")
_RUN = """
axe.run(document, {runOnly: TAGS, resultTypes: ['violations']}).then(found => found.violations.map(each => ({
  rule: each.id, impact: each.impact, help: each.help, places: each.nodes.map(node => node.target.join(' ') + ': ' + node.failureSummary)
})))
"""


@dataclass(frozen=True, slots=True)
class Violation:
    rule: str
    #: minor, moderate, serious or critical.
    impact: str
    help: str
    #: A selector for each element, and what is wrong with it.
    places: tuple[str, ...]

    @property
    def is_serious(self) -> bool:
        return self.impact in SERIOUS


async def violations(page: Page) -> list[Violation]:
    """Return what axe finds on the page in its current state. Run it for light, dark and phone width separately."""
    assert ENGINE.is_file(), f"{ENGINE} is not there: run `npm ci` in services/web/npm"
    if not await page.evaluate("'axe' in window"):
        await page.send("Runtime.evaluate", expression=ENGINE.read_text(encoding="utf-8"))
    found = await page.evaluate(_RUN.replace("TAGS", str(list(_TAGS))))
    return [Violation(each["rule"], each["impact"], each["help"], tuple(each["places"])) for each in found]
