"""A real Chromium, driven over the DevTools pipe (`--remote-debugging-pipe`): no package, no port, no driver process.

Clicks and typing are input events at the position of an element, so covered or invisible elements can't be used.
Everything that a page logs, throws or requests is recorded for the test.
"""

import asyncio
import base64
import fcntl
import itertools
import json
import os
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests import capabilities, stopwatch

_ANSWER_SECONDS = 60
#: Chromium loads internal pages with its first tab and for each window, in separate renderers. They take two thirds of the CPU time of
#: a test, and no test uses them.
_UNUSED_PAGES = ("SpareRendererForSitePerProcess", "WebUIOmniboxAimPopup", "WebUIOmniboxPopup")
_FLAGS = (
    "--headless=new", "--remote-debugging-pipe", "--no-first-run", "--no-default-browser-check", "--disable-gpu",
    "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-extensions", "--mute-audio", "--password-store=basic", "--force-prefers-reduced-motion",
    "--no-startup-window", f"--disable-features={','.join(_UNUSED_PAGES)}",
)  # fmt: skip

Json = dict[str, Any]


class Failed(AssertionError):
    """Chromium refused a command, or a page lacks what the test expects."""


class Chromium:
    """A Chromium process with an empty profile. It starts on demand, and one event loop at a time controls it.

    A start takes seconds, and every window has its own cookies, so all tests of a test process can share it.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._profile: tempfile.TemporaryDirectory[str] | None = None
        self._commands = self._events = -1
        #: The received part of an incomplete message.
        self._received = bytearray()
        self._numbers = itertools.count(1)

    @asynccontextmanager
    async def control(self) -> AsyncIterator["Browser"]:
        """Yield a browser whose windows are closed when the block ends."""
        if self._process is None or self._process.poll() is not None:
            self.kill()
            self._start()
        loop = asyncio.get_running_loop()
        commands, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, os.fdopen(os.dup(self._commands), "wb"))
        browser = Browser(commands, self._numbers)
        loop.add_reader(self._events, self._receive, browser)
        try:
            yield browser
            await browser.close_windows()
        except BaseException:
            # The state of its windows is unknown.
            self.kill()
            raise
        finally:
            loop.remove_reader(self._events)
            commands.close()

    def kill(self) -> None:
        """Kill the process. Safe to call twice."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            os.close(self._commands)
            os.close(self._events)
            self._received.clear()
        if self._profile is not None:
            self._profile.cleanup()
            self._profile = None

    def _start(self) -> None:
        program = capabilities.find_browser()
        assert program is not None
        self._profile = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        to_read, self._commands = _pipe()
        self._events, from_write = _pipe()
        os.set_blocking(self._events, False)
        # Chromium reads commands from descriptor 3 and answers on 4. Bash starts it, because dash can't move descriptors above 9. Root
        # gets no sandbox.
        flags = [*_FLAGS, f"--user-data-dir={self._profile.name}", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$0" "$@" 3<&{to_read} 4>&{from_write}', program, *flags],
            pass_fds=(to_read, from_write), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": self._profile.name},
        )  # fmt: skip
        os.close(to_read)
        os.close(from_write)

    def _receive(self, browser: "Browser") -> None:
        try:
            read = os.read(self._events, 1024 * 1024)
        except BlockingIOError:
            return
        if not read:
            asyncio.get_running_loop().remove_reader(self._events)
            browser.end()
            return
        *messages, rest = read.split(b"\0")
        for message in messages:
            self._received += message
            browser.take(json.loads(self._received))
            self._received.clear()
        self._received += rest


class Browser:
    def __init__(self, commands: asyncio.WriteTransport, numbers: Iterator[int]) -> None:
        self._commands = commands
        self._numbers = numbers
        self._answers: dict[int, asyncio.Future[Json]] = {}
        self._pages: dict[str, Page] = {}
        self._contexts: list[str] = []
        self._shared_window = ""
        self._ended = False

    async def send(self, method: str, session: str | None = None, /, **parameters: Any) -> Json:
        if self._ended:
            raise Failed("Chromium has ended")
        number = next(self._numbers)
        self._answers[number] = answer = asyncio.get_running_loop().create_future()
        message = {"id": number, "method": method, "params": parameters} | ({"sessionId": session} if session else {})
        self._commands.write(json.dumps(message).encode() + b"\0")
        async with asyncio.timeout(_ANSWER_SECONDS):
            return await answer

    def take(self, message: Json) -> None:
        """Deliver a message from Chromium."""
        if "id" in message:
            answer = self._answers.pop(message["id"], None)
            if answer is None or answer.done():  # no caller waits any more
                return
            if "error" in message:
                answer.set_exception(Failed(message["error"]["message"]))
            else:
                answer.set_result(message["result"])
        elif (page := self._pages.get(message.get("sessionId", ""))) is not None:
            page.take(message["method"], message["params"])

    def end(self) -> None:
        """Fail all pending calls, because Chromium has ended."""
        self._ended = True
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(Failed("Chromium has ended"))

    async def close_windows(self) -> None:
        for context in self._contexts:
            await self.send("Target.disposeBrowserContext", browserContextId=context)
        self._contexts.clear()
        self._shared_window = ""

    async def open(self, *, width: int = 1280, dark: bool = False, javascript: bool = True) -> "Page":
        """Open a new window with its own cookies."""
        return await self._attach(await self._new_window(), width=width, dark=dark, javascript=javascript)

    async def share(self, *, width: int = 1280, dark: bool = False) -> "Page":
        """Use the one window that tests share in turn, until ``Page.leave``: opens in half the time, but keeps the cookies of all tests."""
        self._shared_window = self._shared_window or await self._new_window()
        return await self._attach(self._shared_window, width=width, dark=dark, javascript=True)

    async def _new_window(self) -> str:
        context = (await self.send("Target.createBrowserContext"))["browserContextId"]
        self._contexts.append(context)
        return str((await self.send("Target.createTarget", url="about:blank", browserContextId=context))["targetId"])

    async def _attach(self, target: str, *, width: int, dark: bool, javascript: bool) -> "Page":
        session = (await self.send("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
        self._pages[session] = page = Page(self, session)
        for domain in ("Page", "Network", "Runtime", "Log"):
            await page.send(f"{domain}.enable")
        await page.look(width=width, dark=dark)
        await page.send("Emulation.setScriptExecutionDisabled", value=not javascript)
        return page


@dataclass
class Page:
    browser: Browser
    session: str
    #: All requested URLs, and what was logged as an error or warning, or thrown.
    requests: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    #: URL prefixes of third parties. What their pages do is not recorded.
    strangers: list[str] = field(default_factory=list)
    #: The status of the current document, and its headers with lower-case names.
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    _address: str = ""
    _loaded: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self, event: str, facts: Json) -> None:
        match event:
            case "Page.loadEventFired":
                self._loaded.set()
            case "Page.frameNavigated" if "parentId" not in facts["frame"]:
                self._address = facts["frame"]["url"]
            case "Network.responseReceived" if facts["type"] == "Document":
                self.status = facts["response"]["status"]
                self.headers = {name.lower(): value for name, value in facts["response"]["headers"].items()}
            case _ if self._address.startswith(tuple(self.strangers)):
                pass
            case "Network.requestWillBeSent":
                self.requests.append(facts["request"]["url"])
            case _:
                self._take_problem(event, facts)

    def _take_problem(self, event: str, facts: Json) -> None:
        match event:
            case "Log.entryAdded" if facts["entry"]["level"] in ("error", "warning"):
                self.problems.append(facts["entry"]["text"])
            case "Runtime.consoleAPICalled" if facts["type"] in ("error", "warning", "assert"):
                self.problems.append(json.dumps(facts["args"]))
            case "Runtime.exceptionThrown":
                self.problems.append(json.dumps(facts["exceptionDetails"]))
            case "Runtime.bindingCalled":
                self.problems.append(f"{facts['name']}: {facts['payload']}")
            # Generic issues are only advice about filling in forms automatically.
            case "Audits.issueAdded" if facts["issue"]["code"] != "GenericIssue":
                self.problems.append(json.dumps(facts["issue"]))

    async def send(self, method: str, **parameters: Any) -> Json:
        return await self.browser.send(method, self.session, **parameters)

    async def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression; works even if scripts are disabled on the page."""
        done = await self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in done:
            raise Failed(f"{expression}: {done['exceptionDetails']['exception'].get('description')}")
        return done["result"].get("value")

    async def text(self) -> str:
        return str(await self.evaluate("document.body.innerText"))

    async def path(self) -> str:
        return str(await self.evaluate("location.pathname"))

    @asynccontextmanager
    async def loading(self) -> AsyncIterator[None]:
        """Wait at the end of the block for the page that the block leads to."""
        self._loaded.clear()
        yield
        async with asyncio.timeout(_ANSWER_SECONDS):
            await self._loaded.wait()

    async def look(self, *, width: int, dark: bool) -> None:
        """Set the window size and the color scheme of the system."""
        await self.send("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 600)
        await self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])

    async def goto(self, url: str) -> None:
        async with self.loading():
            gone = await self.send("Page.navigate", url=url)
            if "errorText" in gone:
                raise Failed(f"{url}: {gone['errorText']}")

    async def leave(self) -> None:
        """Undo the settings of this page; the window stays open."""
        del self.browser._pages[self.session]
        await self.browser.send("Target.detachFromTarget", sessionId=self.session)

    async def reload(self) -> None:
        async with self.loading():
            await self.send("Page.reload")

    async def click(self, selector: str, text: str = "") -> None:
        """Call ``press``, and wait for the page that it leads to."""
        async with self.loading():
            await self.press(selector, text)

    async def press(self, selector: str, text: str = "") -> None:
        """Click the middle of the first matching element that contains ``text``."""
        found = f"[...document.querySelectorAll({json.dumps(selector)})].find(each => each.innerText.includes({json.dumps(text)}))"
        box = await self.evaluate(
            f"(() => {{ const found = {found}; if (!found) return null; found.scrollIntoView({{block: 'center'}});"
            " const box = found.getBoundingClientRect(), x = box.x + box.width / 2, y = box.y + box.height / 2;"
            " return found.contains(document.elementFromPoint(x, y)) ? {x, y} : null; })()"
        )
        if box is None:
            raise Failed(f"nothing to click: {selector} {text!r} on {await self.path()}:\n{await self.text()}")
        for event in ("mousePressed", "mouseReleased"):
            await self.send("Input.dispatchMouseEvent", type=event, x=box["x"], y=box["y"], button="left", clickCount=1)

    async def until(self, condition: str, *, seconds: float = _ANSWER_SECONDS) -> None:
        """Wait until this JavaScript expression is true, even across pages."""
        seconds = stopwatch.patience(seconds)
        deadline = time.monotonic() + seconds
        while not await self._is_true(condition):
            if time.monotonic() > deadline:
                raise Failed(f"not within {seconds} s: {condition}, on {await self.path()}:\n{await self.text()}\n{self.problems}")
            await asyncio.sleep(0.01)

    async def _is_true(self, condition: str) -> bool:
        try:
            return bool(await self.evaluate(f"Boolean({condition})"))
        except Failed:
            # Between two pages, no page can evaluate it.
            return False

    async def fill(self, **fields: str) -> None:
        """Type into the inputs with these ids."""
        for name, value in fields.items():
            await self.evaluate(f"document.getElementById({json.dumps(name)}).select()")
            await self.send("Input.insertText", text=value)

    async def screenshot(self) -> bytes:
        """Return a PNG of the whole page, for people to look at."""
        done = await self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        return base64.b64decode(done["data"])


def _pipe() -> tuple[int, int]:
    """Return a pipe whose descriptors are above those that the shell moves them to."""
    low = os.pipe()
    high = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in low)
    for end in low:
        os.close(end)
    return high[0], high[1]


@contextmanager
def starting() -> Iterator[Chromium]:
    """Yield a Chromium for several tests, and kill it when the block ends. Skips the test if no Chromium is installed."""
    capabilities.require("browser")
    chromium = Chromium()
    try:
        yield chromium
    finally:
        chromium.kill()


@asynccontextmanager
async def launch() -> AsyncIterator[Browser]:
    """Yield a browser for this block alone."""
    with starting() as chromium:
        async with chromium.control() as browser:
            yield browser
