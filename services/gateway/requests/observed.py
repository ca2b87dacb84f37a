"""Tells metrics and other services what a row says about a request that has ended."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from services.gateway.billing import route_metrics
from services.gateway.billing.route_metrics import RouteCounters
from services.gateway.facts.request_record import RequestRow
from services.gateway.requests.run import Run
from shared.api import events
from shared.api.auth import Principal
from shared.telemetry import Metrics, logs
from shared.telemetry.answer_metrics import GatewayAnswers, MeasuredAnswer

#: Called when a request that says something about a rollout ends, with what stays at its target.
OnCompared = Callable[[RequestRow, bytes], object]
#: Called when a request ends that guardrails have looked at, with the seconds that they took.
OnGuarded = Callable[[RequestRow, Principal, float], object]

_log = logs.get(part="runs")


def _ignore(*_: object) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestObservers:
    publish: Callable[[events.Event], object]
    on_compared: OnCompared = _ignore
    on_guarded: OnGuarded = _ignore


class EndedRequests:
    def __init__(self, metrics: Metrics, observers: RequestObservers) -> None:
        self._metrics, self._observers = metrics, observers
        self._answers = GatewayAnswers(metrics)
        self.routes = RouteCounters(metrics)

    def ended(self, row: RequestRow, run: Run) -> None:
        # Operators search the log by request id; the caller's identity is only in the row.
        _log.info(
            "request ended", status=row.status, error_code=row.error_code, model=row.model_used, milliseconds=row.response_time_ms,
            prompt_tokens=row.prompt_tokens, completion_tokens=row.completion_tokens,
        )  # fmt: skip
        answer, first_text, metrics = run.answer, run.first_text_seconds, self._metrics
        measured = MeasuredAnswer(
            operation=run.operation,
            method=run.method,
            model=row.model_used,
            seconds=row.response_time_ms / 1000,
            first_text_seconds=first_text,
            input_tokens=row.prompt_tokens,
            output_tokens=row.completion_tokens,
            reasoning_tokens=run.usage.reasoning_tokens,
            at_once=1 if answer is None else answer.at_once,
            chunks=0 if answer is None else answer.at.pieces,
            error=row.error_code or "",
        )
        self._answers.ended(measured, asked=bool(run.admission.held.prices) and not row.cached)
        if row.cost_micro and row.model_used is not None:
            metrics.cost.labels(self._answers.label_of(row.model_used)).inc(row.cost_micro)
        if row.error_code is not None and first_text is not None and not (answer is not None and answer.is_complete):
            metrics.streams_aborted.labels(reason=route_metrics.label_of(row.error_code)).inc()
        if row.route is not None or row.spending:
            self.routes.count_end(row, first_text)
        if row.route is not None and row.route.is_compared and run.plan is not None:
            self._observers.on_compared(row, run.plan.choice.unit)
        guard_seconds = run.admission.guard_seconds + (0.0 if answer is None else answer.guard_seconds)
        if row.guard or guard_seconds:
            self._observers.on_guarded(row, run.principal, guard_seconds)
        ended = events.RequestCompleted(
            at=datetime.now(UTC),
            request_id=row.id,
            user_id=row.user_id,
            model=row.model_used,
            status=row.status,
            tokens=row.tokens_used,
            duration_ms=row.response_time_ms,
        )
        self._observers.publish(ended)
