"""The tabs with lines for agents in a browser: one program at a time, by mouse and keyboard, and no wider than a phone."""

from litestar.types import ASGIApp

from services.web import agent_setups
from tests.acceptance.chromium import Browser
from tests.services.web.fake_mesh import FakeMesh
from tests.services.web.js import axe
from tests.services.web.pages import in_chromium

#: The lines that are visible.
SHOWN = "[...document.querySelectorAll('.choices code')].filter((each) => each.checkVisibility()).map((each) => each.textContent)"


async def test_a_tab_shows_the_lines_of_its_program(app: ASGIApp, mesh: FakeMesh, chrome: Browser) -> None:
    token = mesh.add_session(mesh.add_account("ann", "correct horse"))
    async with in_chromium.signed_in(app, chrome, token) as (page, origin):
        await page.goto(f"{origin}/dashboard")
        assert [text for text in await page.evaluate(SHOWN) if "ANTHROPIC_MODEL=smollm2" in text]
        await page.press(".choices label[for=setup-opencode]")
        shown = await page.evaluate(SHOWN)
        assert [text for text in shown if f'"baseURL": "{origin}/v1"' in text]
        assert not [text for text in shown if "ANTHROPIC" in text]
        # As arrow keys do in a group of radio buttons.
        await page.send("Input.dispatchKeyEvent", type="keyDown", key="ArrowRight", code="ArrowRight", windowsVirtualKeyCode=39)
        assert [text for text in await page.evaluate(SHOWN) if "cline auth" in text]
        for width, dark in ((1280, True), (390, False)):
            await page.look(width=width, dark=dark)
            assert await axe.violations(page) == [], (width, dark)
        for setup in agent_setups.load():
            await page.press(f".choices label[for=setup-{setup.slug}]")
            assert await page.evaluate("document.documentElement.scrollWidth") <= 390, setup.name
