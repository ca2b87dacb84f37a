"""The states of jobs and of their lines, and what changes them. Pure; the SQL follows these tables, and a test compares both."""

from enum import StrEnum

from features.jobs.contract import JobState


class JobEvent(StrEnum):
    #: Every line is well-formed.
    VALIDATED = "validated"
    #: A line is malformed.
    REFUSED = "refused"
    #: Every line has a result.
    ENDED = "ended"
    #: The line of a job that isn't a batch has failed.
    LINE_FAILED = "line_failed"
    #: Somebody cancels it, or its owner may not run it any more.
    CANCEL = "cancel"
    #: Its window has passed.
    EXPIRE = "expire"
    #: While it is being cancelled: no line runs any more.
    STOPPED = "stopped"
    #: Its files are complete.
    WRITTEN = "written"


class LineState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


class LineEvent(StrEnum):
    CLAIM = "claim"
    #: It failed and may be tried again, or its lease was lost.
    REQUEUE = "requeue"
    SUCCEED = "succeed"
    FAIL = "fail"
    EXPIRE = "expire"
    CANCEL = "cancel"


#: What a job becomes; what is not here changes nothing. WRITTEN makes it what it was to become when it began to be finalized.
JOBS: dict[tuple[JobState, JobEvent], JobState] = {
    (JobState.VALIDATING, JobEvent.VALIDATED): JobState.IN_PROGRESS,
    (JobState.VALIDATING, JobEvent.REFUSED): JobState.FAILED,
    (JobState.VALIDATING, JobEvent.CANCEL): JobState.CANCELLING,
    (JobState.VALIDATING, JobEvent.EXPIRE): JobState.FINALIZING,
    (JobState.IN_PROGRESS, JobEvent.ENDED): JobState.FINALIZING,
    (JobState.IN_PROGRESS, JobEvent.LINE_FAILED): JobState.FINALIZING,
    (JobState.IN_PROGRESS, JobEvent.CANCEL): JobState.CANCELLING,
    (JobState.IN_PROGRESS, JobEvent.EXPIRE): JobState.FINALIZING,
    (JobState.CANCELLING, JobEvent.STOPPED): JobState.FINALIZING,
}
#: How a job ends that is finalized after an event.
OUTCOMES: dict[JobEvent, JobState] = {
    JobEvent.ENDED: JobState.COMPLETED,
    JobEvent.LINE_FAILED: JobState.FAILED,
    JobEvent.EXPIRE: JobState.EXPIRED,
    JobEvent.STOPPED: JobState.CANCELLED,
}
LINES: dict[tuple[LineState, LineEvent], LineState] = {
    (LineState.QUEUED, LineEvent.CLAIM): LineState.RUNNING,
    # A claim of a line whose lease is lost.
    (LineState.RUNNING, LineEvent.CLAIM): LineState.RUNNING,
    (LineState.RUNNING, LineEvent.REQUEUE): LineState.QUEUED,
    (LineState.RUNNING, LineEvent.SUCCEED): LineState.DONE,
    (LineState.RUNNING, LineEvent.FAIL): LineState.FAILED,
    # A claim of a line that has lost too many leases.
    (LineState.QUEUED, LineEvent.FAIL): LineState.FAILED,
    (LineState.QUEUED, LineEvent.EXPIRE): LineState.EXPIRED,
    (LineState.RUNNING, LineEvent.EXPIRE): LineState.EXPIRED,
    (LineState.QUEUED, LineEvent.CANCEL): LineState.CANCELLED,
    (LineState.RUNNING, LineEvent.CANCEL): LineState.CANCELLED,
}
#: A line that lost so many leases fails.
MAX_LOST_LEASES = 3
