"""Copying, confirmations, and the color scheme, as users see them, under the page's policy."""

import pytest

from tests.acceptance.chromium import Browser, Page
from tests.services.web.js import axe
from tests.services.web.js.site import ReceivedRequest, Site, key, opened, press, wait_for

pytestmark = pytest.mark.asyncio(loop_scope="module")

COPY = """
<code id="key">aip_live_x</code> <button type="button" data-copy="#key">Copy key</button>
<textarea id="field" aria-label="Field">typed</textarea> <button type="button" id="second" data-copy="#field">Copy field</button>
<figure class="code"><figcaption>curl <button type="button" id="third" data-copy="">Copy</button></figcaption>
  <pre tabindex="0"><code>curl x</code></pre></figure>
"""
#: Replaces the system clipboard, which tests share, and the two-second timer.
CLIPBOARD = """
window.copied = []
Object.defineProperty(navigator, 'clipboard', { value: { writeText: async (text) => { CLIPBOARD } } })
const wait = window.setTimeout
window.setTimeout = (then, ms) => ms === 2000 ? (window.after = then, 1) : wait(then, ms)
"""


async def copying(page: Page, site: Site, clipboard: str = "window.copied.push(text)") -> None:
    site.show(COPY, "copy")
    await page.send("Page.addScriptToEvaluateOnNewDocument", source=CLIPBOARD.replace("CLIPBOARD", clipboard))
    await page.goto(f"{site.origin}/")


async def test_copy_button_confirms_for_two_seconds_visibly_and_audibly(chrome: Browser) -> None:
    site = Site()
    async with opened(chrome, site) as page:
        await copying(page, site)
        for button in ("main > button", "#second", "#third"):
            label = await page.evaluate(f"document.querySelector('{button}').textContent")
            await press(page, button)
            await wait_for(page, f"document.querySelector('{button}').textContent === 'Copied'")
            assert await page.evaluate("document.querySelector('[role=status]').textContent") == "Copied"
            # Pressed twice, it still finds back to its own word.
            await press(page, button)
            await page.evaluate("after()")
            assert await page.evaluate(f"document.querySelector('{button}').textContent") == label
            assert await page.evaluate("document.querySelector('[role=status]').textContent") == ""
        assert await page.evaluate("copied") == ["aip_live_x", "aip_live_x", "typed", "typed", "curl x", "curl x"]
        assert await axe.violations(page) == []


async def test_without_a_clipboard_the_text_is_selected(chrome: Browser) -> None:
    site = Site()
    async with opened(chrome, site) as page:
        await copying(page, site, "throw new DOMException('no', 'NotAllowedError')")
        await press(page, "main > button")
        await wait_for(page, "document.querySelector('main > button').textContent.startsWith('Selected')")
        assert await page.evaluate("getSelection().toString()") == "aip_live_x"
        await press(page, "#second")
        await wait_for(page, "document.querySelector('#second').textContent.startsWith('Selected')")
        assert await page.evaluate("[document.activeElement.id, document.activeElement.selectionEnd]") == ["field", 5]


CONFIRM = """
<form method="post" action="/revoke"
  data-confirm="Revoke “laptop”? Programs that use it are refused at once." data-confirm-button="Revoke key">
  <input type="hidden" name="token" value="t"><button name="which" value="7">Revoke</button>
</form>
<form method="post" action="/save"><button>Save</button> <button name="act" value="delete" data-confirm="Delete all?">Delete</button></form>
<button type="button" data-dialog="#more">More</button>
<dialog id="more" aria-label="More"><p>Text</p><button type="button" data-close>Close</button></dialog>
"""


async def confirming(page: Page, site: Site, sent: list[tuple[str, bytes]]) -> None:
    async def take(page_request: ReceivedRequest) -> None:
        sent.append((page_request.path, page_request.body))
        await page_request.answer(200, '<!doctype html><title>x</title><link rel="icon" href="data:,"><p>done', "text/html")

    site.answers |= {"/revoke": take, "/save": take}
    site.show(CONFIRM, "dialog")
    await page.goto(f"{site.origin}/")


async def test_confirmed_form_is_sent_unchanged(chrome: Browser) -> None:
    site, sent = Site(), list[tuple[str, bytes]]()
    async with opened(chrome, site) as page:
        await confirming(page, site, sent)
        await press(page, "form button")
        await wait_for(page, "document.querySelector('dialog.confirm[open]')")
        assert "Programs that use it are refused at once." in await page.text()
        assert [each for each in await axe.violations(page) if each.is_serious] == []
        # What is first, and what Enter does without thinking, is not the deed.
        assert await page.evaluate("document.activeElement.textContent") == "Cancel"
        assert await page.evaluate("document.querySelector('dialog.confirm .danger').textContent") == "Revoke key"
        async with page.loading():
            await press(page, "dialog.confirm .danger")
        assert sent == [("/revoke", b"token=t&which=7")]


@pytest.mark.parametrize("way", ["Escape", "Enter", "button"])
async def test_rejected_confirmation_asks_again(chrome: Browser, way: str) -> None:
    site, sent = Site(), list[tuple[str, bytes]]()
    async with opened(chrome, site) as page:
        await confirming(page, site, sent)
        for _ in range(2):
            await press(page, "form button")
            await wait_for(page, "document.querySelector('dialog.confirm[open]')")
            if way == "button":
                await press(page, "dialog.confirm .quiet")
            else:
                await key(page, way, text="\r" if way == "Enter" else "")
            await wait_for(page, "!document.querySelector('dialog.confirm')")
            assert await page.evaluate("document.activeElement.textContent") == "Revoke"
        assert sent == []


async def test_only_the_marked_button_asks_for_confirmation(chrome: Browser) -> None:
    site, sent = Site(), list[tuple[str, bytes]]()
    async with opened(chrome, site) as page:
        await confirming(page, site, sent)
        async with page.loading():
            await press(page, "form + form button")
        await confirming(page, site, sent)
        await press(page, "form + form button[name=act]")
        await wait_for(page, "document.querySelector('dialog.confirm[open]')")
        async with page.loading():
            await press(page, "dialog.confirm .danger")
        assert sent == [("/save", b""), ("/save", b"act=delete")]


async def test_dialog_opens_and_closes(chrome: Browser) -> None:
    site = Site()
    async with opened(chrome, site) as page:
        await confirming(page, site, [])
        await press(page, "[data-dialog]")
        await wait_for(page, "document.getElementById('more').open")
        await press(page, "[data-close]")
        await wait_for(page, "!document.getElementById('more').open && document.activeElement.textContent === 'More'")


MENU = """
<details class="account"><summary>ann</summary><a href="#one">Settings</a> <button type="button">Sign out</button></details>
<p id="rest">The page.</p> <a id="after" href="#two">A link</a>
"""


@pytest.mark.parametrize("way", ["Escape", "Tab", "elsewhere"])
async def test_account_menu_closes_when_focus_leaves(chrome: Browser, way: str) -> None:
    site = Site()
    site.show(MENU, "nav")
    async with opened(chrome, site) as page:
        await page.goto(f"{site.origin}/")
        await press(page, "summary")
        await press(page, "details button")
        # What is in it does not close it.
        assert await page.evaluate("document.querySelector('details').open && document.activeElement.tagName") == "BUTTON"
        if way == "elsewhere":
            await press(page, "#rest")
        else:
            await key(page, way)
        await wait_for(page, "!document.querySelector('details').open")
        focus = {"Escape": "SUMMARY", "Tab": "A", "elsewhere": "BODY"}[way]
        assert await page.evaluate("document.activeElement.tagName") == focus


THEME = """
<div role="group" aria-label="Colours">
  <button type="button" data-theme-choice="light">Light</button> <button type="button" data-theme-choice="dark">Dark</button>
  <button type="button" data-theme-choice="system">As the system</button>
</div>
"""
#: What stood on <html> when the first element of the body came: a page that is drawn before has flashed.
EARLY = (
    "new MutationObserver(() => { if (document.body && !window.early) window.early = document.documentElement.dataset.theme ?? 'none' })"
)
EARLY += ".observe(document, {childList: true, subtree: true})"


async def test_color_scheme_applies_to_every_page_from_the_start(chrome: Browser) -> None:
    site = Site()
    head = '<script src="/js/theme.js"></script>'
    site.show(THEME, head=head)
    site.show("<p>another</p>", head=head, path="/other")
    async with opened(chrome, site) as page:
        await page.send("Page.addScriptToEvaluateOnNewDocument", source=EARLY)
        await page.goto(f"{site.origin}/")
        chosen = "[...document.querySelectorAll('[aria-pressed=true]')].map(each => each.dataset.themeChoice).join()"
        assert [await page.evaluate("early"), await page.evaluate(chosen)] == ["none", "system"]
        await press(page, "[data-theme-choice=dark]")
        assert await page.evaluate("document.documentElement.dataset.theme") == "dark"
        assert await page.evaluate(chosen) == "dark"
        await page.goto(f"{site.origin}/other")
        assert await page.evaluate("early") == "dark"
        assert await page.evaluate("document.cookie") == ""
        await page.goto(f"{site.origin}/")
        await press(page, "[data-theme-choice=system]")
        assert await page.evaluate("'theme' in document.documentElement.dataset") is False
        await page.goto(f"{site.origin}/other")
        assert await page.evaluate("early") == "none"


async def test_without_storage_the_color_scheme_applies_to_the_page(chrome: Browser) -> None:
    site = Site()
    site.show(THEME, head='<script src="/js/theme.js"></script>')
    async with opened(chrome, site) as page:
        forbidden = "Object.defineProperty(window, 'localStorage', {get() { throw new DOMException('no', 'SecurityError') }})"
        await page.send("Page.addScriptToEvaluateOnNewDocument", source=forbidden)
        await page.goto(f"{site.origin}/")
        await press(page, "[data-theme-choice=dark]")
        assert await page.evaluate("document.documentElement.dataset.theme") == "dark"
