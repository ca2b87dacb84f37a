"""Create the pictures of the README from a real stack: a terminal recording and a screenshot of the dashboard.

    python -m tools.pictures

It takes about two minutes and needs Chromium. Run it after a change that alters what the pictures show.
"""

import asyncio
import base64
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from tests import people, stacks
from tests.acceptance import chromium
from tests.acceptance.visitor import administrator
from tests.stacks import RunningStack

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "pictures"

#: The commands of the recording. The first answer would show how long the model takes to load, so it is not recorded.
WARM_UP = ("infer", "hello", "--max-tokens", "8")
COMMANDS = (
    ("infer", "Name three colors.", "--max-tokens", "40", "--temperature", "0"),
    ("models",),
    ("nodes",),
    ("usage",),
)
#: Requests for the dashboard to show.
REQUESTS, AT_ONCE = 60, 3
PAGE, WIDTH, HEIGHT = "/dashboard?span=day", 1100, 780
#: Enough for those requests, and a plausible amount.
SETTINGS = {"DEFAULT_RATE_LIMIT": "600", "PREMIUM_RATE_LIMIT": "600", "RESPONSE_CACHE": "off"}

#: The recording's size, in pixels and in characters.
LINE_HEIGHT, CHARACTER_WIDTH, MARGIN, COLUMNS = 19, 8.43, 16, 110
#: Longer pauses are shortened to this.
MAX_PAUSE_SECONDS, PAUSE_BETWEEN_SECONDS = 0.4, 0.8
COMMAND_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Shown:
    """A piece of text in the recording, and when it appears."""

    seconds: float
    row: int
    column: int
    text: str
    is_typed: bool = False


async def record(stack: RunningStack) -> list[Shown]:
    shown: list[Shown] = []
    seconds, row = 0.5, 0
    for words in COMMANDS:
        typed = "$ aicli " + " ".join(f'"{word}"' if " " in word else word for word in words)
        shown.append(Shown(seconds, row, 0, typed, is_typed=True))
        row, column = row + 1, 0
        async for waited, text in output(stack, *words):
            seconds += min(waited, MAX_PAUSE_SECONDS)
            for number, line in enumerate(text.split("\n")):
                if number:
                    row, column = row + 1, 0
                for start in range(0, len(line), COLUMNS):
                    part = line[start : start + COLUMNS]
                    if column + len(part) > COLUMNS:
                        row, column = row + 1, 0
                    shown.append(Shown(seconds, row, column, part))
                    column += len(part)
        row += 1 + bool(column)
        seconds += PAUSE_BETWEEN_SECONDS
    return shown


async def output(stack: RunningStack, *words: str) -> AsyncIterator[tuple[float, str]]:
    """Return a command's output in pieces, each with the time since the previous one."""
    process = await stack.start_aicli(*words, COLUMNS=str(COLUMNS), PYTHONUNBUFFERED="1")
    assert process.stdout is not None
    before = time.monotonic()
    try:
        async with asyncio.timeout(COMMAND_SECONDS):
            while piece := await process.stdout.read(4096):
                now = time.monotonic()
                yield now - before, piece.decode()
                before = now
            if await process.wait():
                raise RuntimeError(f"aicli {words[0]} failed")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def drawn(shown: list[Shown]) -> str:
    """Return the recording as an animated SVG; viewers without animations show its end."""
    width = round(2 * MARGIN + COLUMNS * CHARACTER_WIDTH)
    height = 2 * MARGIN + (max(piece.row for piece in shown) + 1) * LINE_HEIGHT
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">',
        "<style>",
        "text { font: 14px ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace; fill: #d8dee9; white-space: pre }",
        ".typed { fill: #a3be8c }",
        "@media (prefers-reduced-motion: no-preference) { text { animation: show 0.01s backwards } }",
        "@keyframes show { from { opacity: 0 } to { opacity: 1 } }",
        "</style>",
        f'<rect width="{width}" height="{height}" rx="8" fill="#1d222b"/>',
    ]
    for piece in shown:
        x, y = MARGIN + piece.column * CHARACTER_WIDTH, MARGIN + (piece.row + 0.75) * LINE_HEIGHT
        kind = ' class="typed"' if piece.is_typed else ""
        lines.append(f'<text x="{x:.1f}" y="{y:.1f}" style="animation-delay:{piece.seconds:.2f}s"{kind}>{escape(piece.text)}</text>')
    return "\n".join([*lines, "</svg>", ""])


async def screenshot(stack: RunningStack) -> bytes:
    async with people.api_client(stack) as api_client, chromium.launch() as browser:
        ada = await administrator(await browser.open(width=WIDTH), stack.url("web"), api_client)
        await ada.goes("/api-keys")
        key = await ada.create_key("laptop")
        async with stack.http(key) as http:

            async def send_prompt() -> None:
                for number in range(REQUESTS // AT_ONCE):
                    body = {"messages": [{"role": "user", "content": f"Say {number}"}], "max_tokens": 5 + number % 20}
                    (await http.post("/v1/chat/completions", json=body)).raise_for_status()

            async with asyncio.TaskGroup() as tasks:
                for _ in range(AT_ONCE):
                    tasks.create_task(send_prompt())
        # The list of first steps would be above the chart.
        await ada.goes("/dashboard")
        await ada.page.click("main button", "Dismiss")
        await ada.goes(PAGE)
        await ada.page.until("document.querySelector('main svg') !== null")
        clip = {"x": 0, "y": 0, "width": WIDTH, "height": HEIGHT, "scale": 1}
        done = await ada.page.send("Page.captureScreenshot", format="png", clip=clip)
        return base64.b64decode(done["data"])


async def make() -> None:
    async with stacks.stack(**SETTINGS) as stack:
        async for _ in output(stack, *WARM_UP):
            pass
        recording = drawn(await record(stack))
        picture = await screenshot(stack)
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "terminal.svg").write_text(recording, encoding="utf-8")
    (FOLDER / "dashboard.png").write_bytes(picture)


if __name__ == "__main__":
    asyncio.run(make())
