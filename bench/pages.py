"""How fast the pages are under load, and how much a browser loads for each of them.

reading  50 users sign in with the form; each opens a page a second, on a kept-alive connection
weights  all files that a page loads into a browser with an empty cache: heads and compressed bodies

The whole stack runs with its echo worker. Visitors and stack share one machine.
"""

import asyncio
import html
import itertools
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from urllib.parse import urljoin

import httpx

from bench import http_load, report, tenants
from bench.http_load import Answer, Load, Spread
from bench.report import Options, Rows
from tests.people import ApiClient
from tests.stacks import RunningStack

PAGES = ("/dashboard", "/api-keys", "/usage", "/models", "/playground", "/requests", "/settings")
USERS = 50

_COOKIE = "aimesh_session"
_TOKEN = re.compile(r'name="token" value="([^"]+)"')
#: Matches the scripts, styles and images that a page loads.
_LOADS = re.compile(r'<(?:script|img)\b[^>]*?\bsrc="([^"]+)"|<link\b[^>]*?\brel="(?:stylesheet|icon|modulepreload)"[^>]*?\bhref="([^"]+)"')
#: Matches what a module or a style sheet loads.
_IMPORTS = re.compile(r"""(?:\bfrom|\bimport)\s*\(?\s*["'](\.{0,2}/[^"']+)["']|\burl\(\s*["']?([^"')]+)["']?\s*\)""")


@dataclass(frozen=True, slots=True)
class Site:
    """The pages of a stack, and the cookies of its signed-in users."""

    running: RunningStack
    cookies: Sequence[str]
    pages: Sequence[str] = PAGES

    async def read(self, seconds: float) -> dict[str, list[Answer]]:
        """Let all users read all pages in turn. Return the answers by page."""
        port, pace = int(self.running.environment["WEB_SERVICE_PORT"]), Spread(int(USERS * seconds / len(self.pages)), seconds)
        headers = [(f"cookie: {cookie}", "accept: text/html", "accept-encoding: gzip") for cookie in self.cookies]
        loads = [
            # Pages are opened one after the other, not all at the same moment.
            Load(port=port, requests=tuple(http_load.get(page, *each) for each in headers), pace=pace, rest_seconds=number / USERS)
            for number, page in enumerate(self.pages)
        ]
        outcomes = await asyncio.gather(*map(http_load.run, loads))
        return {page: list(outcome.answers) for page, outcome in zip(self.pages, outcomes, strict=True)}


async def _settle(running: RunningStack, api_client: ApiClient, number: int) -> str:
    """Register a user, ask for answers so that the pages have content, and sign in. Return the cookie."""
    person = await api_client.register(f"visitor{number}")
    async with running.http(person.key.secret) as http:
        for _ in range(3):
            answer = await http.post("/api/inference", json={"model": "echo", "prompt": "one two three"})
            assert answer.status_code == 200, answer.text
    async with running.http(service="web") as http:
        token = _TOKEN.search((await http.get("/login")).text)
        assert token is not None, "the page of /login has no form"
        form = {"name": person.username, "password": person.password, "then": "", "token": html.unescape(token[1])}
        answer = await http.post("/login", data=form)
        assert answer.status_code == 303, f"{answer.status_code} {answer.text[:500]}"
        return f"{_COOKIE}={http.cookies[_COOKIE]}"


@asynccontextmanager
async def _site(_options: Options) -> AsyncIterator[Site]:
    async with tenants.opened(0) as stack:
        cookies = await tenants.register_each(stack.running, USERS, partial(_settle, stack.running))
        # This also fills the caches, and opens the connections of web.
        seen = await Site(stack.running, cookies).read(len(PAGES))
        yield Site(stack.running, cookies, [page for page, answers in seen.items() if all(each.status == 200 for each in answers)])


async def _measure_reading(rows: Rows, site: Site, options: Options) -> None:
    seen = await site.read(options.seconds)
    answers = list(itertools.chain(*seen.values()))
    for name, some in {**seen, "all pages": answers}.items():
        first_byte = 1000 * report.percentile([answer.first_byte for answer in some], 0.95)
        rows.alone(f"{USERS} readers: {name}, first byte, p95", first_byte, "ms", at_most=60)
    rows.alone(f"{USERS} readers: answers that are no page", sum(answer.status != 200 for answer in answers), "answers", at_most=0)


async def _measure_weights(rows: Rows, site: Site, _options: Options) -> None:
    headers = {"cookie": site.cookies[0], "accept-encoding": "gzip"}
    async with httpx.AsyncClient(base_url=site.running.url("web"), headers=headers, trust_env=False) as http:
        for page in site.pages:
            rows.alone(f"{page} with all its files", await _kilobytes(http, page), "kB", at_most=150)
    missing = [page for page in PAGES if page not in site.pages]
    rows.alone(" ".join(["pages that are not there", *missing]), len(missing), "pages", at_most=0)


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


if __name__ == "__main__":
    parts: dict[str, report.Part] = {"reading": _measure_reading, "weights": _measure_weights}
    report.run(__doc__, parts, limits=(300.0, 180.0), setting=_site, seconds=(10.0, 7.0))
