"""The metrics of jobs.

Every gateway reads the gauges from PostgreSQL for the whole mesh, so take the maximum over the gateways.
"""

from enum import StrEnum

from shared.telemetry.instrument import counter, gauge, histogram


class LineOutcome(StrEnum):
    """What became of an attempt to run a line, or of a line that does not run."""

    DONE = "done"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    #: It is tried again.
    REQUEUED = "requeued"
    #: Another gateway had it before, and lost it.
    TAKEN_OVER = "taken_over"


#: A line may wait for the window of its batch, and run for an hour.
_WAIT_SECONDS = (1, 5, 15, 60, 300, 900, 1800, 3600, 7200, 14400, 28800, 57600, 86400)
_RUN_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640, 1280, 3600)

JOBS = gauge("ai_platform_jobs", "Jobs that have not ended, over all gateways", ("kind", "state"))
# Not ``job_lines``: OpenMetrics calls the family of ``job_lines_total`` so.
JOB_LINES = gauge(
    "ai_platform_job_lines_open", "Lines of jobs that have not ended, over all gateways, by state: queued or running", ("model", "state")
)
JOB_OLDEST = gauge(
    "ai_platform_job_oldest_seconds",
    "For how long the oldest line could have run that waits; without jobs that wait for something else, such as credits",
    ("model",),
    unit="seconds",
)
JOB_NEEDED_RATE = gauge(
    "ai_platform_job_needed_lines_per_second",
    "Lines per second that the model must finish so that no job of over 30 minutes expires, of those that nothing else holds up",
    ("model",),
)
JOB_LINES_ENDED = counter(
    "ai_platform_job_lines_total",
    "Lines of jobs by what became of them: done, failed, expired, cancelled, requeued to be tried again, or taken_over from a lost gateway",
    ("model", "result"),
)
JOB_LINE_WAIT_SECONDS = histogram(
    "ai_platform_job_line_wait_seconds",
    "Time from when a line could run until a gateway began it",
    ("model",),
    unit="seconds",
    buckets=_WAIT_SECONDS,
)
JOB_LINE_RUN_SECONDS = histogram(
    "ai_platform_job_line_run_seconds",
    "Time from when a gateway began a line until its result",
    ("model",),
    unit="seconds",
    buckets=_RUN_SECONDS,
)
