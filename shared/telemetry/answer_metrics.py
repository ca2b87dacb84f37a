"""What is measured of every answer: once, where it has ended, for the platform's metrics and for OpenTelemetry's alike.

A worker tells what it served (gen_ai_server_…), a gateway what it asked of workers (gen_ai_client_…). The labels are bounded: models
by those that are served and at most ``MAX_MODELS``, errors by a list.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Generic, Self, TypeVar

from prometheus_client import Counter, Histogram

from shared import errors
from shared.telemetry.exemplars import Exemplars
from shared.telemetry.metrics_registry import Metrics
from shared.types import ModelName

#: A worker may say that it has any model; each has some 200 series, and a service is to have 10,000 at most.
MAX_MODELS: Final = 50
#: OpenTelemetry's word for what has no name of its own.
OTHER: Final = "_OTHER"
#: Of a gateway's requests, as in the spans.
PROVIDER: Final = "aimesh"

#: What an operator does something about; each makes a histogram for every model.
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

Family = TypeVar("Family", Counter, Histogram)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredAnswer:
    """How one request for an answer or for vectors went, whether it went well or not."""

    #: As OpenTelemetry names it: chat or embeddings.
    operation: str
    #: As the platform's metrics name it.
    method: str
    #: None where it never came to one.
    model: ModelName | None
    #: From its start to its end.
    seconds: float
    #: From its start to its first text; None where there was none.
    first_text_seconds: float | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    #: Answers that were made side by side; ``output_tokens`` are those of all.
    at_once: int = 1
    #: Pieces that the text came in; 0 where nobody counted them.
    chunks: int = 0
    #: The code of what went wrong; empty where it went well.
    error: str = ""

    @property
    def seconds_per_token(self) -> float | None:
        """Of those after the first; None where there are none, or where it was cut off in the middle."""
        return self._seconds_per(self.output_tokens)

    @property
    def seconds_per_chunk(self) -> float | None:
        """As well."""
        return self._seconds_per(self.chunks)

    def _seconds_per(self, pieces: int) -> float | None:
        if self.error or self.first_text_seconds is None or pieces <= self.at_once:
            return None
        # Never below 0: one of the two may be rounded.
        return max(0.0, self.seconds - self.first_text_seconds) * self.at_once / (pieces - self.at_once)


class _RecordedAnswer(Generic[Family]):
    """The series of a metric, each looked up once: looking labels up costs more than counting."""

    __slots__ = ("_family", "_kept")

    def __init__(self, family: Callable[[], Family]) -> None:
        # Only when something is measured: a node shows no metric that it does not measure.
        self._family: Callable[[], Family] = family
        self._kept: dict[tuple[str, ...], Family] = {}

    def of(self, *labels: str) -> Family:
        found = self._kept.get(labels)
        if found is None:
            found = self._kept[labels] = self._family().labels(*labels)
        return found


class _Answers:
    """The platform's own metrics, which both sides have."""

    def __init__(self, metrics: Metrics) -> None:
        self._service = metrics.service
        self._exemplars = Exemplars()
        self._models: set[str] = set()
        self._duration = _RecordedAnswer(lambda: metrics.request_duration)
        self._tokens = _RecordedAnswer(lambda: metrics.tokens)
        self._first_text = _RecordedAnswer(lambda: metrics.ttft_seconds)

    def _count(self, answer: MeasuredAnswer, model: str, exemplar: dict[str, str] | None) -> None:
        self._duration.of(self._service, answer.method, model).observe(answer.seconds, exemplar)
        if not model:
            return
        if answer.input_tokens > 0:
            self._tokens.of("input", model).inc(answer.input_tokens)
        if answer.output_tokens > 0:
            self._tokens.of("output", model).inc(answer.output_tokens)
        if answer.first_text_seconds is not None:
            self._first_text.of(model).observe(answer.first_text_seconds, exemplar)

    def _named(self, model: ModelName | None) -> str:
        if model is None or model in self._models:
            return model or ""
        if len(self._models) >= MAX_MODELS:
            return OTHER
        self._models.add(model)
        return model


class WorkerAnswers(_Answers):
    """Of one worker."""

    def __init__(self, metrics: Metrics, provider: str) -> None:
        """``provider`` is the backend that makes the answers."""
        super().__init__(metrics)
        self._provider = provider
        self._server_duration = _RecordedAnswer(lambda: metrics.server_request_duration)
        self._server_first_token = _RecordedAnswer(lambda: metrics.server_time_to_first_token)
        self._server_token = _RecordedAnswer(lambda: metrics.server_time_per_output_token)

    def serving(self, operation: str, method: str, model: ModelName) -> "ServingAnswer":
        """The block serves one request; how it ends is measured, an exception out of it included."""
        return ServingAnswer(self, operation, method, model)

    def ended(self, answer: MeasuredAnswer) -> None:
        """Call it once for each request, while ``context.current`` is still its own."""
        exemplar, model = self._exemplars.of_request(), self._named(answer.model)
        self._count(answer, model, exemplar)
        labels = (answer.operation, self._provider, model)
        self._server_duration.of(*labels, _error_type(answer.error)).observe(answer.seconds, exemplar)
        if answer.first_text_seconds is not None:
            self._server_first_token.of(*labels).observe(answer.first_text_seconds, exemplar)
        if (seconds := answer.seconds_per_token) is not None:
            self._server_token.of(*labels).observe(seconds, exemplar)


class ServingAnswer:
    """Work for one request on a worker. Say of it what is known before the block is left."""

    __slots__ = (
        "_answers",
        "_method",
        "_model",
        "_operation",
        "_started",
        "at_once",
        "first_text_seconds",
        "input_tokens",
        "output_tokens",
    )

    def __init__(self, answers: WorkerAnswers, operation: str, method: str, model: ModelName) -> None:
        self._answers = answers
        self._operation = operation
        self._method = method
        self._model = model
        self._started = 0.0
        self.first_text_seconds: float | None = None
        self.input_tokens = 0
        self.output_tokens = 0
        self.at_once = 1

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        return self

    def __exit__(self, _kind: type[BaseException] | None, error: BaseException | None, _where: TracebackType | None) -> None:
        answer = MeasuredAnswer(
            operation=self._operation,
            method=self._method,
            model=self._model,
            seconds=self.seconds,
            first_text_seconds=self.first_text_seconds,
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
            at_once=self.at_once,
            error="" if error is None else _code(error),
        )
        self._answers.ended(answer)

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._started


class GatewayAnswers(_Answers):
    """Of one gateway."""

    def __init__(self, metrics: Metrics) -> None:
        super().__init__(metrics)
        self._inter_token = _RecordedAnswer(lambda: metrics.inter_token_seconds)
        self._client_duration = _RecordedAnswer(lambda: metrics.client_operation_duration)
        self._client_tokens = _RecordedAnswer(lambda: metrics.client_token_usage)
        self._client_first_chunk = _RecordedAnswer(lambda: metrics.client_time_to_first_chunk)
        self._client_chunk = _RecordedAnswer(lambda: metrics.client_time_per_output_chunk)

    def ended(self, answer: MeasuredAnswer, *, asked: bool) -> None:
        """Call it once for each request, while ``context.current`` is still its own. ``asked``: whether it was one for the workers,
        and not refused at the door or answered before."""
        exemplar, model = self._exemplars.of_request(), self._named(answer.model)
        self._count(answer, model, exemplar)
        if not asked or not model:
            return
        if (seconds := answer.seconds_per_token) is not None:
            self._inter_token.of(model).observe(seconds, exemplar)
        labels = (answer.operation, PROVIDER, model)
        self._client_duration.of(*labels, _error_type(answer.error)).observe(answer.seconds, exemplar)
        if answer.input_tokens > 0:
            self._client_tokens.of(*labels, "input").observe(answer.input_tokens, exemplar)
        if answer.output_tokens > 0:
            self._client_tokens.of(*labels, "output").observe(answer.output_tokens, exemplar)
        if answer.first_text_seconds is not None:
            self._client_first_chunk.of(*labels).observe(answer.first_text_seconds, exemplar)
        if (seconds := answer.seconds_per_chunk) is not None:
            self._client_chunk.of(*labels).observe(seconds, exemplar)


def _code(error: BaseException) -> str:
    if isinstance(error, errors.AimeshError):
        return errors.code_of(error)
    return errors.Cancelled.code if isinstance(error, asyncio.CancelledError) else errors.Internal.code


def _error_type(code: str) -> str:
    return code if not code or code in _NAMED_ERRORS else OTHER
