"""Counts what requests that ended have cost, and the answers that ended under their reader."""

from prometheus_client import Counter

from services.gateway.billing.request_record import RequestRow
from shared import errors
from shared.telemetry import Metrics
from shared.telemetry.answer_metrics import MAX_MODELS, OTHER
from shared.types import ModelName

#: For codes that only a newer peer knows: a peer may say anything, and each would be a series.
OTHER_REASON = "other"


class CompletionCounters:
    """Of one gateway. The series are looked up once and kept: looking labels up costs more than counting."""

    def __init__(self, metrics: Metrics) -> None:
        self._cost = metrics.cost
        self._aborted = metrics.streams_aborted
        self._cost_of: dict[ModelName, Counter] = {}
        self._aborted_for: dict[str, Counter] = {}

    def ended(self, row: RequestRow, *, was_read: bool, complete: bool) -> None:
        """Call it once for each request. ``was_read``: its reader had the beginning of an answer; ``complete``: and could have all."""
        if row.cost_micro and row.model_used is not None:
            self._cost_for(row.model_used).inc(row.cost_micro)
        if was_read and not complete and row.error_code is not None:
            self._aborts_for(row.error_code).inc()

    def _cost_for(self, model: ModelName) -> Counter:
        found = self._cost_of.get(model)
        if found is None:
            # A worker may say that it has any model.
            if len(self._cost_of) >= MAX_MODELS:
                return self._cost.labels(model=OTHER)
            found = self._cost_of[model] = self._cost.labels(model=model)
        return found

    def _aborts_for(self, code: str) -> Counter:
        reason = code if code in errors.BY_CODE else OTHER_REASON
        found = self._aborted_for.get(reason)
        if found is None:
            found = self._aborted_for[reason] = self._aborted.labels(reason=reason)
        return found
