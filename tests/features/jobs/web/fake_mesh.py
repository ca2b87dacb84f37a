"""Jobs as the gateway keeps them."""

from datetime import UTC, datetime, timedelta

from msgspec.structs import replace

from features.jobs import contract as jobs
from features.jobs.contract import JobFacts, JobKind, JobState
from shared import errors
from shared.types import Credential, MicroCredits, ModelName

NOW = datetime(2026, 11, 20, 14, 5, tzinfo=UTC)
INPUT, OUTPUT, ERRORS = (f"file-{letter * 26}" for letter in "abc")


def batch(number: int, state: JobState = JobState.IN_PROGRESS, **changes: object) -> JobFacts:
    """A batch that began ten minutes ago; 600 of its 1,000 lines have ended."""
    name = f"batch_{'abcdefghij'[number] * 26}"
    running = JobFacts(
        name, JobKind.BATCH, "/v1/chat/completions", state, NOW - timedelta(minutes=11), NOW + timedelta(hours=23),
        model=ModelName("smollm2"), total=1_000, done=597, failed=3, cost_micro=MicroCredits(12_300), input_file=INPUT,
        metadata={"file": f"reviews-{number}.jsonl"}, in_progress_at=NOW - timedelta(minutes=10),
    )  # fmt: skip
    return replace(running, **changes)


class FakeJobs:
    def __init__(self) -> None:
        super().__init__()
        #: The newest first, and how many a page of them has.
        self.jobs: list[JobFacts] = []
        self.most_jobs = 100

    def _list_jobs(self, request: jobs.ListJobs, _: Credential | None) -> jobs.Jobs:
        ids = [job.id for job in self.jobs]
        rest = self.jobs[ids.index(request.after) + 1 :] if request.after else self.jobs
        most = min(request.limit, self.most_jobs)
        return jobs.Jobs(tuple(rest[:most]), has_more=len(rest) > most)

    def _get_job(self, request: jobs.GetJob, _: Credential | None) -> JobFacts:
        for job in self.jobs:
            if job.id == request.id:
                return job
        raise errors.NotFound("there is no such job")

    def _cancel_job(self, request: jobs.CancelJob, _: Credential | None) -> JobFacts:
        found = replace(self._get_job(jobs.GetJob(request.id), _), state=JobState.CANCELLING)
        self.jobs = [found if job.id == request.id else job for job in self.jobs]
        return found

    def _create_batch(self, request: jobs.CreateBatch, _: Credential | None) -> JobFacts:
        made = batch(len(self.jobs), JobState.VALIDATING, total=0, metadata=request.metadata, endpoint=request.endpoint)
        self.jobs.insert(0, made)
        return made


FAKE = FakeJobs
