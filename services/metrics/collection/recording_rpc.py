"""Handle the RPC methods that record metrics."""

from datetime import UTC, datetime

from services.metrics.collection.recorded_metrics import RecordedMetricSet, Who
from shared import errors
from shared.api import metrics as api
from shared.api.gateway import Check
from shared.api.method import Nothing
from shared.rpc import RpcCall, serves
from shared.telemetry import logs
from shared.telemetry.instruments import node_label
from shared.types import SERVICE_NAMES

#: Truncates errors in the log, because they can quote what was sent.
_MAX_SAID = 200

_log = logs.get(part="recorded")


class RecordingRpc:
    def __init__(self, recorded: RecordedMetricSet) -> None:
        self._recorded = recorded
        self._has_said = False

    def check(self) -> Check:
        """Check whether series were rejected for lack of room."""
        refused, first = self._recorded.refused, self._recorded.first_refused
        detail = f"{refused} recorded series rejected, the first was {first}: their labels have too many values" if refused else ""
        return Check("recorded metrics", ok=not refused, detail=detail, needed=False)

    @serves(api.record_metric)
    async def record_metric(self, request: api.RecordMetric, call: RpcCall) -> Nothing:
        who, now = _who(call), datetime.now(UTC)
        try:
            self._recorded.record(request, who, now)
        except errors.BadRequest as error:
            self._say_what_is_refused(who, 1, error.message, now)
            raise
        return Nothing()

    @serves(api.record_metrics)
    async def record_metrics(self, request: api.RecordMetrics, call: RpcCall) -> api.RecordedMetrics:
        who, now = _who(call), datetime.now(UTC)
        batch = self._recorded.record_all(request.samples, who, now)
        if batch.refused:
            self._say_what_is_refused(who, batch.refused, batch.problems[0], now)
        return api.RecordedMetrics(batch.taken, batch.refused, batch.problems)

    def _say_what_is_refused(self, who: Who, samples: int, problem: str, now: datetime) -> None:
        """Log rejected samples once per caller, because callers keep sending them."""
        service, node = who
        if self._recorded.refusals.note(node, samples, problem, now):
            _log.warning("recorded metrics rejected", by=f"{service} {node}", samples=samples, problem=problem[:_MAX_SAID])
        if self._recorded.refused and not self._has_said:
            self._has_said = True
            _log.warning("recorded metrics are full", first=self._recorded.first_refused)


def _who(call: RpcCall) -> Who:
    """Return the labels of the caller. An operator has a role but no service name."""
    return SERVICE_NAMES.get(call.caller.role, str(call.caller.role)), node_label(call.caller.node)
