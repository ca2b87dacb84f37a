"""How fast the pages are under load, and how much a browser loads for each of them.

    python -m bench.pages [--quick] [--seconds 10] [--json FILE]

The whole stack runs with its echo worker. 50 users sign in with the form and open one page after another, in two ways: with a second on
each page, and without pauses, which shows the throughput of web. The time to the first byte is measured on a kept-alive connection.

The weight of a page includes all files that it loads into a browser with an empty cache: heads and compressed bodies. Visitors and stack
share one machine.
"""

import asyncio
import html
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from urllib.parse import urljoin

import httpx

from bench import report, tenants
from tests import people
from tests.people import Person
from tests.stacks import RunningStack, stack

PAGES = ("/dashboard", "/api-keys", "/usage", "/models", "/playground", "/requests", "/settings")
USERS = 50
#: The time on a page before the next one.
READING_SECONDS = 1.0
#: Answers that each user requests first, so that the pages have content.
ANSWERS = 3
MOST_FIRST_BYTE_MS, MOST_KILOBYTES = 60.0, 150.0
#: For one answer.
PATIENCE_SECONDS = 30.0

_COOKIE = "aimesh_session"
_HEAD_END = b"\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_TOKEN = re.compile(r'name="token" value="([^"]+)"')
#: Matches the scripts, styles and images that a page loads.
_LOADS = re.compile(r'<(?:script|img)\b[^>]*?\bsrc="([^"]+)"|<link\b[^>]*?\brel="(?:stylesheet|icon|modulepreload)"[^>]*?\bhref="([^"]+)"')
#: Matches what a module or a style sheet loads.
_IMPORTS = re.compile(r"""(?:\bfrom|\bimport)\s*\(?\s*["'](\.{0,2}/[^"']+)["']|\burl\(\s*["']?([^"')]+)["']?\s*\)""")


@dataclass(frozen=True, slots=True)
class Seen:
    """One response; times in seconds."""

    status: int
    first_byte: float
    took: float
    #: The bytes of head and body.
    received: int


@dataclass(slots=True)
class Visitor:
    """Requests one page after another on a kept-alive connection."""

    port: int
    #: Whole header lines.
    headers: tuple[str, ...] = ()
    _connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = field(default=None, init=False)

    async def get(self, path: str) -> Seen:
        """Raises TimeoutError, and OSError or EOFError if the connection breaks."""
        if self._connection is None:
            self._connection = await asyncio.open_connection("127.0.0.1", self.port)
        reader, writer = self._connection
        lines = (f"GET {path} HTTP/1.1", "host: 127.0.0.1", *self.headers)
        async with asyncio.timeout(PATIENCE_SECONDS):
            began = time.perf_counter()
            writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
            first = await reader.readexactly(1)
            first_byte = time.perf_counter() - began
            head = first + await reader.readuntil(_HEAD_END)
            body = await _read_body(reader, head)
        return Seen(int(head[9:12]), first_byte, time.perf_counter() - began, len(head) + body)

    def leave(self) -> None:
        if self._connection is not None:
            self._connection[1].close()
            self._connection = None


async def _read_body(reader: asyncio.StreamReader, head: bytes) -> int:
    """Return the size of the body on the wire."""
    if length := _LENGTH.search(head):
        return len(await reader.readexactly(int(length[1])))
    received = 0
    while True:
        line = await reader.readuntil(b"\r\n")
        size = int(line.split(b";")[0], 16)
        received += len(line) + len(await reader.readexactly(size + 2))
        if size == 0:
            return received


@contextmanager
def visitors(port: int, headers: Sequence[tuple[str, ...]]) -> Iterator[list[Visitor]]:
    """Yield a visitor for each set of headers, and close their connections."""
    made = [Visitor(port, each) for each in headers]
    try:
        yield made
    finally:
        for each in made:
            each.leave()


# --- signing in -----------------------------------------------------------------------------------------------------------


async def sign_in(running: RunningStack, person: Person) -> str:
    """Sign in with the form. Return the session's cookie."""
    async with running.http(service="web") as http:
        page = await http.get("/login")
        token = _TOKEN.search(page.text)
        assert token is not None, "the page of /login has no form"
        form = {"name": person.username, "password": person.password, "then": "", "token": html.unescape(token[1])}
        answer = await http.post("/login", data=form)
        assert answer.status_code == 303, f"{answer.status_code} {answer.text[:500]}"
        return f"{_COOKIE}={http.cookies[_COOKIE]}"


async def _settle(running: RunningStack, count: int) -> list[str]:
    """Register users with some usage. Return their cookies."""
    turn = asyncio.Semaphore(tenants.AT_ONCE)
    async with people.api_client(running) as api_client:

        async def one(number: int) -> str:
            async with turn:
                person = await api_client.register(f"visitor{number}")
                async with running.http(person.key.secret) as http:
                    for _ in range(ANSWERS):
                        answer = await http.post("/api/inference", json={"model": "echo", "prompt": "one two three"})
                        assert answer.status_code == 200, answer.text
                return await sign_in(running, person)

        return list(await asyncio.gather(*map(one, range(count))))


# --- speed ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Walked:
    """The responses to all visitors, by page."""

    seen: dict[str, list[Seen]]
    seconds: float

    @property
    def all(self) -> list[Seen]:
        return [one for many in self.seen.values() for one in many]

    def first_byte(self, share: float, page: str | None = None) -> float:
        """Milliseconds."""
        return 1000 * report.percentile([one.first_byte for one in (self.all if page is None else self.seen[page])], share)


async def _walk(port: int, cookies: list[str], pages: tuple[str, ...], seconds: float, *, reading_seconds: float) -> Walked:
    """Send all visitors through all pages; each begins with another page at another time."""
    seen: dict[str, list[Seen]] = {page: [] for page in pages}
    headers: list[tuple[str, ...]] = [(f"cookie: {cookie}", "accept: text/html", "accept-encoding: gzip") for cookie in cookies]
    with visitors(port, headers) as everyone:
        began = time.perf_counter()

        async def walk(number: int, visitor: Visitor) -> None:
            await asyncio.sleep(reading_seconds * number / len(everyone))
            while time.perf_counter() < began + seconds:
                page = pages[number % len(pages)]
                one = await visitor.get(page)
                seen[page].append(one)
                number += 1
                await asyncio.sleep(max(0.0, reading_seconds - one.took))

        async with asyncio.TaskGroup() as tasks:
            for number, visitor in enumerate(everyone):
                tasks.create_task(walk(number, visitor))
    return Walked(seen, time.perf_counter() - began)


def _speed(walked: Walked, crowd: str) -> list[report.Row]:
    rows = []
    for page in walked.seen:
        rows += [report.alone(f"{crowd}: {page}, first byte, p{share}", walked.first_byte(share / 100, page), "ms") for share in (50, 99)]
        rows.append(report.alone(f"{crowd}: {page}, first byte, p95", walked.first_byte(0.95, page), "ms", at_most=MOST_FIRST_BYTE_MS))
    rows.append(report.alone(f"{crowd}: all pages, first byte, p95", walked.first_byte(0.95), "ms", at_most=MOST_FIRST_BYTE_MS))
    rows.append(report.alone(f"{crowd}: pages", len(walked.all) / walked.seconds, "pages/s"))
    rows.append(_other_than_pages(walked, crowd))
    return rows


def _busy(walked: Walked, crowd: str) -> list[report.Row]:
    """Add no target for the latency: without pauses each page waits for 49 others."""
    return [
        report.alone(f"{crowd}: pages", len(walked.all) / walked.seconds, "pages/s"),
        *(report.alone(f"{crowd}: all pages, first byte, p{share}", walked.first_byte(share / 100), "ms") for share in (50, 95, 99)),
        _other_than_pages(walked, crowd),
    ]


def _other_than_pages(walked: Walked, crowd: str) -> report.Row:
    odd = sum(one.status != 200 for one in walked.all)
    return report.alone(f"{crowd}: answers that are no page", odd, "answers", at_most=0)


# --- weight -----------------------------------------------------------------------------------------------------------


def _browser(running: RunningStack, cookie: str) -> httpx.AsyncClient:
    headers = {"cookie": cookie, "accept-encoding": "gzip"}
    return httpx.AsyncClient(base_url=running.url("web"), headers=headers, trust_env=False)


async def _kilobytes(http: httpx.AsyncClient, page: str) -> float:
    """Return the weight of the page and of every file that it loads, imports of modules included."""
    loaded: dict[str, int] = {}
    wanted = [page]
    while wanted:
        path = wanted.pop()
        if path in loaded:
            continue
        answer = await http.get(path)
        assert answer.status_code == 200, f"{page} loads {path}: {answer.status_code}"
        head = sum(len(name) + len(value) + 4 for name, value in answer.headers.raw)
        loaded[path] = len(f"HTTP/1.1 {answer.status_code} {answer.reason_phrase}\r\n") + head + 2 + answer.num_bytes_downloaded
        wanted += [found for found in _loads(path, answer) if not found.startswith("data:")]
    return sum(loaded.values()) / 1000


def _loads(path: str, answer: httpx.Response) -> Iterator[str]:
    kind = answer.headers.get("content-type", "").partition(";")[0]
    pattern = {"text/html": _LOADS, "text/javascript": _IMPORTS, "text/css": _IMPORTS}.get(kind)
    if pattern is None:
        return
    for match in pattern.finditer(answer.text):
        yield urljoin(path, html.unescape(next(filter(None, match.groups()))))


# --- the run ------------------------------------------------------------------------------------------------------------


async def _measure(table: report.Table, seconds: float) -> None:
    table.expect(("reading", "without a pause", "weights"))
    async with AsyncExitStack() as opened:
        running = await opened.enter_async_context(stack(**tenants.UNREACHED, AIMESH_ECHO="1", LOG_LEVEL="warning"))
        cookies = await _settle(running, USERS)
        port = int(running.environment["WEB_SERVICE_PORT"])
        pages, missing = await _which(port, cookies[0])
        await _walk(port, cookies, pages, 1.0, reading_seconds=0.0)  # caches, connections of web
        with table.part("reading") as rows:
            rows.extend(_speed(await _walk(port, cookies, pages, seconds, reading_seconds=READING_SECONDS), f"{USERS} readers"))
        with table.part("without a pause") as rows:
            rows.extend(_busy(await _walk(port, cookies, pages, seconds, reading_seconds=0.0), f"{USERS} without a pause"))
        with table.part("weights") as rows:
            http = await opened.enter_async_context(_browser(running, cookies[0]))
            for page in pages:
                rows.append(report.alone(f"{page} with all its files", await _kilobytes(http, page), "kB", at_most=MOST_KILOBYTES))
            claim = f"pages that are not there{''.join(f' {page}' for page in missing)}"
            rows.append(report.alone(claim, len(missing), "pages", at_most=0))


async def _which(port: int, cookie: str) -> tuple[tuple[str, ...], list[str]]:
    """Return the pages that exist, and those that do not."""
    with visitors(port, [(f"cookie: {cookie}",)]) as (visitor,):
        statuses = {page: (await visitor.get(page)).status for page in PAGES}
    return tuple(page for page in PAGES if statuses[page] == 200), [page for page in PAGES if statuses[page] != 200]


if __name__ == "__main__":
    report.run(__doc__, _measure, limits=(300.0, 180.0), seconds=(10.0, 3.0))
