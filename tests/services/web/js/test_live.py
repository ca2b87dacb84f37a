"""A live page: values, attributes and rows change in place, and a lost connection is restored."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from tests.acceptance.chromium import Browser, Page
from tests.services.web.js import axe
from tests.services.web.js.site import PATIENCE_SECONDS, ReceivedRequest, Site, opened, press, wait_for

pytestmark = pytest.mark.asyncio(loop_scope="module")

BODY = """
<section data-live-source="/live" aria-label="Nodes">
  <p data-live-note="reconnecting" role="status" hidden>Reconnecting …</p>
  <p data-live-note="ended" role="status" hidden>You are signed out.</p>
  <p id="total" data-live="requests.today">7</p>
  <time id="time" datetime="then" data-live="seen.text"
    data-live-attr="datetime:seen.at title:seen.at onclick:bad style:bad src:bad">then</time>
  <a id="link" href="/old" data-live-attr="href:link">more</a>
  <svg width="10" height="10" aria-hidden="true">
    <rect id="bar" x="0" y="0" width="1" height="1" data-live-attr="height:bar y:top"/>
  </svg>
  <p id="none" data-live-show="no_nodes" hidden>No nodes yet.</p>
  <ul id="list" data-live-list="nodes">
    <template><li><b data-live="name"></b> <span data-live="state" data-live-attr="data-state:state"></span>
      <input aria-label="Note" data-live-attr="aria-label:label"></li></template>
    <li data-id="a"><b data-live="name">Node A</b> <span data-live="state" data-live-attr="data-state:state">up</span>
      <input aria-label="Note"></li>
  </ul>
</section>
<p id="beside" data-live-beside data-live-show="banner" hidden><b data-live="banner"></b></p>
<p id="stranger" data-live="banner">as it was</p>
"""


#: Removes the waits: reconnects follow immediately, and the test calls `silence()` instead of waiting 45 s.
CLOCK = """
Math.random = () => -0.98
const wait = window.setTimeout
window.setTimeout = (then, ms) => ms === 45000 ? (window.silences = 1 + (window.silences ?? 0), window.silence = then, 0) : wait(then, ms)
"""


@dataclass
class Server:
    """The server of a live page: collects its connections and their ends."""

    visits: asyncio.Queue[ReceivedRequest] = field(default_factory=asyncio.Queue)
    gone: asyncio.Queue[ReceivedRequest] = field(default_factory=asyncio.Queue)
    over: dict[int, asyncio.Event] = field(default_factory=dict)
    refuses: int = 0

    async def __call__(self, page_request: ReceivedRequest) -> None:
        if self.refuses:
            await page_request.answer(self.refuses, '{"error": {"code": "unauthorized", "message": "no"}}', "application/json")
            self.gone.put_nowait(page_request)
            return
        over = self.over[id(page_request)] = asyncio.Event()
        await page_request.begin()
        self.visits.put_nowait(page_request)
        async with asyncio.TaskGroup() as tasks:
            ended = tasks.create_task(over.wait())
            left = tasks.create_task(page_request.gone())
            await asyncio.wait((ended, left), return_when=asyncio.FIRST_COMPLETED)
            if over.is_set():
                await page_request.end()
            ended.cancel()
            left.cancel()
        self.gone.put_nowait(page_request)

    async def next(self) -> ReceivedRequest:
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await self.visits.get()

    def close(self, page_request: ReceivedRequest) -> None:
        self.over[id(page_request)].set()


@asynccontextmanager
async def followed(chrome: Browser) -> AsyncIterator[tuple[Page, Server, ReceivedRequest]]:
    """Yield the page, the server that it follows, and its first connection."""
    site, server = Site(), Server()
    site.show(BODY, "live")
    site.answers["/live"] = server
    async with opened(chrome, site) as page:
        await page.send("Page.addScriptToEvaluateOnNewDocument", source=CLOCK)
        await page.goto(f"{site.origin}/")
        yield page, server, await server.next()


async def text(page: Page, selector: str) -> str:
    return str(await page.evaluate(f"document.querySelector('{selector}').textContent"))


async def state(page: Page, wanted: str) -> None:
    await wait_for(page, f"document.querySelector('section').dataset.liveState === '{wanted}'")


async def test_values_and_allowed_attributes_are_updated(chrome: Browser) -> None:
    async with followed(chrome) as (page, _, page_request):
        await page_request.event({"requests.today": 12, "seen.text": "now", "seen.at": "2026-01-02T03:04:05Z", "bad": "alert(1)"})
        await page_request.event({"bar": 8, "top": 2, "no_nodes": True, "link": "/new"})
        await wait_for(page, "document.getElementById('total').textContent === '12' && !document.getElementById('none').hidden")
        attributes = await page.evaluate(
            "Object.fromEntries([...document.getElementById('time').attributes].map(each => [each.name, each.value]))"
        )
        assert attributes["datetime"] == attributes["title"] == "2026-01-02T03:04:05Z"
        assert {"onclick", "style", "src"}.isdisjoint(attributes)
        assert await page.evaluate("[...'xy'].map(each => document.getElementById('bar').getAttribute(each))") == ["0", "2"]
        assert await page.evaluate("document.getElementById('link').getAttribute('href')") == "/new"
        for elsewhere in ("javascript:alert(1)", "//evil.example/", "/\\evil.example", "https://evil.example/", ""):
            await page_request.event({"link": elsewhere, "requests.today": elsewhere})
            await wait_for(page, f"document.getElementById('total').textContent === {json.dumps(elsewhere)}")
            assert await page.evaluate("document.getElementById('link').getAttribute('href')") == "/new"
        await page_request.event({"requests.today": "<img src=x onerror=alert(1)>"})
        await wait_for(page, "document.getElementById('total').textContent.startsWith('<img')")


async def test_elements_outside_the_region_are_updated_if_marked(chrome: Browser) -> None:
    async with followed(chrome) as (page, _, page_request):
        await page_request.event({"banner": "1 alert:"})
        await wait_for(page, "!document.getElementById('beside').hidden")
        assert await text(page, "#beside") == "1 alert:"
        assert await text(page, "#stranger") == "as it was"
        await page_request.event({"banner": ""})
        await wait_for(page, "document.getElementById('beside').hidden")


async def test_rows_are_added_changed_moved_and_removed_without_touching_others(chrome: Browser) -> None:
    async with followed(chrome) as (page, _, page_request):
        ids = "[...document.querySelectorAll('#list > [data-id]')].map(each => each.dataset.id).join('')"
        await page.evaluate("window.first = document.querySelector('[data-id=a]'); first.querySelector('input').focus()")
        await page.evaluate(
            "window.touched = []; new MutationObserver(all => touched.push(...all.map(each => each.type)))"
            ".observe(first, {subtree: true, childList: true, attributes: true, characterData: true})"
        )
        node = {"id": "a", "name": "Node A", "state": "up"}
        await page_request.event(
            {"nodes": [{"id": "c", "name": "Node C", "state": "down"}, node, {"id": "b", "name": "Node B", "state": "up"}]}
        )
        # The page's own `name` and `state` don't change the rows.
        await page_request.event({"name": "page", "state": "page"})
        await wait_for(page, f"{ids} === 'cab'")
        assert await text(page, "[data-id=c] span") == "down"
        assert await page.evaluate("document.querySelector('[data-id=c] span').dataset.state") == "down"
        # Only the state attribute changed: the row was not drawn again, and its input kept the focus.
        assert await page.evaluate("touched") == ["attributes"]
        assert await page.evaluate("document.activeElement === first.querySelector('input')")
        await page_request.event({"nodes": [node, {"id": "b", "name": "<i>B</i>", "state": "up"}]})
        await wait_for(page, f"{ids} === 'ab'")
        assert await text(page, "[data-id=b] b") == "<i>B</i>"
        assert await page.evaluate(
            "document.querySelector('[data-id=a]') === first && document.activeElement === first.querySelector('input')"
        )
        await page_request.event({"nodes": [{"id": "b", "name": "B"}, node]})
        await wait_for(page, f"{ids} === 'ba'")
        assert await text(page, "[data-id=b] b") == "B"
        await page_request.event({"nodes": []})
        await wait_for(page, f"{ids} === ''")


async def test_lost_connection_is_restored_and_shown(chrome: Browser) -> None:
    async with followed(chrome) as (page, server, page_request):
        await page_request.event({"requests.today": 1})
        await state(page, "live")
        assert [each for each in await axe.violations(page) if each.is_serious] == []
        server.close(page_request)
        # The notice stays until the first event of the new connection.
        again = await server.next()
        await state(page, "reconnecting")
        assert not await page.evaluate("document.querySelector('[data-live-note=reconnecting]').hidden")
        await again.event({"requests.today": 2})
        await state(page, "live")
        assert await page.evaluate("document.querySelector('[data-live-note=reconnecting]').hidden")
        assert await text(page, "#total") == "2"


async def test_silent_connection_is_replaced(chrome: Browser) -> None:
    async with followed(chrome) as (page, server, page_request):
        await page_request.event({})
        await state(page, "live")
        await page_request.event({"requests.today": "still"})
        await wait_for(page, "document.getElementById('total').textContent === 'still'")
        # Each event restarts the timer.
        assert await page.evaluate("silences") == 3
        # Act as if 45 s had passed without an event.
        await page.evaluate("silence()")
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert await server.gone.get() is page_request
        await (await server.next()).event({"requests.today": "heard"})
        await wait_for(page, "document.getElementById('total').textContent === 'heard'")


async def test_hidden_page_has_no_connection(chrome: Browser) -> None:
    async with followed(chrome) as (page, server, page_request):
        await page_request.event({})
        await state(page, "live")
        await page.evaluate(
            "Object.defineProperty(document, 'hidden', {value: true, configurable: true});"
            " document.dispatchEvent(new Event('visibilitychange'))"
        )
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert await server.gone.get() is page_request
        await state(page, "paused")
        await page.evaluate(
            "Object.defineProperty(document, 'hidden', {value: false}); document.dispatchEvent(new Event('visibilitychange'))"
        )
        await (await server.next()).event({"requests.today": "back"})
        await wait_for(page, "document.getElementById('total').textContent === 'back'")


async def test_signed_out_user_is_told_and_the_page_stops(chrome: Browser) -> None:
    async with followed(chrome) as (page, server, page_request):
        server.refuses = 401
        server.close(page_request)
        await state(page, "ended")
        assert await page.evaluate("document.querySelector('[data-live-note=ended]').hidden") is False
        await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        assert server.visits.empty()
        # The browser logs the refused request; nothing else may be logged.
        assert [problem for problem in page.problems if "401" not in problem] == []
        page.problems.clear()


async def test_retry_delays_double_up_to_half_a_minute_with_jitter(chrome: Browser) -> None:
    async with followed(chrome) as (page, _, __):
        waits = await page.evaluate(
            "import('/js/live.js').then(live => [1, 2, 3, 6, 50].map(attempt => [live.waitMs(attempt, 0), live.waitMs(attempt, 1)]))"
        )
        assert waits == [[500, 1000], [1000, 2000], [2000, 4000], [15000, 30000], [15000, 30000]]


async def test_invalid_event_is_logged_and_the_next_one_is_used(chrome: Browser) -> None:
    async with followed(chrome) as (page, _, page_request):
        await page_request.write("data: {broken\n\n")
        await page_request.event({"requests.today": "next"})
        await wait_for(page, "document.getElementById('total').textContent === 'next'")
        assert len(page.problems) == 1
        assert "SyntaxError" in page.problems[0]
        page.problems.clear()


async def test_button_in_a_new_row_works(chrome: Browser) -> None:
    site, server = Site(), Server()
    form = '<form method="post" data-live-attr="action:revoke" data-confirm="Sure?"><button>Revoke</button></form>'
    row = f'<li><code data-live="key"></code> {form}</li>'
    site.show(f'<ul data-live-source="/live" data-live-list="keys"><template>{row}</template></ul>', "live", "dialog")
    site.answers["/live"] = server
    async with opened(chrome, site) as page:
        await page.goto(f"{site.origin}/")
        await (await server.next()).event({"keys": [{"id": "1", "key": "aip_x", "revoke": "/keys/1/revoke"}]})
        await wait_for(page, "document.querySelector('li form')?.getAttribute('action') === '/keys/1/revoke'")
        await press(page, "li button")
        await wait_for(page, "document.querySelector('dialog[open]')")
