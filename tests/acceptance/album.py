"""Screenshots of the pages for people, in light, in dark and on a phone, and automatic checks of each."""

from dataclasses import dataclass, field
from pathlib import Path

from tests.acceptance.chromium import Page
from tests.services.web.js import axe

FOLDER = Path(__file__).parents[2] / "build" / "screenshots"


@dataclass(frozen=True, slots=True)
class Look:
    name: str
    width: int
    dark: bool = False


LOOKS = (Look("light", 1280), Look("dark", 1280, dark=True), Look("phone", 390))


@dataclass(slots=True)
class Album:
    """Collects faults instead of stopping at the first one, so that a run reports all of them."""

    folder: Path = FOLDER
    pictures: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    async def add(self, page: Page, name: str, *, is_covered: bool = False) -> None:
        """Take and check a screenshot of the current page in every look, then restore the first look.

        ``is_covered``: an open menu covers links that no one means to press then, so their sizes are not checked.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for look in LOOKS:
            await page.look(width=look.width, dark=look.dark)
            await self._check(page, look, f"{name} ({look.name})", {"target-size"} if is_covered else set())
            (self.folder / f"{name}-{look.name}.png").write_bytes(await page.screenshot())
        await page.look(width=LOOKS[0].width, dark=LOOKS[0].dark)
        self.pictures.append(name)

    async def _check(self, page: Page, look: Look, name: str, excused: set[str]) -> None:
        for violation in await axe.violations(page):
            if violation.is_serious and violation.rule not in excused:
                self.faults.append(f"{name}: {violation.impact} {violation.rule}, {violation.help}: {'; '.join(violation.places)}")
        # Not innerWidth: a phone increases it for a page that is too wide.
        width = await page.evaluate("Math.max(document.documentElement.scrollWidth, document.body.scrollWidth)")
        if width > look.width:
            self.faults.append(f"{name}: {width - look.width} px wider than the window")

    def check(self) -> None:
        assert self.pictures
        assert not self.faults, "\n".join(self.faults)
