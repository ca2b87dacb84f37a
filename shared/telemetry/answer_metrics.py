"""Measure every answer once, when it ends, for the platform's metrics and for OpenTelemetry's.

A worker measures what it serves (gen_ai_server_…), a gateway what it requests from workers (gen_ai_client_…). Label values are bounded:
at most ``MAX_MODELS`` models, and errors from a list.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import msgspec

from shared import errors
from shared.telemetry.metrics_registry import Exemplars, Metrics
from shared.telemetry.tracing import error_code
from shared.types import ModelName

#: A worker can claim any model name. Each model has about 200 series, and a service should have at most 10,000.
MAX_MODELS: Final = 50
OTHER: Final = "_OTHER"
PROVIDER: Final = "aimesh"


class ModelLabels:
    """A worker, or a request of a route with a pattern, may have any name, so only so many models have a label."""

    def __init__(self) -> None:
        self._models: set[str] = set()

    def of(self, model: ModelName | None) -> str:
        if model is None or model in self._models:
            return model or ""
        if len(self._models) >= MAX_MODELS:
            return OTHER
        self._models.add(model)
        return model


#: Errors that operators act on. Each adds a histogram per model.
_NAMED_ERRORS: Final = frozenset(
    kind.code
    for kind in (
        errors.BadRequest,
        errors.Cancelled,
        errors.DeadlineExceeded,
        errors.ModelCrashed,
        errors.NotReachable,
        errors.Overloaded,
        errors.Unavailable,
        errors.WorkerLost,
    )
)


class MeasuredAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The measurements of one request to a model, successful or not."""

    #: OpenTelemetry's name: chat or embeddings; ours: rerank and moderation.
    operation: str
    #: The method label of the platform's metrics.
    method: str
    #: None if the request failed before a model was chosen.
    model: ModelName | None
    seconds: float
    #: From the start to the first text; None if there was no text.
    first_text_seconds: float | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    #: The part of ``output_tokens`` that was spent on thoughts.
    reasoning_tokens: int = 0
    #: The number of parallel answers (`n`); ``output_tokens`` is their total.
    at_once: int = 1
    #: The number of streamed chunks; 0 if they were not counted.
    chunks: int = 0
    #: The error code; empty on success.
    error: str = ""

    def seconds_per(self, pieces: int) -> float | None:
        """Return the mean time per token or chunk after the first; None without such pieces or after an error."""
        if self.error or self.first_text_seconds is None or pieces <= self.at_once:
            return None
        # One of the two may be rounded, so the difference can be negative.
        return max(0.0, self.seconds - self.first_text_seconds) * self.at_once / (pieces - self.at_once)


class _Answers:
    """The platform's own metrics, which workers and gateways share."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._exemplars = Exemplars()
        self.label_of = ModelLabels().of

    def _count(self, answer: MeasuredAnswer, model: str, exemplar: dict[str, str] | None) -> None:
        self._metrics.request_duration.labels(self._metrics.service, answer.method, model).observe(answer.seconds, exemplar)
        if not model:
            return
        if answer.input_tokens > 0:
            self._metrics.tokens.labels("input", model).inc(answer.input_tokens)
        if answer.output_tokens > 0:
            self._metrics.tokens.labels("output", model).inc(answer.output_tokens)
        if answer.reasoning_tokens > 0:
            self._metrics.reasoning_tokens.labels(model).inc(answer.reasoning_tokens)
        if answer.first_text_seconds is not None:
            self._metrics.ttft_seconds.labels(model).observe(answer.first_text_seconds, exemplar)


@dataclass(slots=True)
class ServedAnswer:
    """What is known so far of a request that a worker serves."""

    first_text_seconds: float | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    at_once: int = 1
    _started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started


class WorkerAnswers(_Answers):
    """The answers of one worker."""

    def __init__(self, metrics: Metrics, provider: str) -> None:
        """``provider`` is the backend that generates the answers."""
        super().__init__(metrics)
        self._provider = provider

    @contextmanager
    def serving(self, operation: str, method: str, model: ModelName) -> Iterator[ServedAnswer]:
        """Measure one request, including exceptions. Set the attributes before the block ends."""
        served, error = ServedAnswer(), ""
        try:
            yield served
        except BaseException as raised:
            error = error_code(raised)
            raise
        finally:
            self.ended(
                MeasuredAnswer(
                    operation=operation,
                    method=method,
                    model=model,
                    seconds=served.seconds,
                    first_text_seconds=served.first_text_seconds,
                    input_tokens=served.input_tokens,
                    output_tokens=served.output_tokens,
                    at_once=served.at_once,
                    error=error,
                )
            )

    def ended(self, answer: MeasuredAnswer) -> None:
        """Record one request. Call this while ``context.current`` is still the request's."""
        exemplar, model = self._exemplars.of_request(), self.label_of(answer.model)
        self._count(answer, model, exemplar)
        labels = (answer.operation, self._provider, model)
        self._metrics.server_request_duration.labels(*labels, _error_type(answer.error)).observe(answer.seconds, exemplar)
        if answer.first_text_seconds is not None:
            self._metrics.server_time_to_first_token.labels(*labels).observe(answer.first_text_seconds, exemplar)
        if (seconds := answer.seconds_per(answer.output_tokens)) is not None:
            self._metrics.server_time_per_output_token.labels(*labels).observe(seconds, exemplar)


class GatewayAnswers(_Answers):
    """The answers of one gateway."""

    def ended(self, answer: MeasuredAnswer, *, asked: bool) -> None:
        """Record one request. Call this while ``context.current`` is still the request's.

        ``asked`` is false for requests that never reached a worker: rejected ones, and answers from the cache.
        """
        exemplar, model = self._exemplars.of_request(), self.label_of(answer.model)
        self._count(answer, model, exemplar)
        if not asked or not model:
            return
        if (seconds := answer.seconds_per(answer.output_tokens)) is not None:
            self._metrics.inter_token_seconds.labels(model).observe(seconds, exemplar)
        labels = (answer.operation, PROVIDER, model)
        self._metrics.client_operation_duration.labels(*labels, _error_type(answer.error)).observe(answer.seconds, exemplar)
        if answer.input_tokens > 0:
            self._metrics.client_token_usage.labels(*labels, "input").observe(answer.input_tokens, exemplar)
        if answer.output_tokens > 0:
            self._metrics.client_token_usage.labels(*labels, "output").observe(answer.output_tokens, exemplar)
        if answer.first_text_seconds is not None:
            self._metrics.client_time_to_first_chunk.labels(*labels).observe(answer.first_text_seconds, exemplar)
        if (seconds := answer.seconds_per(answer.chunks)) is not None:
            self._metrics.client_time_per_output_chunk.labels(*labels).observe(seconds, exemplar)


def _error_type(code: str) -> str:
    return code if not code or code in _NAMED_ERRORS else OTHER
