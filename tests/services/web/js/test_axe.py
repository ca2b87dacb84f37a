"""The accessibility checker itself: it runs under our content security policy, and reports faults only on faulty pages."""

import pytest

from tests.acceptance.chromium import Browser
from tests.services.web.js import axe
from tests.services.web.js.site import Site, opened

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_axe_reports_the_faults_of_a_page(chrome: Browser) -> None:
    site = Site()
    site.show('<img src="data:,"><input id="nameless"><p class="soft">text</p><button></button>')
    async with opened(chrome, site) as page:
        await page.goto(f"{site.origin}/")
        found = await axe.violations(page)
        assert {"image-alt", "label", "button-name"} <= {each.rule for each in found if each.is_serious}
        assert any("nameless" in place for each in found for place in each.places)


async def test_valid_page_has_no_violations(chrome: Browser) -> None:
    site = Site()
    site.show('<form><label for="name">Name</label><input id="name"><button>Save</button></form>')
    async with opened(chrome, site) as page:
        await page.goto(f"{site.origin}/")
        for dark in (False, True):
            await page.look(width=1280, dark=dark)
            # The second run reuses the injected engine.
            assert await axe.violations(page) == []
