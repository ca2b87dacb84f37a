"""Copying, confirmations and menus, as users see them, under the page's policy."""

import pytest

from services.web.http import upload_forms
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
            # After two presses, the button still returns to its own label.
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
<button type="button">More</button>
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
        # Cancel has the focus, so a careless Enter doesn't confirm.
        assert await page.evaluate("document.activeElement.textContent") == "Cancel"
        assert await page.evaluate("document.querySelector('dialog.confirm .danger').textContent") == "Revoke key"
        async with page.loading():
            await press(page, "dialog.confirm .danger")
        assert sent == [("/revoke", b"token=t&which=7")]


async def test_rejected_confirmation_asks_again(chrome: Browser) -> None:
    site, sent = Site(), list[tuple[str, bytes]]()
    async with opened(chrome, site) as page:
        await confirming(page, site, sent)
        for way in ("Escape", "Enter", "button"):
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


async def test_dialog_closes_by_its_button(chrome: Browser) -> None:
    site = Site()
    async with opened(chrome, site) as page:
        await confirming(page, site, [])
        await page.evaluate("document.querySelector('main > button').focus(), document.getElementById('more').showModal()")
        await press(page, "[data-close]")
        await wait_for(page, "!document.getElementById('more').open && document.activeElement.textContent === 'More'")


MENU = """
<details class="account"><summary>ann</summary><a href="#one">Settings</a> <button type="button">Sign out</button></details>
<p id="rest">The page.</p> <a id="after" href="#two">A link</a>
"""


async def test_account_menu_closes_when_focus_leaves(chrome: Browser) -> None:
    site = Site()
    site.show(MENU, "nav")
    async with opened(chrome, site) as page:
        await page.goto(f"{site.origin}/")
        for way, focus in (("Escape", "SUMMARY"), ("Tab", "A"), ("elsewhere", "BODY")):
            await press(page, "summary")
            await press(page, "details button")
            # Pressing a button inside the menu doesn't close it.
            assert await page.evaluate("document.querySelector('details').open && document.activeElement.tagName") == "BUTTON"
            if way == "elsewhere":
                await press(page, "#rest")
            else:
                await key(page, way)
            await wait_for(page, "!document.querySelector('details').open")
            assert await page.evaluate("document.activeElement.tagName") == focus, way


DROP = """
<form class="drop" method="post" action="/jobs/files" enctype="multipart/form-data">
<input type="hidden" name="token" value="TOKEN"><input type="file" name="file" required data-drop aria-label="File">
<button>Upload</button></form>
"""
TOKEN = f"{'0' * 32}.{'a' * 64}"
DRAGGED = """
window.files = new DataTransfer(); files.items.add(new File(['{}'], 'in.jsonl'))
window.drag = (name) => document.body.dispatchEvent(new DragEvent(name, { dataTransfer: files, bubbles: true, cancelable: true }))
"""


async def test_a_dropped_file_is_uploaded_and_the_token_is_first(chrome: Browser) -> None:
    site, sent = Site(), list[bytes]()

    async def take(page_request: ReceivedRequest) -> None:
        sent.append(page_request.body)
        await page_request.answer(200, '<!doctype html><title>x</title><link rel="icon" href="data:,"><p>done', "text/html")

    site.answers["/jobs/files"] = take
    async with opened(chrome, site) as page:
        site.show(DROP.replace("TOKEN", TOKEN), "drop")
        await page.goto(f"{site.origin}/")
        await page.evaluate(DRAGGED)
        await page.evaluate("drag('dragover')")
        assert await page.evaluate("document.querySelector('form').matches('[data-dropping]')")
        async with page.loading():
            assert await page.evaluate("drag('drop')") is False
    (form,) = sent
    found = upload_forms._TOKEN.match(form)
    assert (found and found[1], b'filename="in.jsonl"' in form) == (TOKEN.encode(), True)
