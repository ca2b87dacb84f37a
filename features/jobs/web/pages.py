"""Jobs: how far they are, their files, and how a batch begins from an uploaded file."""

import asyncio
import re
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import ClassVar, get_args
from urllib.parse import urlencode
from uuid import uuid4

import msgspec
from litestar import get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery
from litestar.response import Stream

from features.files import contract as files
from features.files.contract import FileFacts, FilePurpose
from features.files.web import stored_files
from features.jobs import contract as api
from features.jobs import lists
from features.jobs.contract import BatchEndpoint, BatchWindow, JobFacts
from features.jobs.feature import PAGE_OF_FILES
from features.jobs.web.job_view import JobView, view
from services.web import live_updates
from services.web.http import downloads, forms
from services.web.http.event_response import EventResponse
from services.web.request_context import PAGE_CALL_SECONDS, Page, PageRequest
from shared import body_limits, errors
from shared.lists.columns import Listing

_MAX_JOBS = 50
#: 200 MB at 0.5 Mbit/s.
_UPLOAD_SECONDS = 3600.0
#: Where the first line says what it calls.
_URL = re.compile(rb'"url"\s*:\s*"(/v1/[a-z/]{1,40})"')
_DONE = {"started": "Batch started.", "cancelled": "The batch is being stopped.", "uploaded": "File uploaded. Start its batch below."}


class BatchForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    file: str
    endpoint: BatchEndpoint
    window: BatchWindow
    #: Two clicks start one batch.
    once: str


class _Uploaded(msgspec.Struct):
    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobsPage:
    jobs: tuple[JobView, ...]
    #: Uploaded input of batches, the newest first.
    files: tuple[FileFacts, ...]
    chosen_file: str
    chosen_endpoint: str
    once: str
    older: str
    is_later_page: bool
    blank: ClassVar[JobView] = JobView()
    endpoints: ClassVar[tuple[str, ...]] = get_args(BatchEndpoint)
    windows: ClassVar[tuple[str, ...]] = get_args(BatchWindow)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPage:
    job: JobFacts
    row: JobView
    refusals: tuple[str, ...]
    listing: ClassVar[Listing[JobFacts]] = lists.JOBS


async def read_own(page_request: PageRequest, _now: datetime) -> bytes:
    """Return what there is to say of each job. Its requests and answers are in files, and the answer of a single one at its address."""
    found = await page_request.call(api.list_jobs, api.ListJobs())
    listed = found.jobs
    while found.has_more:
        found = await page_request.call(api.list_jobs, api.ListJobs(after=listed[-1].id))
        listed += found.jobs
    return msgspec.json.format(msgspec.json.encode(listed), indent=2)


@get("/jobs")
async def show_jobs(
    page_request: NamedDependency[PageRequest], after: FromQuery[str] = "", file: FromQuery[str] = "", endpoint: FromQuery[str] = ""
) -> Page:
    return await _show(page_request, after=after, file=file, endpoint=endpoint)


@get("/live/jobs")
async def follow_jobs(page_request: NamedDependency[PageRequest]) -> EventResponse:
    async def read() -> live_updates.Values:
        found = await page_request.call(api.list_jobs, api.ListJobs(limit=_MAX_JOBS))
        return {"jobs": [asdict(view(job, page_request.app.now())) for job in found.jobs], "none": not found.jobs}

    return page_request.follow(read)


@get("/jobs/{job_id:str}")
async def show_job(page_request: NamedDependency[PageRequest], job_id: FromPath[str]) -> Page:
    job = await page_request.call(api.get_job, api.GetJob(job_id))
    refusals = tuple(lists.refusal(job, number) for number in range(len(job.errors)))
    return page_request.page("jobs/job.html", JobPage(job=job, row=view(job, page_request.app.now()), refusals=refusals))


@get("/jobs/{job_id:str}/{kind:str}")
async def download(page_request: NamedDependency[PageRequest], job_id: FromPath[str], kind: FromPath[str]) -> Stream:
    job = await page_request.call(api.get_job, api.GetJob(job_id))
    file = {"input": job.input_file, "output": job.output_file, "errors": job.error_file}.get(kind)
    if file is None:
        raise errors.NotFound(f"this job has no {kind[:20]}", hint="reload the page: its files are there at its end")
    facts = await page_request.call(files.get_file, files.GetFile(file))
    return await downloads.stream(stored_files.read(page_request, facts), f"{job.id}-{kind}.jsonl", "application/jsonl")


@post("/jobs/{job_id:str}/cancel")
async def cancel(page_request: NamedDependency[PageRequest], job_id: FromPath[str]) -> Page:
    await page_request.read_form(forms.Confirmation)
    await page_request.submit(api.cancel_job, api.CancelJob(job_id))
    return page_request.redirect("/jobs?done=cancelled")


@post("/jobs")
async def start(page_request: NamedDependency[PageRequest]) -> Page:
    form = await page_request.read_form(BatchForm)
    try:
        file = await page_request.submit(files.get_file, files.GetFile(form.file))
        request = api.CreateBatch(file.id, form.endpoint, form.window, {lists.FILE_NAME: file.name}, form.once)
        await page_request.submit(api.create_batch, request)
    except errors.CallerError as error:
        return await _show(page_request, file=form.file, endpoint=form.endpoint, problem=error)
    return page_request.redirect("/jobs?done=started")


@post(PAGE_OF_FILES, request_max_body_size=body_limits.LARGE_BYTES[PAGE_OF_FILES])
async def upload(page_request: NamedDependency[PageRequest]) -> Page:
    """Pass a form with a file on to the gateway as it arrives."""
    refusal = errors.Overloaded("you have too many uploads", hint="wait until one ends", retry_after_seconds=5)
    try:
        with page_request.app.uploads.one_more(str(page_request.person.user.id), refusal):
            async with asyncio.timeout(_UPLOAD_SECONDS):
                form = await page_request.read_upload()
                answer = await page_request.app.gateway.post("/v1/files", page_request.person.access_token, form)
    except (errors.CallerError, errors.PeerError) as error:
        return await _show(page_request, problem=error)
    found = _URL.search(form.begin)
    query = {"done": "uploaded", "file": msgspec.json.decode(answer, type=_Uploaded).id, "endpoint": found[1].decode() if found else ""}
    return page_request.redirect(f"/jobs?{urlencode(query, safe='/')}")


async def _show(
    page_request: PageRequest, *, after: str = "", file: str = "", endpoint: str = "", problem: errors.AimeshError | None = None
) -> Page:
    wanted = files.ListFiles(FilePurpose.BATCH, limit=_MAX_JOBS)
    try:
        found, uploaded = await asyncio.gather(
            page_request.call(api.list_jobs, api.ListJobs(after=after or None, limit=_MAX_JOBS)),
            page_request.call(files.list_files, wanted, deadline_seconds=PAGE_CALL_SECONDS),
        )
    except errors.PeerError as error:
        found, uploaded, problem = api.Jobs(()), files.Files(()), problem or error
    shown = JobsPage(
        jobs=tuple(view(job, page_request.app.now()) for job in found.jobs),
        files=uploaded.files,
        chosen_file=file,
        chosen_endpoint=endpoint,
        once=uuid4().hex,
        older=f"/jobs?after={found.jobs[-1].id}" if found.has_more else "",
        is_later_page=bool(after),
    )
    return page_request.page("jobs/jobs.html", shown, problem=problem, notices=_DONE)
