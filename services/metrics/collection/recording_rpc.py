"""Handle the RPC methods that record metrics."""

from datetime import UTC, datetime

from services.metrics.collection.recorded_metrics import MetricReporter, RecordedMetricSet
from shared import errors
from shared.api import metrics as api
from shared.api.gateway import Check
from shared.api.method import Nothing
from shared.rpc import RpcCall, serves
from shared.telemetry import logs
from shared.telemetry.instrument import node_label
from shared.types import SERVICE_NAMES

#: Truncates errors in the log, because they can quote what was sent.
_MAX_LOGGED = 200

_log = logs.get(part="recorded")


class RecordingRpc:
    def __init__(self, recorded: RecordedMetricSet) -> None:
        self._recorded = recorded
        self._has_warned = False

    def check(self) -> Check:
        """Check whether series were rejected for lack of room."""
        refused, first = self._recorded.refused, self._recorded.first_refused
        detail = f"{refused} recorded series rejected, the first was {first}: their labels have too many values" if refused else ""
        return Check("recorded metrics", ok=not refused, detail=detail, needed=False)

    @serves(api.record_metric)
    async def record_metric(self, request: api.RecordMetric, call: RpcCall) -> Nothing:
        reporter, now = _find_reporter(call), datetime.now(UTC)
        try:
            self._recorded.record(request, reporter, now)
        except errors.BadRequest as error:
            self._log_refusal(reporter, 1, error.message, now)
            raise
        return Nothing()

    @serves(api.record_metrics)
    async def record_metrics(self, request: api.RecordMetrics, call: RpcCall) -> api.RecordedMetrics:
        reporter, now = _find_reporter(call), datetime.now(UTC)
        batch = self._recorded.record_all(request.samples, reporter, now)
        if batch.refused:
            self._log_refusal(reporter, batch.refused, batch.problems[0], now)
        return batch

    def _log_refusal(self, reporter: MetricReporter, samples: int, problem: str, now: datetime) -> None:
        """Log rejected samples once per caller, because callers keep sending them."""
        service, node = reporter
        if self._recorded.refusals.note(node, samples, problem, now):
            _log.warning("recorded metrics rejected", by=f"{service} {node}", samples=samples, problem=problem[:_MAX_LOGGED])
        if self._recorded.refused and not self._has_warned:
            self._has_warned = True
            _log.warning("recorded metrics are full", first=self._recorded.first_refused)


def _find_reporter(call: RpcCall) -> MetricReporter:
    """Return the labels of the caller. An operator has a role but no service name."""
    return SERVICE_NAMES.get(call.caller.role, str(call.caller.role)), node_label(call.caller.node)
