"""Names of users and nodes are escaped on every page that shows them. New pages are covered automatically."""

import html
import re
from collections.abc import AsyncIterator
from html.parser import HTMLParser

import httpx
import msgspec
import pytest
from litestar.types import ASGIApp

from services.web import application, page_access
from services.web.page_access import PageAudience
from services.web.settings import WebSettings
from shared.api.auth import Step
from shared.api.gateway import ServedModel
from shared.types import ModelName, UserRole
from tests.acceptance.chromium import Browser as Chrome
from tests.cases import case
from tests.services.web import servers
from tests.services.web.browser import Browser
from tests.services.web.pages.admin import hostile
from tests.services.web.pages.admin.hostile import LONG, NAMES, RTL, HostileMesh, SeededDb

#: Not pages: files, streams, and routes that lead elsewhere.
NO_PAGES = re.compile(r"/static/.*|/live/.*|.*\.csv|/login/oidc/back|/login-link|/login/oidc|/install\..*|/install/.*|/jobs/.*/.*")
#: Pages that show no names, or only the seed of a second factor.
NAMELESS = {"/", "/device", "/forgot", "/reset", "/verify", "/login/second-factor", "/admin/runbooks/{name:str}"}
#: Pages of node owners; administrators have their own.
OF_OWNERS = ("/nodes", "/nodes/tickets")
#: Elements whose content cannot reverse the text around them.
ISOLATING = {"bdi", "textarea", "option", "title"}
#: Browsers reorder text only within a block, so a block is safe if nothing follows the name in it.
BLOCKS = {"td", "th", "dt", "dd", "li", "p", "h1", "h2", "h3", "div", "summary", "caption", "pre", "section", "main", "button"}
#: Allowed link targets; the last one is for the authenticator app, next to the QR code.
OURS = re.compile(r"/(?!/)|[#?]|$|otpauth://totp/")
VOID = {"area", "base", "br", "col", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


@pytest.fixture
def settings(settings: WebSettings) -> WebSettings:
    return msgspec.structs.replace(settings, money="on", pricing_page="on")


def pages() -> list[str]:
    """Return the paths of all pages, from the declared routes."""
    found = {path for handler in application.ROUTES if "GET" in handler.http_methods for path in handler.paths}
    return sorted(path for path in found if not NO_PAGES.fullmatch(path))


def filled(pattern: str, seeded_db: SeededDb) -> str:
    return re.sub(r"\{(\w+):\w+\}", lambda found: seeded_db.paths[found[1]], pattern)


class Shown(HTMLParser):
    """Parses a page like a browser, and collects the places where a name could do harm."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        #: Where the name appears as text or in an attribute.
        self.places: list[str] = []
        self.wrong: list[str] = []
        self._open: list[tuple[str, list[str]]] = [("", [])]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        present = {key: value or "" for key, value in attrs}
        if tag in {"script", "img"} and not present.get("src", "").startswith("/static/"):
            self.wrong.append(f"<{tag}> of its own")
        if tag in {"iframe", "object", "embed", "base", "style"}:
            self.wrong.append(f"<{tag}>")
        self.wrong += [f"{tag} {key}" for key in present if key.startswith("on") or key in {"style", "srcdoc"}]
        for key in {"src", "href", "action", "formaction"} & present.keys():
            if not OURS.match(present[key]):
                self.wrong.append(f"{tag} {key}={present[key]}")
        self.places += [f"{tag} {key}" for key, value in present.items() if self.name in value]
        if tag not in VOID:
            self._open.append((tag, []))

    def handle_endtag(self, tag: str) -> None:
        if tag not in {name for name, _ in self._open}:
            self.wrong.append(f"</{tag}> of nothing")
            return
        while True:
            name, texts = self._open.pop()
            whole = " ".join(texts)
            if name in BLOCKS and RTL in whole and not whole.endswith(RTL):
                self.wrong.append(f"<{name}> is turned around behind the name: {whole!a}")
            if name not in BLOCKS and name not in ISOLATING:
                self._open[-1][1].extend(texts)
            if name == tag:
                return

    def handle_data(self, data: str) -> None:
        if self.name in data:
            self.places.append(f"in {self._open[-1][0]}")
            if self.name != LONG and any(name == "pre" for name, _ in self._open):
                self.wrong.append("it is in code that people paste into a shell")
        if data.strip():
            self._open[-1][1].append(data.strip())


def read(text: str, name: str) -> Shown:
    shown = Shown(name)
    shown.feed(text)
    return shown


@pytest.fixture
def mesh() -> HostileMesh:
    return HostileMesh()


@pytest.fixture
async def client(app: ASGIApp) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=servers.in_process(app), base_url="http://localhost:3000") as made:
        yield made


def become(seeded_db: SeededDb, pattern: str) -> bool:
    """Sign in as far as the page requires. Return False for a page that anyone may open."""
    who = page_access.find_audience(pattern)
    step = Step.SET_UP_MFA if pattern.endswith("second-factor") else Step.ENTER_CODE
    seeded_db.mesh.steps = {seeded_db.session: step if who is PageAudience.HALFWAY else Step.DONE}
    seeded_db.mesh.give_role(seeded_db.session, UserRole.NODE_OWNER if pattern in OF_OWNERS else UserRole.ADMIN)
    return who is not PageAudience.ANYBODY


async def opened(client: httpx.AsyncClient, seeded_db: SeededDb, pattern: str) -> httpx.Response:
    session = f"; aimesh_session={seeded_db.session}" if become(seeded_db, pattern) else ""
    headers = {"cookie": f"aimesh_invitation={hostile.COLLEAGUE}{session}"}
    return await client.get(filled(pattern, seeded_db), headers=headers)


@pytest.mark.parametrize("kind", NAMES)
async def test_names_are_escaped(client: httpx.AsyncClient, mesh: HostileMesh, kind: str) -> None:
    seeded_db = hostile.build(mesh, NAMES[kind])
    for pattern in pages():
        with case(pattern):
            page = await opened(client, seeded_db, pattern)
            assert page.status_code == 200, page.text
            shown = read(page.text, seeded_db.name)
            assert shown.wrong == []
            assert shown.places or pattern in NAMELESS, "it is not even shown"


@pytest.mark.parametrize(
    ("name", "shown"), [("org/big-model+1:q4_0@v2", True), ("x; reboot", False), ("x'y", False), ('x"y', False), ("-x", False)]
)
async def test_model_name_is_quoted_safely_in_code(browser: Browser, mesh: HostileMesh, name: str, shown: bool) -> None:
    mesh.served = (ServedModel(ModelName(name), 1, 512),)
    mesh.add_account("alice", "correct horse")
    await browser.sign_in("alice", "correct horse")
    overview, keys = await browser.get("/dashboard"), await browser.get("/api-keys")
    made = await browser.submit(keys, "/api-keys", name="laptop")
    for page in (overview, made):
        code = "".join(re.findall(r"<pre.*?</pre>", page.text, re.DOTALL))
        assert (html.escape(name) in code, re.search(r"\bMODEL\b", code) is not None, "Replace MODEL with a model’s name" in page.text) == (
            shown,
            not shown,
            not shown,
        )


@pytest.mark.nightly("pages")
@pytest.mark.parametrize(("kind", "width"), [("long", 390), ("long", 1280), ("script", 390), ("rtl", 390)])
async def test_no_name_breaks_a_page(app: ASGIApp, mesh: HostileMesh, chrome: Chrome, kind: str, width: int) -> None:
    seeded_db, wrong = hostile.build(mesh, NAMES[kind]), []
    async with servers.serving(app) as origin:
        page = await chrome.open(width=width)
        for pattern in pages():
            await page.send("Network.clearBrowserCookies")
            if become(seeded_db, pattern):
                await page.send("Network.setCookie", name="aimesh_session", value=seeded_db.session, url=origin)
            await page.goto(f"{origin}{filled(pattern, seeded_db)}")
            await page.evaluate("document.querySelectorAll('main details').forEach(each => { each.open = true })")
            if page.status != 200 or not await page.evaluate("document.documentElement.scrollWidth <= innerWidth"):
                wrong.append(pattern)
        # Problems are policy violations, script errors and dialogs.
        assert (wrong, page.problems) == ([], [])
