"""A mesh that stores files and keeps batches, and ends them when a test says so."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime

import msgspec
from msgspec.structs import replace

from features.files import contract as files
from features.files.contract import FileFacts, FilePurpose
from features.files.gateway.rules.upload_form import UploadForm
from features.jobs import contract as jobs
from features.jobs.contract import JobFacts, JobKind, JobState
from shared import errors
from shared.api import gateway
from shared.api.gateway import HttpPart, HttpRequest
from shared.api.method import Nothing
from tests.cli.fake_mesh import FakeMesh


def identify(prefix: str, number: int) -> str:
    return f"{prefix}{'abcdefghijklmnopqrstuvwxyz'[number] * 26}"


class BatchMesh:
    def __init__(self, mesh: FakeMesh) -> None:
        self.contents: dict[str, bytes] = {}
        self.jobs: dict[str, JobFacts] = {}
        self.keys: dict[str, str] = {}
        self.now = datetime.now(UTC)
        #: Lines that fail, and what becomes of a batch when it is looked at.
        self.failing: set[str] = set()
        self.end_at_look: JobState | None = JobState.COMPLETED
        #: Calls that fail from now on.
        self.away = self.away_after_creation = 0
        #: Lists without what is there.
        self.hidden = 0
        self.created: list[jobs.CreateBatch] = []
        mesh.answer(jobs.create_batch, self._create)
        mesh.answer(jobs.list_jobs, self._list)
        mesh.answer(jobs.get_job, self._get)
        mesh.answer(jobs.cancel_job, lambda request: self.jobs[request.id])
        mesh.answer(files.get_file, lambda request: FileFacts(request.id, "x", FilePurpose.BATCH, len(self.contents[request.id]), self.now))
        mesh.stream_script(gateway.serve_http, self._serve, Nothing())

    def _fail_if_away(self) -> None:
        self.away -= 1
        if self.away >= 0:
            raise errors.Unavailable("the database is away")

    def _create(self, request: jobs.CreateBatch) -> JobFacts:
        self._fail_if_away()
        self.created.append(request)
        assert request.idempotency_key is not None
        made = self.keys.setdefault(request.idempotency_key, identify("batch_", len(self.jobs)))
        if made in self.jobs and self.jobs[made].input_file != request.input_file:
            raise errors.IdempotencyConflict("this idempotency key was used for another job")
        facts = JobFacts(
            made, JobKind.BATCH, request.endpoint, JobState.VALIDATING, self.now, self.now, metadata=request.metadata,
            input_file=request.input_file,
        )  # fmt: skip
        self.away = self.away_after_creation
        return self.jobs.setdefault(made, facts)

    def _list(self, request: jobs.ListJobs) -> jobs.Jobs:
        self._fail_if_away()
        self.hidden -= 1
        if self.hidden >= 0:
            return jobs.Jobs(())
        newest = sorted(self.jobs.values(), key=lambda job: job.id, reverse=True)
        rest = [job for job in newest if request.after is None or job.id < request.after]
        return jobs.Jobs(tuple(rest[:1]), has_more=len(rest) > 1)

    def _get(self, request: jobs.GetJob) -> JobFacts:
        self._fail_if_away()
        job = self.jobs[request.id]
        if self.end_at_look is not None and job.ended_at is None:
            job = self.jobs[job.id] = self._ended(job, self.end_at_look)
        return job

    def _ended(self, job: JobFacts, state: JobState) -> JobFacts:
        assert job.input_file is not None
        ids = [line["custom_id"] for line in map(msgspec.json.decode, self.contents[job.input_file].removeprefix(b"\xef\xbb\xbf").split())]
        if state is JobState.FAILED:
            refused = jobs.LineError("invalid_json_line", "is no JSON", 2), jobs.LineError("duplicate_custom_id", "is twice", 3)
            return replace(job, state=state, ended_at=self.now, errors=refused)
        failed = [each for each in ids if each in self.failing]
        done = [each for each in ids if each not in self.failing]
        return replace(
            job, state=state, ended_at=self.now, total=len(ids), done=len(done), failed=len(failed), cost_micro=1_500,
            output_file=self._write("file-o", job, done), error_file=self._write("file-e", job, failed),
        )  # fmt: skip

    def _write(self, prefix: str, job: JobFacts, ids: list[str]) -> str | None:
        name = f"file-{job.id[-25:]}{prefix[-1]}"
        self.contents[name] = b"".join(b'{"custom_id":"%s"}\n' % each.encode() for each in ids)
        return name if ids else None

    async def _serve(self, request: HttpRequest) -> AsyncIterator[HttpPart]:
        self._fail_if_away()
        if request.verb == "POST":
            form = UploadForm(dict(request.headers)[b"content-type"], ("purpose",))
            name = identify("file-", len(self.contents))
            self.contents[name] = b"".join(form.feed(request.body))
            yield HttpPart(b'{"id": "%s"}' % name.encode(), 200)
        else:
            yield HttpPart(self.contents[request.path.split("/")[3]], 200)


def lines(*names: str, url: str = "/v1/chat/completions") -> bytes:
    return b"".join(b'{"custom_id":"%s","method":"POST","url":"%s","body":{}}\n' % (each.encode(), url.encode()) for each in names)
