"""The list of jobs, and how far they are in words."""

from datetime import datetime

from features.jobs.contract import JobFacts, JobState
from shared.amounts import written
from shared.lists.columns import Column, Listing, Tone, of_most

#: The entry of a batch's metadata with the name of the file that it was made of.
FILE_NAME = "file"
_TONES = {
    JobState.CANCELLING: Tone.WARN,
    JobState.COMPLETED: Tone.GOOD,
    JobState.FAILED: Tone.BAD,
    JobState.EXPIRED: Tone.BAD,
    JobState.CANCELLED: Tone.OFF,
}


def state(job: JobFacts) -> tuple[str, Tone]:
    if job.waiting and job.state is JobState.IN_PROGRESS:
        return "Waiting", Tone.WARN
    tone = Tone.WARN if job.failed and job.state is JobState.COMPLETED else _TONES.get(job.state, Tone.PLAIN)
    return job.state.replace("_", " ").replace("cancell", "cancel").capitalize(), tone


def ended(job: JobFacts) -> int:
    """Return how many lines have an answer or an error."""
    return job.done + job.failed


def progress(job: JobFacts) -> str | None:
    """Return 512 of 1,000; None until its lines are counted."""
    return of_most(ended(job), job.total) if job.total else None


def seconds_left(job: JobFacts, lines_per_second: float) -> float | None:
    return (job.total - ended(job)) / lines_per_second if lines_per_second and job.state is JobState.IN_PROGRESS else None


def speed(job: JobFacts, now: datetime) -> float:
    """Return the lines per second since its first one began; 0 if it doesn't run."""
    if job.state is not JobState.IN_PROGRESS or job.in_progress_at is None:
        return 0.0
    return ended(job) / max(1.0, (now - job.in_progress_at).total_seconds())


def reason(job: JobFacts) -> str | None:
    """Return why it doesn't move, or what is wrong with its file."""
    return refusal(job, 0) if job.errors else job.waiting


def refusal(job: JobFacts, number: int) -> str:
    """Return what is wrong with a line of its file."""
    error = job.errors[number]
    return error.message if error.line is None else f"line {error.line:,}: {error.message}"


JOBS: Listing[JobFacts] = Listing(
    columns=(
        Column(title="ID", show=lambda job: job.id, is_code=True),
        Column(title="File", show=lambda job: job.metadata.get(FILE_NAME), rank=3, wraps=True),
        Column(title="State", show=lambda job: state(job)[0], tone=lambda job: state(job)[1]),
        Column(title="Lines", show=progress, rank=2, is_number=True),
        Column(
            title="Failed", show=lambda job: job.failed or None, tone=lambda job: Tone.BAD if job.failed else Tone.PLAIN, is_number=True
        ),
        Column(title="Credits", show=lambda job: written(job.cost_micro) if job.cost_micro else None, rank=4, is_number=True),
        Column(title="Model", show=lambda job: job.model, rank=5, wraps=True),
        Column(title="Created", show=lambda job: job.created_at, rank=6, is_day=True),
        Column(title="Reason", show=reason, rank=2, wraps=True, below=True),
    ),
    empty="No batches yet.",
    is_over=lambda job: job.ended_at is not None,
)
