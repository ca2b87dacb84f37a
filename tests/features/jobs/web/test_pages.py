"""The page of jobs: what it shows, how a batch begins, and its files."""

import re
from collections.abc import AsyncIterator

import httpx
import pytest
from litestar.exceptions import LitestarException
from litestar.types import ASGIApp

from features.files.contract import FileFacts, FilePurpose
from features.jobs import contract as jobs
from features.jobs.contract import JobState, LineError
from features.jobs.web import job_view
from services.web import request_context
from services.web.http.passthrough import Passthrough
from shared import errors
from tests.features.jobs.web.fake_mesh import ERRORS, INPUT, NOW, OUTPUT, batch
from tests.services.web.browser import SAME_ORIGIN, Browser, forms_of
from tests.services.web.fake_mesh import FakeMesh
from tests.services.web.pages.admin import followed

LINES = b'{"custom_id": "1", "method": "POST", "url": "/v1/embeddings", "body": {}}\n'
ID = batch(0).id


@pytest.fixture
async def alice(mesh: FakeMesh, browser: Browser) -> Browser:
    mesh.add_account("alice", "correct horse")
    mesh.files = [(FileFacts(INPUT, "reviews.jsonl", FilePurpose.BATCH, 3, NOW), b"{}\n")]
    await browser.sign_in("alice", "correct horse")
    return browser


class Gateway:
    """What arrives at the gateway over HTTP."""

    def __init__(self) -> None:
        self.received: list[httpx.Request] = []
        self.answer = httpx.Response(200, json={"id": INPUT})

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        self.received.append(request)
        return self.answer


@pytest.fixture
def gateway_server() -> Gateway:
    return Gateway()


@pytest.fixture
async def gateway(gateway_server: Gateway) -> AsyncIterator[Passthrough]:
    async with httpx.AsyncClient(transport=httpx.MockTransport(gateway_server)) as client:
        yield Passthrough(client, "http://gateway")


async def upload(alice: Browser, content: bytes = LINES, **changes: str) -> httpx.Response:
    fields = forms_of(await alice.get("/jobs"))["/jobs/files"]
    fields.pop("file")
    return await alice.client.post("/jobs/files", data=fields | changes, files={"file": ("in.jsonl", content)}, headers=SAME_ORIGIN)


def test_a_row_says_how_far_and_how_fast() -> None:
    shown = job_view.view(batch(0), NOW)
    assert (shown.name, shown.state, shown.lines, shown.percent) == ("reviews-0.jsonl", "In progress", "600 of 1,000", 60.0)
    assert shown.pace == "3 failed, 1.0 lines/s, 6 min left"
    assert (shown.about, shown.credits) == ("smollm2 · 20 Nov, 13:54 UTC", "0.0123")
    assert (shown.cancel, shown.output, shown.errors) == (f"/jobs/{ID}/cancel", "", "")


@pytest.mark.parametrize(
    ("job", "state", "tone", "reason"),
    [
        (batch(0, waiting="no credits"), "Waiting", "warn", "no credits"),
        (batch(0, JobState.CANCELLING, waiting="the key is revoked"), "Canceling", "warn", "the key is revoked"),
        (batch(0, JobState.CANCELLED), "Canceled", "off", ""),
        (batch(0, JobState.VALIDATING, total=0), "Validating", "", ""),
        (batch(0, JobState.FAILED, errors=(LineError("x", "is no JSON", 1_200),)), "Failed", "bad", "line 1,200: is no JSON"),
        (
            batch(0, JobState.FAILED, errors=(LineError("x", "the file has no lines"),) * 2),
            "Failed",
            "bad",
            "the file has no lines",
        ),
    ],
)
def test_states_in_words(job: jobs.JobFacts, state: str, tone: str, reason: str) -> None:
    shown = job_view.view(job, NOW)
    assert (shown.state, shown.tone, shown.reason) == (state, tone, reason)


async def test_an_upload_is_passed_on_without_the_token(alice: Browser, gateway_server: Gateway) -> None:
    page = await upload(alice, LINES * 10_000)
    assert page.headers["location"] == f"/jobs?done=uploaded&file={INPUT}&endpoint=/v1/embeddings"
    (request,) = gateway_server.received
    assert (request.url.path, request.headers["authorization"].startswith("Bearer ")) == ("/v1/files", True)
    assert int(request.headers["content-length"]) == len(request.content)
    assert b'name="token"' not in request.content
    assert request.content.startswith(b"--" + request.headers["content-type"].partition("boundary=")[2].encode())
    assert b'name="purpose"\r\n\r\nbatch\r\n' in request.content
    assert request.content.count(LINES) == 10_000


async def test_an_upload_without_its_token_or_from_elsewhere_reaches_no_gateway(alice: Browser, gateway_server: Gateway) -> None:
    forged = await upload(alice, token="0" * 32 + "." + "0" * 64)
    assert (forged.status_code, "another browser session" in forged.text) == (403, True)
    page = await alice.client.post("/jobs/files", data={"purpose": "batch"}, files={"file": ("a", b"1")}, headers=SAME_ORIGIN)
    assert page.status_code == 400
    page = await alice.client.post("/jobs/files", data={"token": "x"}, headers=SAME_ORIGIN)
    assert page.status_code == 415
    elsewhere = await alice.client.post("/jobs/files", files={"file": ("a", b"1")}, headers={"Sec-Fetch-Site": "cross-site"})
    assert elsewhere.status_code == 403
    assert gateway_server.received == []


async def test_refusals_of_the_gateway_are_on_the_page(alice: Browser, gateway_server: Gateway) -> None:
    problem = {"error": {"message": "your files have 5 bytes", "code": "x", "aimesh_code": "not_allowed", "hint": "delete some"}}
    gateway_server.answer = httpx.Response(403, json=problem)
    page = await upload(alice)
    assert (page.status_code, "Your files have 5 bytes." in page.text) == (403, True)
    gateway_server.answer = httpx.Response(502, text="<html>")
    assert (await upload(alice)).status_code == 503


async def test_a_gateway_that_is_away_is_on_the_page(alice: Browser, site: request_context.App) -> None:
    async with httpx.AsyncClient() as client:
        object.__setattr__(site, "gateway", Passthrough(client, "http://127.0.0.1:1"))
        page = await upload(alice)
    assert (page.status_code, "the gateway is not responding" in page.text.lower()) == (503, True)


async def test_a_batch_begins_once_from_an_uploaded_file(alice: Browser, mesh: FakeMesh) -> None:
    page = await alice.get(f"/jobs?file={INPUT}&endpoint=/v1/embeddings")
    assert "<option selected>/v1/embeddings</option>" in page.text
    chosen = {"file": INPUT, "endpoint": "/v1/embeddings", "window": "1h"}
    for _ in range(2):
        answer = await alice.submit(page, "/jobs", **chosen)
        assert answer.headers["location"] == "/jobs?done=started"
    first, second = (call.request for call in mesh.calls if call.method == "gateway.createBatch")
    assert isinstance(first, jobs.CreateBatch)
    assert (first, len(first.idempotency_key or "")) == (second, 32)
    assert (first.metadata, first.window) == ({"file": "reviews.jsonl"}, "1h")
    wrong = await alice.submit(page, "/jobs", **{**chosen, "endpoint": "/v1/files"})
    assert (wrong.status_code, "Invalid enum value" in wrong.text) == (400, True)
    gone = await alice.submit(page, "/jobs", **{**chosen, "file": OUTPUT})
    assert (gone.status_code, "There is no such file." in gone.text) == (404, True)


async def test_jobs_are_listed_live_and_stopped(alice: Browser, mesh: FakeMesh, app: ASGIApp) -> None:
    assert "No jobs yet." in (await alice.get("/jobs")).text
    mesh.jobs = [batch(0), batch(1, JobState.COMPLETED, output_file=OUTPUT, error_file=ERRORS)]
    page = await alice.get("/jobs")
    assert f'action="/jobs/{ID}/cancel"' in page.text
    assert f'href="/jobs/{batch(1).id}/output"' in page.text
    values = await followed.first_event(app, "/live/jobs", "alice")
    named = set(re.findall(r'data-live="([a-z_]+)"', page.text.split('data-live-list="jobs"')[1].split("</tbody>")[0]))
    assert named <= set(values["jobs"][0])
    assert [row["lines"] for row in values["jobs"]] == ["600 of 1,000", "600 of 1,000"]
    answer = await alice.submit(page, f"/jobs/{ID}/cancel")
    assert (answer.headers["location"], mesh.jobs[0].state) == ("/jobs?done=cancelled", JobState.CANCELLING)


async def test_older_jobs_are_on_later_pages(alice: Browser, mesh: FakeMesh) -> None:
    mesh.jobs = [batch(0)] * 50 + [batch(1)]
    first = await alice.get("/jobs")
    assert (f'href="/jobs?after={ID}"' in first.text, "/live/jobs" in first.text) == (True, True)
    mesh.jobs = [batch(0), batch(1)]
    later = await alice.get(f"/jobs?after={ID}")
    assert ("reviews-1" in later.text, "reviews-0" in later.text, "/live/jobs" in later.text) == (True, False, False)


async def test_a_refused_file_shows_its_lines(alice: Browser, mesh: FakeMesh) -> None:
    mesh.jobs = [batch(0, JobState.FAILED, total=0, errors=(LineError("x", "<b> is no JSON", 7), LineError("y", "is twice", 9)))]
    page = (await alice.get(f"/jobs/{ID}")).text
    assert "Line 7: &lt;b&gt; is no JSON." in page
    assert "Line 9: is twice." in page
    assert (await alice.get(f"/jobs/{batch(1).id}")).status_code == 404


async def test_files_of_a_job_are_downloaded_whole_or_not(alice: Browser, mesh: FakeMesh) -> None:
    output = FileFacts(OUTPUT, "x", FilePurpose.BATCH_OUTPUT, 9, NOW)
    mesh.files.append((output, b"{}\n" * 3))
    mesh.jobs = [batch(0, JobState.COMPLETED, output_file=OUTPUT)]
    found = await alice.get(f"/jobs/{ID}/output")
    assert (found.content, found.headers["content-disposition"]) == (b"{}\n" * 3, f'attachment; filename="{ID}-output.jsonl"')
    assert (await alice.get(f"/jobs/{ID}/input")).content == b"{}\n"
    for kind in ("errors", "token"):
        assert (await alice.get(f"/jobs/{ID}/{kind}")).status_code == 404
    mesh.files[1] = (output, b"{}\n")
    with pytest.raises(LitestarException):
        await alice.get(f"/jobs/{ID}/output")


async def test_a_gateway_without_answer_is_said(alice: Browser, mesh: FakeMesh) -> None:
    mesh.broken["gateway"] = errors.Unavailable("the gateway is away")
    page = await alice.get("/jobs")
    assert (page.status_code, "The gateway is away." in page.text) == (503, True)
