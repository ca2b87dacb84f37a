import asyncio
import csv
import io
import re
from collections.abc import AsyncGenerator
from datetime import timedelta

import httpx
import pytest
from litestar.types import ASGIApp

from services.web.pages import requests
from shared import errors
from shared.api.usage_report import ListRequests, LoggedRequests
from shared.types import RequestStatus
from tests.services.web import servers
from tests.services.web.browser import Browser
from tests.services.web.fake_mesh import NOW, FakeMesh
from tests.services.web.fake_usage import key_of

AWAY = errors.NotReachable("no node of that role is alive", hint="see `aicli stack status`")


@pytest.fixture
async def alice(mesh: FakeMesh, browser: Browser) -> Browser:
    """A browser in which alice is signed in."""
    mesh.add_account("alice", "correct horse")
    await browser.sign_in("alice", "correct horse")
    mesh.calls.clear()
    return browser


def ids(page: httpx.Response) -> list[int]:
    """Return the ids of the rows as the numbers that the fake mesh assigned."""
    return [int(found.replace("-", ""), 16) for found in re.findall(r'<code class="under id">([0-9a-f-]{36})</code>', page.text)]


def rows(answer: httpx.Response) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(answer.text, newline="")))


def sent_request(mesh: FakeMesh) -> ListRequests:
    (found,) = [each.request for each in mesh.calls if isinstance(each.request, ListRequests)]
    return found


async def test_each_request_shows_its_outcome_and_advice(alice: Browser, mesh: FakeMesh) -> None:
    key = mesh.add_key(mesh.accounts["alice"].user, "laptop")
    mesh.log(NOW - timedelta(minutes=1), key_id=key.id, rating=1, cached=True)
    mesh.log(NOW, RequestStatus.LIMITED, "rate_limited")
    page = await alice.get("/requests")
    assert page.status_code == 200
    assert ids(page) == [2, 1]
    for text in (
        "20 Nov 2026, 14:04:00", '<bdi class="under two-lines">laptop</bdi>', "Signed-in session", "cached", "1,200 in, 34 out", "1.2 s",
        'data-state="good">Good</span>', "Rate limited", "<summary><code>rate_limited</code></summary>",
        "<code>retry_after_seconds</code> says when to retry.", "<strong>Wait for the time in Retry-After",
    ):  # fmt: skip
        assert text in page.text, text
    assert "Prompts and answers are never stored" in page.text


async def test_without_requests_the_page_links_to_the_playground(alice: Browser) -> None:
    page = await alice.get("/requests")
    assert 'No requests yet. Try a model in the <a href="/playground">' in page.text
    assert "<table" not in page.text


async def test_filters_are_sent_and_kept_in_the_form(alice: Browser, mesh: FakeMesh) -> None:
    key = mesh.add_key(mesh.accounts["alice"].user, "laptop")
    mesh.log(NOW, RequestStatus.ERROR, "worker_lost", model="big", key_id=key.id)
    mesh.log(NOW, RequestStatus.ERROR, "worker_lost", model="other", key_id=key.id)
    page = await alice.get(f"/requests?status=error&model=big&key={key.id}")
    assert ids(page) == [1]
    assert (sent_request(mesh).status, sent_request(mesh).model, sent_request(mesh).key_id) == (RequestStatus.ERROR, "big", key.id)
    assert '<option value="error" selected>' in page.text
    assert 'name="model" value="big"' in page.text
    assert f'<option value="{key.id}" selected>laptop</option>' in page.text
    assert f'href="/requests.csv?status=error&amp;model=big&amp;key={key.id}">Export CSV' in page.text


async def test_filter_without_matches_can_be_cleared(alice: Browser, mesh: FakeMesh) -> None:
    mesh.log(NOW)
    page = await alice.get("/requests?status=timeout")
    assert 'No matching requests. <a href="/requests">Show all</a>' in page.text


async def test_pages_of_the_log_keep_the_filters(alice: Browser, mesh: FakeMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "ROWS_OF_A_PAGE", 2)
    for number in range(5):
        mesh.log(NOW - timedelta(minutes=number), model="big")
    page = await alice.get("/requests?model=big")
    assert ids(page) == [1, 2]
    seen = []
    while older := re.search(r'<a href="([^"]+)" rel="next">Older</a>', page.text):
        page = await alice.get(older[1].replace("&amp;", "&"))
        seen.append(ids(page))
        assert '<a href="/requests?model=big">Newest</a>' in page.text
    assert seen == [[3, 4], [5]]


async def test_page_after_the_last_links_back(alice: Browser, mesh: FakeMesh) -> None:
    page = await alice.get("/requests?before=2020-01-01T00:00:00%2B00:00")
    assert "No older requests." in page.text


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("status=nope", "Unknown status."),
        ("status=%3Cscript%3E", "Unknown status."),
        ("key=laptop", "Key is not a key ID."),
        ("before=soon", "Before is not a date such as 2026-02-01."),
        ("before=" + "9" * 300, "Before is not a date such as 2026-02-01."),
    ],
)
async def test_invalid_filters_are_reported_and_kept(alice: Browser, mesh: FakeMesh, query: str, message: str) -> None:
    page = await alice.get(f"/requests?{query}")
    assert page.status_code == 400
    assert message in page.text
    assert "<script>" not in page.text
    assert "gateway.listRequests" not in mesh.called_methods()
    assert "No requests yet" not in page.text


@pytest.mark.parametrize("query", ["model=%00", "model=%ff%fe", "model=" + "x" * 3000, "before=2026-11-20", "model=a&model=b"])
async def test_odd_queries_are_answered(alice: Browser, query: str) -> None:
    assert (await alice.get(f"/requests?{query}")).status_code in (200, 400)


async def test_unavailable_gateway_is_explained(alice: Browser, mesh: FakeMesh) -> None:
    mesh.broken["gateway"] = AWAY
    page = await alice.get("/requests")
    assert page.status_code == 503
    assert "See <code>aicli stack status</code>." in page.text
    assert 'name="status"' in page.text


async def test_without_auth_keys_have_no_names(alice: Browser, mesh: FakeMesh) -> None:
    mesh.log(NOW, key_id=key_of(5))
    mesh.broken["auth.listApiKeys"] = AWAY
    page = await alice.get("/requests")
    assert page.status_code == 200
    assert "Another key (00000000)" in page.text


async def test_deleted_key_can_still_be_filtered(alice: Browser, mesh: FakeMesh) -> None:
    page = await alice.get(f"/requests?key={key_of(5)}")
    assert f'<option value="{key_of(5)}" selected>Another key</option>' in page.text


async def test_hostile_names_are_escaped(alice: Browser, mesh: FakeMesh) -> None:
    name = '<script>alert(1)</script>"\u202e' + "x" * 200
    key = mesh.add_key(mesh.accounts["alice"].user, name)
    mesh.log(NOW, RequestStatus.ERROR, "<img src=x>", model=name, key_id=key.id)
    page = await alice.client.get("/requests", params={"model": name[:60]})
    assert "<script>alert" not in page.text
    page = await alice.get("/requests")
    assert "<script>alert" not in page.text
    assert "<img src=x" not in page.text
    assert "<bdi>&lt;script&gt;alert(1)" in page.text


async def test_csv_export_uses_the_same_filters(alice: Browser, mesh: FakeMesh) -> None:
    key = mesh.add_key(mesh.accounts["alice"].user, "=cmd")
    mesh.log(NOW - timedelta(minutes=2), key_id=key.id, rating=-1)
    mesh.log(NOW - timedelta(minutes=1), RequestStatus.ERROR, "worker_lost")
    mesh.log(NOW, model="other")
    answer = await alice.get("/requests.csv")
    assert answer.headers["content-type"] == "text/csv; header=present; charset=utf-8"
    assert answer.headers["content-disposition"] == 'attachment; filename="aimesh-requests-2026-11-20.csv"'
    found = rows(answer)
    assert [row["model"] for row in found] == ["smollm2", "smollm2", "other"]
    assert (found[0]["key_name"], found[0]["rating"], found[0]["cost_credits"]) == ("'=cmd", "-1", "0.0015")
    assert [row["error_code"] for row in rows(await alice.get("/requests.csv?status=error"))] == ["worker_lost"]
    assert [row["model"] for row in rows(await alice.get("/requests.csv?model=other"))] == ["other"]
    assert [row["key_id"] for row in rows(await alice.get(f"/requests.csv?key={key.id}"))] == [str(key.id)]


class SlowExport:
    """The gateway's stream, which waits after its first rows until released."""

    def __init__(self, mesh: FakeMesh) -> None:
        self._rows = LoggedRequests((mesh.log(NOW),))
        self.goes_on = asyncio.Event()
        self.breaks: errors.AimeshError | None = None
        self.was_closed = asyncio.Event()

    async def __call__(self, *_: object) -> AsyncGenerator[LoggedRequests]:
        try:
            yield self._rows
            await self.goes_on.wait()
            if self.breaks is not None:
                raise self.breaks
            yield self._rows
        finally:
            self.was_closed.set()


async def read_until(lines: AsyncGenerator[str], text: str) -> None:
    async for line in lines:
        if text in line:
            return
    raise AssertionError(f"{text} never came")


@pytest.fixture
async def export(mesh: FakeMesh, monkeypatch: pytest.MonkeyPatch) -> SlowExport:
    mesh.add_account("alice", "correct horse")
    slow = SlowExport(mesh)
    monkeypatch.setattr(mesh, "_export_requests", slow, raising=True)
    return slow


@pytest.mark.parametrize("end", ["goes on", "breaks", "is left"])
async def test_rows_are_streamed_while_the_gateway_reads(app: ASGIApp, export: SlowExport, end: str) -> None:
    async with asyncio.timeout(30), servers.serving(app) as origin, httpx.AsyncClient(base_url=origin) as client:
        await Browser(client).sign_in("alice", "correct horse")
        async with client.stream("GET", "/requests.csv") as answer:
            assert (answer.status_code, "content-length" in answer.headers) == (200, False)
            lines = answer.aiter_lines()
            # The first rows arrive while the gateway is still reading.
            await read_until(lines, "smollm2")
            if end == "goes on":
                export.goes_on.set()
                await read_until(lines, "smollm2")
            if end == "breaks":
                export.breaks = AWAY
                export.goes_on.set()
                # A truncated export must not look complete.
                with pytest.raises(httpx.RemoteProtocolError):
                    await read_until(lines, "smollm2")
        # Reading stops when the client disconnects.
        await export.was_closed.wait()


async def test_empty_export_has_its_header(alice: Browser) -> None:
    answer = await alice.get("/requests.csv")
    assert answer.text.startswith("id,created_at,key_id,key_name,model,status")
    assert rows(answer) == []


@pytest.mark.parametrize(("query", "status"), [("", 503), ("?status=nope", 400)])
async def test_failed_export_is_an_error_page(alice: Browser, mesh: FakeMesh, query: str, status: int) -> None:
    mesh.broken["gateway"] = AWAY
    answer = await alice.get(f"/requests.csv{query}")
    assert answer.status_code == status
    assert answer.headers["content-type"].startswith("text/html")
    assert "content-disposition" not in answer.headers
