"""What the list of jobs shows of one, in words and paths. Pure."""

from dataclasses import dataclass
from datetime import datetime

from features.jobs import lists
from features.jobs.contract import JobFacts, JobState
from shared import amounts


@dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """A row. Its values change while the page is open; paths are empty for what can't be done."""

    id: str = ""
    path: str = ""
    #: The file that it was made of, or what it calls.
    name: str = ""
    about: str = ""
    state: str = ""
    tone: str = ""
    reason: str = ""
    lines: str = ""
    percent: float = 0.0
    #: How many failed, how fast it is, and how long it still takes.
    pace: str = ""
    credits: str = ""
    cancel: str = ""
    question: str = ""
    output: str = ""
    errors: str = ""


def view(job: JobFacts, now: datetime) -> JobView:
    state, tone = lists.state(job)
    path, name = f"/jobs/{job.id}", job.metadata.get(lists.FILE_NAME) or job.endpoint
    can_cancel = job.state in {JobState.VALIDATING, JobState.IN_PROGRESS}
    return JobView(
        id=job.id,
        path=path,
        name=name,
        about=" · ".join(text for text in (job.model, f"{job.created_at:%d %b, %H:%M} UTC") if text),
        state=state,
        tone=tone,
        reason=lists.reason(job) or "",
        lines=lists.progress(job) or "–",
        percent=100 * lists.ended(job) / max(1, job.total),
        pace=", ".join(_pace(job, lists.speed(job, now))),
        credits=amounts.written(job.cost_micro) if job.cost_micro else "–",
        cancel=f"{path}/cancel" if can_cancel else "",
        question=f"Stop {name}? What has an answer keeps it, and is paid." if can_cancel else "",
        output=f"{path}/output" if job.output_file else "",
        errors=f"{path}/errors" if job.error_file else "",
    )


def _pace(job: JobFacts, lines_per_second: float) -> list[str]:
    left = lists.seconds_left(job, lines_per_second)
    failed = [f"{job.failed:,} failed"] if job.failed else []
    return failed if left is None else [*failed, f"{lines_per_second:,.1f} lines/s", f"{amounts.show_duration(left)} left"]
