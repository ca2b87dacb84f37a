"""Counts what becomes of lines, and measures jobs and lines of the whole mesh."""

from datetime import UTC, datetime

from services.gateway.jobs.job_store import JobStore
from shared.telemetry import Metrics
from shared.telemetry.job_instruments import LineOutcome
from shared.telemetry.metrics_registry import LabelledGauge
from shared.types import ModelName


class JobMetrics:
    def __init__(self, store: JobStore, metrics: Metrics) -> None:
        self._store, self._metrics = store, metrics
        self._jobs = LabelledGauge(lambda: metrics.jobs)
        self._lines = LabelledGauge(lambda: metrics.job_lines)
        self._oldest = LabelledGauge(lambda: metrics.job_oldest)
        self._needed = LabelledGauge(lambda: metrics.job_needed_rate)

    def begin(self, model: ModelName, could_run_at: datetime) -> None:
        """A line begins that could have begun at this time."""
        waited = (datetime.now(UTC) - could_run_at).total_seconds()
        self._metrics.job_line_wait_seconds.labels(model).observe(max(0.0, waited))

    def end(self, model: ModelName, outcome: LineOutcome, *, lines: int = 1, seconds: float | None = None) -> None:
        """``seconds``: for how long it has run, if it has a result."""
        self._metrics.job_lines_ended.labels(model, outcome.value).inc(lines)
        if seconds is not None:
            self._metrics.job_line_run_seconds.labels(model).observe(seconds)

    async def measure(self) -> None:
        """Raises Unavailable; then the gauges stay."""
        self._jobs.show({(each.kind, each.state): each.jobs for each in await self._store.count_open()})
        models = await self._store.measure_models()
        for each in models:
            # So that ``increase`` sees the first one.
            for outcome in LineOutcome:
                self._metrics.job_lines_ended.labels(each.model, outcome.value)
        lines: dict[tuple[str, ...], float] = {(each.model, "queued"): each.queued for each in models}
        self._lines.show(lines | {(each.model, "running"): each.running for each in models})
        self._oldest.show({(each.model,): each.oldest_seconds for each in models})
        self._needed.show({(each.model,): each.needed_per_second for each in models})
