"""A small site for scripts: the real modules, test pages, and the real content security policy."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.acceptance.chromium import Browser, Failed, Page
from tests.services.web.servers import serving

WEB = Path(__file__).parents[4] / "services" / "web"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; font-src 'self'; "
    "form-action 'self'; base-uri 'none'; object-src 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
#: Long, because the machine may be busy.
PATIENCE_SECONDS = 60
FILES = {
    "/style.css": (WEB / "static" / "style.css", "text/css"),
    "/scripts.css": (WEB / "static" / "js" / "scripts.css", "text/css"),
    "/uplot.js": (WEB / "npm" / "node_modules" / "uplot" / "dist" / "uPlot.iife.min.js", "text/javascript"),
    "/uplot.css": (WEB / "npm" / "node_modules" / "uplot" / "dist" / "uPlot.min.css", "text/css"),
}
_WATCH = (
    "window.violations = []; addEventListener('securitypolicyviolation', event =>"
    " violations.push(event.violatedDirective + ' ' + event.blockedURI + ' ' + event.sample));"
)

Message = MutableMapping[str, Any]


@dataclass(slots=True)
class ReceivedRequest:
    """A request that a test can answer piece by piece."""

    path: str
    headers: dict[str, str]
    body: bytes
    send: Callable[[Message], Awaitable[None]]
    receive: Callable[[], Awaitable[Message]]

    @property
    def sent(self) -> Any:
        return json.loads(self.body)

    async def begin(self, status: int = 200, media_type: str = "text/event-stream", **headers: str) -> None:
        named = {"content-type": media_type, "content-security-policy": POLICY, "cache-control": "no-store"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        sent = [(name.encode(), value.encode()) for name, value in named.items()]
        await self.send({"type": "http.response.start", "status": status, "headers": sent})

    async def write(self, text: str | bytes) -> None:
        body = text if isinstance(text, bytes) else text.encode()
        await self.send({"type": "http.response.body", "body": body, "more_body": True})

    async def event(self, facts: object, name: str = "message") -> None:
        await self.write(f"event: {name}\ndata: {json.dumps(facts)}\n\n")

    async def end(self) -> None:
        await self.send({"type": "http.response.body", "body": b"", "more_body": False})

    async def answer(self, status: int, text: str | bytes, media_type: str) -> None:
        await self.begin(status, media_type)
        await self.write(text)
        await self.end()

    async def gone(self) -> None:
        """Wait until the browser closes the connection."""
        while (await self.receive())["type"] != "http.disconnect":
            pass


Answer = Callable[[ReceivedRequest], Awaitable[None]]


@dataclass(slots=True)
class Site:
    """Serves the modules at `/js/`, and the test's pages and answers at other paths."""

    pages: dict[str, str] = field(default_factory=dict)
    answers: dict[str, Answer] = field(default_factory=dict)
    #: All requested paths, in order.
    requested_paths: list[str] = field(default_factory=list)
    origin: str = ""

    async def __call__(self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]) -> None:
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message["body"]
            if not message["more_body"]:
                break
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        page_request = ReceivedRequest(scope["path"], headers, body, send, receive)
        self.requested_paths.append(scope["path"])
        await (self.answers.get(page_request.path) or self._answer)(page_request)

    async def _answer(self, page_request: ReceivedRequest) -> None:
        if page_request.path in self.pages:
            await page_request.answer(200, self.pages[page_request.path], "text/html; charset=utf-8")
            return
        path, media_type = FILES.get(page_request.path, (WEB / "static" / "js" / Path(page_request.path).name, "text/javascript"))
        if path.is_file() and (page_request.path in FILES or page_request.path.startswith("/js/")):
            await page_request.answer(200, path.read_bytes(), media_type)
        else:
            await page_request.answer(404, "", "text/plain")

    def show(self, body: str, *modules: str, head: str = "", path: str = "/") -> None:
        """Add a page with these modules at ``path``; ``body`` goes into `<main>`."""
        scripts = "".join(f'<script type="module" src="/js/{name}.js"></script>' for name in modules)
        links = "".join(f'<link rel="stylesheet" href="/{name}.css">' for name in ("style", "scripts"))
        self.pages[path] = (
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Page</title>'
            f'<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">{links}'
            f"{head}{scripts}</head><body><main><h1>Page</h1>{body}</main></body></html>"
        )


@asynccontextmanager
async def opened(chrome: Browser, site: Site, *, dark: bool = False, width: int = 1280) -> AsyncIterator[Page]:
    """Yield a blank page. At the end, it must have no problems except those that the test has cleared."""
    async with serving(site) as origin:
        site.origin = origin
        page = await chrome.share(dark=dark, width=width)
        # Leave the page of the previous test, because Chromium reports its problems again.
        site.show("", path="/nothing")
        await page.goto(f"{origin}/nothing")
        for noted in (page.problems, page.requests, site.requested_paths):
            noted.clear()
        await page.send("Page.addScriptToEvaluateOnNewDocument", source=_WATCH)
        try:
            yield page
            assert_quiet(page, site, await page.evaluate("window.violations"))
        finally:
            await page.leave()


def assert_quiet(page: Page, site: Site, violations: list[str]) -> None:
    """Assert that there are no console errors, policy violations or requests to third parties."""
    assert violations == []
    assert page.problems == []
    assert [url for url in page.requests if not url.startswith((f"{site.origin}/", "data:", "about:"))] == []


async def wait_for(page: Page, condition: str) -> None:
    """Wait until this JavaScript expression is true."""

    deadline = time.monotonic() + PATIENCE_SECONDS
    while not await _is_true(page, condition):
        assert time.monotonic() < deadline, f"never came true: {condition}, on a page that shows\n{await page.text()}\n{page.problems}"
        await asyncio.sleep(0.01)


async def _is_true(page: Page, condition: str) -> bool:
    try:
        return bool(await page.evaluate(f"Boolean({condition})"))
    except Failed as failed:
        # The page navigated away while the expression ran.
        if "navigated or closed" not in str(failed):
            raise
        return False


async def press(page: Page, selector: str) -> None:
    """Click the middle of the first matching element, which must not be covered. Doesn't wait for another page."""
    quoted = json.dumps(selector)
    box = await page.evaluate(
        f"(() => {{ const found = document.querySelector({quoted}); found.scrollIntoView({{block: 'center'}});"
        " const box = found.getBoundingClientRect(), x = box.x + box.width / 2, y = box.y + box.height / 2;"
        " return found.contains(document.elementFromPoint(x, y)) ? {x, y} : null; })()"
    )
    assert box is not None, f"{selector} is covered or not to be seen"
    for event in ("mousePressed", "mouseReleased"):
        await page.send("Input.dispatchMouseEvent", type=event, x=box["x"], y=box["y"], button="left", clickCount=1)


async def key(page: Page, name: str, *, shift: bool = False, text: str = "") -> None:
    code = {"Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowRight": 39, "Home": 36, "End": 35, "Tab": 9}[name]
    facts = {"key": name, "code": name, "windowsVirtualKeyCode": code, "modifiers": 8 if shift else 0}
    typed = {"text": text} if text else {}
    await page.send("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **facts, **typed)
    await page.send("Input.dispatchKeyEvent", type="keyUp", **facts)


async def write(page: Page, text: str) -> None:
    """Type into the focused element."""
    await page.send("Input.insertText", text=text)
