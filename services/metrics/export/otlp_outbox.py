"""Queue spans and logs for the OTLP endpoint: send them in batches, retry, and drop the oldest if a queue is full."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Final, Generic, TypeVar

from services.metrics.export import otlp_endpoint, otlp_records
from services.metrics.export.otlp_records import LogLine, NodeSpan
from services.metrics.export.partial_success import Rejection, Rejections
from shared import errors
from shared import node as nodes
from shared.api.gateway import Check
from shared.telemetry import logs
from shared.telemetry.version import version
from shared.timing.backoff import Backoff

T = TypeVar("T")

#: About 20 MB of spans, or 20 s at 1,000 spans per second.
MAX_WAITING: Final = 20_000
BATCH: Final = 512
_BACKOFF = Backoff(first_seconds=0.5, longest_seconds=10.0)
_MAX_RETRY_AFTER_SECONDS: Final = 60.0

#: Returns what was rejected, or None. Raises Unavailable if a retry can help, and BadRequest if not.
Send = Callable[[Sequence[T]], Awaitable[Rejection | None]]
Count = Callable[[int], object]

_log = logs.get(part="otlp")


class OtlpOutbox(Generic[T]):
    """The queue for one type of data, such as spans."""

    def __init__(self, what: str, send: Send[T], lost: Count, rejected: Count, clock: Callable[[], float] = time.monotonic) -> None:
        """``what`` names the data for people. ``rejected`` counts items that the endpoint rejected from an accepted batch."""
        self._send = send
        self._lost = lost
        self._rejected = rejected
        self._clock = clock
        self._rejections = Rejections(what)
        self._waiting: deque[T] = deque()
        self._has_waiting = asyncio.Event()
        self.trouble = ""

    def __len__(self) -> int:
        return len(self._waiting)

    def complaint(self) -> str:
        """Return the problem with the endpoint; empty without one."""
        return self.trouble or self._rejections.complaint(self._clock())

    def put(self, some: Sequence[T]) -> None:
        self._waiting.extend(some)
        too_many = len(self._waiting) - MAX_WAITING
        if too_many > 0:
            for _ in range(too_many):
                self._waiting.popleft()
            self._lost(too_many)
        if some:
            self._has_waiting.set()

    async def run(self) -> None:
        failures = 0
        while True:
            await self._has_waiting.wait()
            batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
            if not batch:
                self._has_waiting.clear()
                continue
            try:
                rejection = await self._send(batch)
            except errors.Unavailable as error:
                self._log_failure(error)
                self._waiting.extendleft(reversed(batch))
                self.put(())
                failures += 1
                await asyncio.sleep(max(_BACKOFF.pause(failures), min(error.retry_after_seconds or 0.0, _MAX_RETRY_AFTER_SECONDS)))
            except errors.AimeshError as error:
                self._log_failure(error)
                self._lost(len(batch))
            else:
                if self.trouble:
                    _log.info("the OTLP endpoint accepts data again")
                self.trouble, failures = "", 0
                self._note(rejection, len(batch))

    def _note(self, rejection: Rejection | None, sent: int) -> None:
        """Count rejected items. OTLP forbids sending them again: https://opentelemetry.io/docs/specs/otlp/#partial-success-1."""
        now = self._clock()
        if rejection is None:
            if self._rejections.end(now):
                _log.info("the OTLP endpoint accepts everything again", what=self._rejections.what)
            return
        rejection = replace(rejection, count=min(rejection.count, sent))
        if rejection.count:
            self._rejected(rejection.count)
        if self._rejections.note(rejection, now):
            event = "the OTLP endpoint rejected some items" if rejection.count else "the OTLP endpoint sent a warning"
            _log.warning(event, what=self._rejections.what, rejected=rejection.count, why=rejection.why)

    def _log_failure(self, error: errors.AimeshError) -> None:
        if error.message != self.trouble:
            _log.warning("the OTLP endpoint rejects everything", why=error.message)
        self.trouble = error.message


@dataclass(frozen=True, slots=True)
class OtlpOutboxes:
    spans: OtlpOutbox[NodeSpan]
    logs: OtlpOutbox[LogLine]

    def checks(self) -> tuple[Check, ...]:
        trouble = "; ".join(dict.fromkeys(filter(None, (self.spans.complaint(), self.logs.complaint()))))
        return (Check("OTLP", ok=not trouble, detail=trouble, needed=False),)


@asynccontextmanager
async def opened(node: nodes.Node, url: str, headers: str) -> AsyncIterator[OtlpOutboxes]:
    """Open the outboxes. The node owns their tasks."""
    async with otlp_endpoint.opened(url, otlp_endpoint.read_headers(headers)) as post:

        async def send_spans(spans: Sequence[NodeSpan]) -> Rejection | None:
            return await post(otlp_records.SPANS_PATH, otlp_records.encode_spans(spans, version()))

        async def send_logs(lines: Sequence[LogLine]) -> Rejection | None:
            return await post(otlp_records.LOGS_PATH, otlp_records.encode_logs(lines, version()))

        metrics = node.metrics
        lost, rejected = (metrics.spans_lost.labels(reason=reason).inc for reason in ("not_taken", "rejected"))
        lost_lines, rejected_lines = (metrics.log_lines_lost.labels(reason=reason).inc for reason in ("not_taken", "rejected"))
        made = OtlpOutboxes(OtlpOutbox("spans", send_spans, lost, rejected), OtlpOutbox("log lines", send_logs, lost_lines, rejected_lines))
        node.tasks.create_task(made.spans.run(), name="OTLP traces")
        node.tasks.create_task(made.logs.run(), name="OTLP logs")
        yield made
