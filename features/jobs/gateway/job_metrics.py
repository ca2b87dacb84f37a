"""Counts what becomes of lines, and measures jobs and lines of the whole mesh."""

from datetime import UTC, datetime

from features.jobs import instruments
from features.jobs.gateway.store import JobStore, ModelJobs
from features.jobs.instruments import LineOutcome
from shared.telemetry import Metrics
from shared.telemetry.answer_metrics import ModelLabels
from shared.telemetry.metrics_registry import LabelledGauge
from shared.types import ModelName

#: The label of background work on jobs.
UPKEEP = "jobs"


class JobMetrics:
    def __init__(self, store: JobStore, metrics: Metrics) -> None:
        self._store, self._label_of = store, ModelLabels().of
        self._ended = metrics.counter(instruments.JOB_LINES_ENDED)
        self._wait_seconds = metrics.histogram(instruments.JOB_LINE_WAIT_SECONDS)
        self._run_seconds = metrics.histogram(instruments.JOB_LINE_RUN_SECONDS)
        self._jobs = LabelledGauge(lambda: metrics.gauge(instruments.JOBS))
        self._lines = LabelledGauge(lambda: metrics.gauge(instruments.JOB_LINES))
        self._oldest = LabelledGauge(lambda: metrics.gauge(instruments.JOB_OLDEST))
        self._needed = LabelledGauge(lambda: metrics.gauge(instruments.JOB_NEEDED_RATE))

    def begin(self, model: ModelName, could_run_at: datetime) -> None:
        """A line begins that could have begun at this time."""
        waited = (datetime.now(UTC) - could_run_at).total_seconds()
        self._wait_seconds.labels(self._label_of(model)).observe(max(0.0, waited))

    def end(self, model: ModelName, outcome: LineOutcome, *, lines: int = 1, seconds: float | None = None) -> None:
        """``seconds``: for how long it has run, if it has a result."""
        label = self._label_of(model)
        self._ended.labels(label, outcome.value).inc(lines)
        if seconds is not None:
            self._run_seconds.labels(label).observe(seconds)

    async def measure(self) -> None:
        """Raises Unavailable; then the gauges stay."""
        self._jobs.show({(each.kind, each.state): each.jobs for each in await self._store.count_open()})
        models: dict[str, list[ModelJobs]] = {}
        for found in await self._store.measure_models():
            models.setdefault(self._label_of(found.model), []).append(found)
        lines: dict[tuple[str, ...], float] = {}
        for label, those in models.items():
            lines |= {(label, "queued"): sum(each.queued for each in those), (label, "running"): sum(each.running for each in those)}
            for outcome in LineOutcome:
                # So that ``increase`` sees the first one.
                self._ended.labels(label, outcome.value)
        self._lines.show(lines)
        self._oldest.show({(label,): max(each.oldest_seconds for each in those) for label, those in models.items()})
        self._needed.show({(label,): max(each.needed_per_second for each in those) for label, those in models.items()})
