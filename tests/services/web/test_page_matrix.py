"""Every page as every kind of visitor, compared with the access table. New pages join the matrix automatically."""

import re
from collections.abc import AsyncIterator, Iterator
from itertools import product
from urllib.parse import unquote
from uuid import UUID

import httpx
import msgspec
import pytest
from litestar import Litestar
from litestar.types import ASGIApp

from services.web import application, live_updates, page_access
from services.web.page_access import PageAudience
from shared.api.auth import Step
from shared.types import UserRole
from tests import tiers
from tests.services.web import servers
from tests.services.web.pages.admin.admin_mesh import AdminMesh

VISITOR = "visitor"
ROLES = {role.value: role for role in UserRole}
STEPS = {f"{step} of {role}": (role, step) for step in (Step.ENTER_CODE, Step.SET_UP_MFA) for role in (UserRole.USER, UserRole.ADMIN)}
VISITORS = (VISITOR, *ROLES, *STEPS)
#: Calls that a POST without a form token may make: they read the session and what the error page shows.
READS = re.compile(r"(auth|gateway|metrics)\.(get|list|resume|find|read)[A-Z]\w*")
OF_A_STEP = ("/login/code", "/login/second-factor")
_PARAMETER = re.compile(r"\{(\w+)(?::(\w+))?\}")
_VALUES = {"uuid": str(UUID(int=7)), "int": "7", "path": "x/y.css", "str": "x"}


class Cell(msgspec.Struct, frozen=True):
    verb: str
    path: str
    visitor: str

    def __str__(self) -> str:
        return f"{self.verb} {self.path} by {self.visitor}"


def _filled(pattern: str) -> str:
    return _PARAMETER.sub(lambda found: _VALUES[found[2] or "str"], pattern)


def _cells() -> Iterator[Cell]:
    """Yield a cell per visitor for each declared route; `application.build` isn't needed for their names."""
    for handler in application.ROUTES:
        for path, verb in product(sorted(handler.paths), sorted(handler.http_methods)):
            if verb in ("GET", "POST"):
                yield from (Cell(str(verb), path, visitor) for visitor in VISITORS)


CELLS = tuple(_cells())


def expected(cell: Cell) -> str:
    """Return login, step, forbidden or in."""
    visitor = page_access.find_audience(cell.path)
    if visitor is PageAudience.ANYBODY:
        return "in"
    if cell.visitor == VISITOR:
        return "login"
    if cell.visitor in STEPS:
        return "in" if visitor is PageAudience.HALFWAY else "step"
    allowed = {PageAudience.ADMIN: {UserRole.ADMIN}, PageAudience.NODE_OWNER: {UserRole.ADMIN, UserRole.NODE_OWNER}}.get(
        visitor, set(UserRole)
    )
    return "in" if ROLES[cell.visitor] in allowed else "forbidden"


def outcome(answer: httpx.Response) -> str:
    to = answer.headers.get("location", "").partition("?")[0]
    if answer.status_code == 303 and to in ("/login", *OF_A_STEP):
        return "login" if to == "/login" else "step"
    if answer.status_code == 403 and "can open this page" in answer.text:
        return "forbidden"
    return "in"


@pytest.fixture
def mesh() -> AdminMesh:
    return AdminMesh()


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the pages' streams end immediately."""
    monkeypatch.setattr(live_updates, "_MAX_SECONDS", 0.0)


@pytest.fixture
async def client(app: ASGIApp, at_once: None) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=servers.in_process(app), base_url="http://localhost:3000") as made:
        yield made


def cookie_of(mesh: AdminMesh, visitor: str) -> dict[str, str]:
    if visitor == VISITOR:
        return {}
    role, step = STEPS.get(visitor) or (ROLES[visitor], Step.DONE)
    user = msgspec.structs.replace(mesh.add_account(f"m-{role}", "correct horse"), role=role)
    token = mesh.add_session(user)
    mesh.steps[token] = step
    return {"cookie": f"aimesh_session={token}"}


def test_every_route_is_in_the_matrix(pages: Litestar) -> None:
    assert {route.path for route in pages.routes} == {cell.path for cell in CELLS}
    assert len(CELLS) > 500
    assert {expected(cell) for cell in CELLS} == {"login", "step", "forbidden", "in"}


@pytest.mark.parametrize("visitor", VISITORS)
async def test_access_to_each_page(client: httpx.AsyncClient, mesh: AdminMesh, visitor: str) -> None:
    wrong = []
    for cell in (cell for cell in CELLS if cell.visitor == visitor):
        headers = cookie_of(mesh, visitor) | {"sec-fetch-site": "same-origin"}
        if cell.verb == "POST":
            headers["content-type"] = "application/x-www-form-urlencoded"
        mesh.calls.clear()
        answer = await client.request(cell.verb, _filled(cell.path), headers=headers)
        found = outcome(answer)
        # Public pages redirect signed-in users to their page, and users with an incomplete login to their step.
        goes_on = page_access.find_audience(cell.path) is PageAudience.ANYBODY or (found == "step" and cell.path in OF_A_STEP)
        is_right = found == expected(cell) or goes_on
        acts = [name for name in mesh.called_methods() if not READS.fullmatch(name)]
        if not is_right or answer.status_code >= 500 or (cell.verb == "POST" and (acts or answer.status_code == 200)):
            wrong.append((str(cell), expected(cell), found, answer.status_code, acts))
    assert wrong == []


# --- alternative spellings of a path (T2) ---------------------------------------------------------------------------------

HEADERS: tuple[tuple[bytes, bytes] | None, ...] = (
    None, (b"host", b"127.0.0.1"), (b"host", b"evil.example"), (b"x-forwarded-host", b"localhost"), (b"x-forwarded-for", b"127.0.0.1"),
    (b"x-original-url", b"/login"), (b"x-rewrite-url", b"/login"), (b"x-forwarded-proto", b"https"), (b"forwarded", b"for=127.0.0.1"),
    (b"x-http-method-override", b"GET"),
)  # fmt: skip
ADMIN_PAGES = sorted({cell.path for cell in CELLS if cell.verb == "GET" and page_access.find_audience(cell.path) is PageAudience.ADMIN})


def variants(path: str) -> Iterator[bytes]:
    """Yield alternative spellings of a page's path."""
    head, _, tail = path.rpartition("/")
    encoded = f"{head}/%{ord(tail[0]):02x}{tail[1:]}"
    double = f"{head}/%25{ord(tail[0]):02x}{tail[1:]}"
    yield from (each.encode() for each in (
        path, f"/{path}", f"{path}/", f"{path}//", f"{head}//{tail}", f"{head}/./{tail}", f"{head}/%2e/{tail}", f"{path}/.", f"{path}/%2e",
        f"/login/..{path}", f"/login/%2e%2e{path}", f"/static/..{path}", f"/static/..%2f{path[1:]}", f"/x/../{path[1:]}", f"/./{path[1:]}",
        encoded, double, f"{path}%2f", f"{path}%00", f"{path}%20", f"{path};", f"{path};/login", f"{path};a=b", f"{path}%3b", f"{path}%3f",
        f"{path}%23", path.upper(), path.title(), f"{path}.", f"{path}.html", f"{path}.json", f"{path}?x=/login", f"{path}?/login",
        f"{path}#",
        f"{path}%09", f"{path}%0a", f"\\{path[1:]}", f"/%5c{path[1:]}", f"%2f{path[1:]}", f"http://localhost:3000{path}",
        f"http://evil.example{path}", f"//evil.example{path}", f"{path}/../{tail}", f"{path}/..;/{tail}", f"/;{path}", f"{path}%c0%af",
        f"/api/..{path}", f"/v1/..{path}", f"/docs/..{path}", f"/openapi.json/..{path}", f"{path}*", f"*{path}",
    ))  # fmt: skip


async def status_of(app: ASGIApp, raw: bytes, header: tuple[bytes, bytes] | None, cookie: dict[str, str]) -> tuple[int, bytes]:
    """Send a request like uvicorn, with the raw and the decoded path. Return the status and the body."""
    path, _, query = raw.partition(b"?")
    headers = [(b"host", b"localhost:3000"), *((name.encode(), value.encode()) for name, value in cookie.items())]
    if header is not None:
        headers = [each for each in headers if each[0] != header[0]] + [header]
    scope = {
        "type": "http", "http_version": "1.1", "method": "GET", "scheme": "http", "path": unquote(path.decode()), "raw_path": path,
        "query_string": query, "root_path": "", "headers": headers, "client": ("203.0.113.9", 4711), "server": ("127.0.0.1", 3000),
        "state": {}, "extensions": {},
    }  # fmt: skip
    seen: dict[str, object] = {"status": 0, "body": b""}

    coming: list[dict[str, object]] = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> dict[str, object]:
        return coming.pop() if coming else {"type": "http.disconnect"}

    async def send(message: dict[str, object]) -> None:
        if message["type"] == "http.response.start":
            seen["status"] = message["status"]
        else:
            seen["body"] += message.get("body", b"")  # type: ignore[operator]

    await app(scope, receive, send)  # type: ignore[arg-type]
    return int(str(seen["status"])), bytes(seen["body"])  # type: ignore[arg-type]


@pytest.mark.parametrize("path", ADMIN_PAGES)
async def test_no_alternative_spelling_opens_an_admin_page(app: ASGIApp, mesh: AdminMesh, at_once: None, path: str) -> None:
    user = cookie_of(mesh, UserRole.USER.value)
    filled = _filled(path)
    ways = [(raw, header) for raw in variants(filled) for header in HEADERS]
    assert len(ways) >= 500
    # `make test` tries each spelling on some pages, and the nightly run tries it on all of them.
    step = 1 if tiers.is_nightly() else tiers.FRACTION
    for number, (raw, header) in list(enumerate(ways))[ADMIN_PAGES.index(path) % step :: step]:
        status, body = await status_of(app, raw, header, user if number % 2 else {})
        assert status in {303, 400, 403, 404, 405, 502, 503}, (raw, header, status)
        assert b"Administration" not in body, (raw, header)
    # The administrator can open the page by its normal path.
    status, _ = await status_of(app, filled.encode(), None, cookie_of(mesh, UserRole.ADMIN.value))
    assert status in {200, 404}
