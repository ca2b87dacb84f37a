"""A small sampled mesh and its clock, for tests of the history tables."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from services.metrics.export import prometheus_merge
from services.metrics.export.prometheus_merge import MetricSource
from services.metrics.history import chart_lines, query_plan, rollup
from services.metrics.history.history_store import HistoryStore
from services.metrics.history.history_writer import HistoryWriter
from shared.api.metrics import GetHistory, HistoryGrouping, HistoryLine
from shared.telemetry import Metrics

BEGIN = datetime(2026, 3, 29, 0, 0, tzinfo=UTC)
KEEPS = {rollup.RAW: timedelta(hours=24), rollup.MINUTE: timedelta(days=7), rollup.HOUR: timedelta(days=730)}


class Mesh:
    """Two workers that generate this many tokens per sample, and the metrics service itself."""

    def __init__(self, workers: Sequence[str] = ("a", "b")) -> None:
        self.now = BEGIN
        self.workers = {node: Metrics("inference") for node in workers}
        self.own = Metrics("metrics")
        self.own.active_users.labels(time_window="1h").set(2)
        self.own.nats_reconnects.inc(0)
        self.keeper = HistoryWriter(self.text, KEEPS, lambda: self.now)

    async def text(self) -> str:
        workers = [MetricSource(one.render(), {"service": "inference", "node": node}) for node, one in self.workers.items()]
        return prometheus_merge.render(
            prometheus_merge.Merger().merge([*workers, MetricSource(self.own.render(), {"service": "metrics", "node": "m"})])
        )

    async def look(self, tokens: int = 30, seconds: float = 15) -> None:
        self.now += timedelta(seconds=seconds)
        for number, worker in enumerate(self.workers.values()):
            worker.tokens.labels(type="output", model="m").inc(tokens)
            worker.queue_depth.labels(model="m").set(number + 1)
            worker.host_cpu.labels("laptop-1").set(0.25 + number / 2)
            worker.round_trip.labels(path="nats").set(0.01 * (number + 1))
            for _ in range(10):
                worker.ttft_seconds.labels(model="m").observe(0.3)
        await self.keeper.look()

    async def drawn(
        self, store: HistoryStore, name: str, *by: HistoryGrouping, since: datetime = BEGIN, step: int = 60, node: str | None = None
    ) -> list[HistoryLine]:
        question = query_plan.read(GetHistory((name,), since, self.now, step, by, node), self.now, KEEPS)
        found = await store.lines(question, by, query_plan.MAX_POINTS)
        return list(chart_lines.draw(question, by, found.points, found.covered))
