"""Records HTTP requests of known callers that are refused: all in a metric, a few of each key with a log line and a row."""

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta

from services.gateway.billing import route_metrics
from services.gateway.billing.usage_recorder import UsageRecorder
from services.gateway.facts import request_record
from services.gateway.facts.request_record import RequestRow
from services.gateway.limits.quotas import Quotas
from shared import errors, plan_names
from shared.api.auth import Principal
from shared.telemetry import Metrics, logs
from shared.types import RequestId, RequestStatus

_REFUSED = (RequestStatus.REJECTED, RequestStatus.LIMITED)

_log = logs.get(part="http")


class RefusedRequests:
    def __init__(self, recorder: UsageRecorder, quotas: Quotas, metrics: Metrics, now: Callable[[], datetime]) -> None:
        """``now`` is the clock of the rows."""
        self._recorder = recorder
        self._quotas = quotas
        self._counter = metrics.refused_requests
        self._now = now

    async def record(
        self, principal: Principal, request_id: RequestId, method: str, error: errors.AimeshError, *, seconds: float, runs_a_model: bool
    ) -> None:
        """Record a request that ended with ``error`` after so many seconds, if it was refused. The pipeline writes the rows of those that
        reach it, and other requests than those that run a model have none."""
        status = request_record.status_of(error)
        if status not in _REFUSED:
            return
        code = request_record.error_code_of(status, error)
        self._counter.labels(method=method, reason=route_metrics.label_of(code)).inc()
        if request_record.has_row(error) or not await self._quotas.may_leave_row(principal):
            return
        field = request_record.logged_field_of(error)
        # Neither the message, which may quote the caller's text, nor the caller, who is only in the row.
        _log.info("request refused", method=method, error_code=code, error_field=field)
        if not runs_a_model:
            return
        with suppress(errors.Unavailable):
            self._recorder.reserve()
            row = RequestRow(
                id=request_id,
                user_id=principal.user_id,
                team_id=principal.team_id,
                api_key_id=principal.key_id,
                prompt_hash=None,
                model_used=None,
                response_time_ms=round(seconds * 1000),
                prompt_tokens=0,
                completion_tokens=0,
                status=status,
                error_code=code,
                error_field=field,
                created_at=self._now() - timedelta(seconds=seconds),
                plan=plan_names.name_of(principal.tier),
            )
            self._recorder.add(row)
