"""Takes the numbers that others record: the handlers around ``recorded``."""

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

#: Of a problem, in a line of the log; it may quote what was sent.
_MAX_SAID = 200

_log = logs.get(part="recorded")


class RecordingRpc:
    def __init__(self, recorded: RecordedMetricSet) -> None:
        self._recorded = recorded
        self._has_said = False

    def check(self) -> Check:
        """Whether somebody makes more series than there is room for."""
        refused, first = self._recorded.refused, self._recorded.first_refused
        detail = f"{refused} recorded series found no room, the first was {first}: they use labels with too many values" if refused else ""
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
        """Once: those that send go on sending."""
        service, node = who
        if self._recorded.refusals.note(node, samples, problem, now):
            _log.warning("recorded numbers refused", by=f"{service} {node}", samples=samples, problem=problem[:_MAX_SAID])
        if self._recorded.refused and not self._has_said:
            self._has_said = True
            _log.warning("recorded metrics have no room for more series", first=self._recorded.first_refused)


def _who(call: RpcCall) -> Who:
    """An operator is no service of the mesh, and has no metrics of its own."""
    return SERVICE_NAMES.get(call.caller.role, str(call.caller.role)), node_label(call.caller.node)
